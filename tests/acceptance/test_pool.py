"""Machines that wait for jobs, in a real agent with a real control plane: who serves, who inherits, who clears away.

A job that a waiting machine serves has a `claim` among its phases.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nimbus.host import process
from nimbus.host.slots import list_slots
from nimbus.host_agent.ledger import Ledger
from nimbus.model.record import ProcessId, Record
from tests.acceptance.fleet import Agent, Fleet, running_fleet, show
from tests.acceptance.gate import Gate, running_gate
from tests.acceptance.stack import wait_until
from tests.acceptance.test_agent_restarts import begin, ends_well, told_to_stop
from tests.guests import count_boots
from tests.hosts import needs_root, require_guest
from tests.oracle import RUNTIME_DIR
from tests.services import PostgresServer, RedisServer, open_schema

pytestmark = [needs_root, pytest.mark.root, pytest.mark.services, pytest.mark.slow, pytest.mark.vm]

KINDS = ["prespawned", "warm"]


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, shared_redis: RedisServer
) -> Iterator[Fleet]:
    require_guest()
    with (
        open_schema(postgres_server) as dsn,
        running_fleet(tmp_path_factory.mktemp("fleet"), dsn, shared_redis.url) as running,
    ):
        yield running


@pytest.fixture
def door() -> Iterator[Gate]:
    with running_gate() as gate:
        yield gate


@contextmanager
def pooled(fleet: Fleet, door: Gate, pool: str, **settings: str) -> Iterator[Agent]:
    with fleet.agent("agent", "qemu", NIMBUS_GUEST_PORTS=door.guest_ports, NIMBUS_POOL=pool, **settings) as running:
        try:
            yield running
        except BaseException as error:
            error.add_note(f"its agent said: {running.log.read_text(errors='replace')[-8000:]}")
            raise
    count_boots("qemu", 1)


@pytest.fixture(params=KINDS)
def agent(request: pytest.FixtureRequest, fleet: Fleet, door: Gate) -> Iterator[Agent]:
    """One agent that keeps one machine waiting, of the kind that is the test's parameter."""
    with pooled(fleet, door, f"1x256 {request.param}=1") as running:
        yield running


def waiting(agent: Agent) -> list[Record]:
    """The machines that wait, by the ledger; those whose VMM has not come up yet are not among them."""
    return [record for record in agent.records() if record.waits_as and record.keeper is not None]


def wait_filled(agent: Agent) -> Record:
    """The one machine that waits, once the agent says so."""

    def look() -> list[Record]:
        told = {event["vm"] for event in agent.events("pool.machine_waits")}
        return [record for record in waiting(agent) if str(record.vm) in told]

    (record,) = wait_until(look, "a machine waits")
    return record


def served_by(agent: Agent, job: Record) -> tuple[ProcessId, ProcessId]:
    """Keeper and VMM of a VM."""
    keeper = next(record.keeper for record in agent.records() if record.vm == job.vm)
    assert keeper is not None
    with open(f"/proc/{keeper.pid}/task/{keeper.pid}/children") as children:
        return keeper, process.identify(int(children.read().split()[0]))


def test_a_job_is_served_by_the_machine_that_waited_and_another_takes_its_place(fleet: Fleet, agent: Agent) -> None:
    waits = wait_filled(agent)
    job = fleet.wait_job(fleet.submit("echo ran"), "completed")
    (machine,) = job["machines"]
    show(f"phases of a job that a waiting machine served: {json.dumps(machine['phases'])}")
    assert (job["conclusion"], machine["fence"]) == ("success", 1)
    assert "claim" in machine["phases"]
    assert "slot" not in machine["phases"]
    assert machine["attestation"]["template"] is not None
    assert wait_filled(agent).vm != waits.vm


def test_sigterm_leaves_the_job_to_the_next_agent_and_clears_what_waits(fleet: Fleet, agent: Agent, door: Gate) -> None:
    first = wait_filled(agent)
    job_id = begin(fleet, door, "qemu")
    second = wait_filled(agent)
    before = served_by(agent, first)
    told_to_stop(agent, "while a job runs and another machine waits")
    left = agent.records()
    gone = [one for one in (second.keeper,) if one is not None and process.is_alive(one)]
    agent.start()
    wait_until(lambda: agent.events("vm.adopted"), "the VM is adopted")
    after = served_by(agent, first)
    third = wait_filled(agent)
    door.open()
    ends_well(fleet, job_id)
    assert ([record.vm for record in left], gone) == ([first.vm], [])
    assert after == before
    assert third.vm not in {first.vm, second.vm}


def test_what_waited_dies_with_its_agent_and_the_next_one_fills_its_pool_anew(
    fleet: Fleet, agent: Agent, door: Gate
) -> None:
    first = wait_filled(agent)
    job_id = begin(fleet, door, "qemu")
    second = wait_filled(agent)
    before = served_by(agent, first)
    assert second.keeper is not None
    agent.kill()
    wait_until(lambda: second.keeper is None or not process.is_alive(second.keeper), "its keeper ends it")
    agent.start()
    wait_until(lambda: agent.events("vm.adopted"), "the VM is adopted")
    after = served_by(agent, first)
    wait_until(lambda: not Ledger(agent.layout.ledger).holds(second.vm), "the dead one is cleared away")
    wait_until(lambda: [one for one in waiting(agent) if one.vm != second.vm], "another waits")
    door.open()
    ends_well(fleet, job_id)
    assert after == before


def test_a_drain_ends_though_machines_wait(fleet: Fleet, agent: Agent, door: Gate) -> None:
    wait_filled(agent)
    job_id = begin(fleet, door, "qemu")
    wait_filled(agent)
    agent.send(signal.SIGUSR1)
    wait_until(lambda: not waiting(agent), "nothing waits any more")
    assert agent.is_running()
    door.open()
    wait_until(lambda: not agent.is_running(), "the agent is gone")
    ends_well(fleet, job_id)
    assert agent.records() == []


def test_a_job_whose_agent_dies_between_claim_and_hello_is_run_again_exactly_once(
    fleet: Fleet, agent: Agent, door: Gate
) -> None:
    waits = wait_filled(agent)
    job_id = fleet.submit(f"echo begun; {door.wait_line('qemu')}; echo ended")
    claimed = wait_claimed(agent, waits)
    agent.kill()
    agent.start()
    door.open()
    job = fleet.wait_job(job_id, "completed")
    fleet.wait_output(job_id, "ended")
    (machine,) = job["machines"]
    show(f"killed {claimed}: ended {job['conclusion']} under fence {machine['fence']}")
    assert job["conclusion"] == "success"
    assert fleet.output(job_id) == "begun\nopen\nended\n"
    assert door.answers == 1


def wait_claimed(agent: Agent, waits: Record) -> str:
    """Return in the moment in which the record says that a job has it; how far that was then."""
    ledger, deadline = Ledger(agent.layout.ledger), time.monotonic() + 120
    while time.monotonic() < deadline:
        record = ledger.read(waits.vm)
        if record is not None and record.lease is not None:
            return "after the session was noted" if record.session else "before any session"
    raise AssertionError("no job came")


def slots_for(number: int) -> int:
    """A limit of slots that leaves so many beside those that others hold on this host now."""
    return 1 + max((slot.index for slot in list_slots(RUNTIME_DIR)), default=-1) + number


def test_a_pool_larger_than_the_host_takes_no_job_its_slot(fleet: Fleet, door: Gate) -> None:
    with pooled(fleet, door, "1x256 built=900", NIMBUS_VM_SLOTS=str(slots_for(4))) as agent:
        wait_until(lambda: len(agent.events("pool.machine_waits")) >= 4, "all slots are taken by what waits")
        jobs = [fleet.submit("true", "--memory", "320M") for _ in range(2)]
        ended = [fleet.wait_job(job, "completed") for job in jobs]
        assert [job["conclusion"] for job in ended] == ["success", "success"]
        assert all(machine["fence"] == 1 for job in ended for machine in job["machines"])
        assert agent.events("pool.larger_than_the_host")


def test_sigterm_is_obeyed_while_a_template_is_built(fleet: Fleet, door: Gate) -> None:
    with pooled(fleet, door, "1x256 warm=1") as agent:
        wait_until(lambda: [record for record in agent.records() if record.keeper], "the template's machine runs")
        told_to_stop(agent, "while a template is built")
        assert agent.records() == []
        agent.start()
        wait_filled(agent)
