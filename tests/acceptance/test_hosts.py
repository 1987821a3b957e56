"""`nimbus hosts` on a real host's agent: it is seen, cordoned and drained from afar, through kills of both sides.

On the fake VMM: what is looked at is the host, not the guest.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.fleet import Agent, Fleet, running_fleet
from tests.acceptance.stack import Json, nimbus_argv, wait_until
from tests.hosts import needs_root
from tests.services import PostgresServer, RedisServer, open_schema

pytestmark = [needs_root, pytest.mark.root, pytest.mark.services, pytest.mark.slow]


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, shared_redis: RedisServer
) -> Iterator[Fleet]:
    """A control plane whose hosts tell of themselves every second."""
    with (
        open_schema(postgres_server) as dsn,
        running_fleet(
            tmp_path_factory.mktemp("fleet"), dsn, shared_redis.url, logs=False, NIMBUS_AGENT_HEARTBEAT_INTERVAL="1"
        ) as running,
    ):
        yield running


@pytest.fixture
def agent(fleet: Fleet) -> Iterator[Agent]:
    with fleet.agent("host", "fake") as running:
        yield running


def name_of(agent: Agent) -> str:
    return agent.env["NIMBUS_AGENT_ID"]


def show(fleet: Fleet, agent: Agent) -> Json:
    done = fleet.run("hosts", "show", name_of(agent), "--json")
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def wait_host(fleet: Fleet, agent: Agent, **told: object) -> Json:
    """The host once it is seen like that."""
    seen: list[Json] = []

    def look() -> bool:
        seen[:] = [show(fleet, agent)]
        return bool(seen[0]) and all(seen[0][name] == value for name, value in told.items())

    wait_until(look, f"host {told}")
    return seen[0]


def order(fleet: Fleet, word: str, agent: Agent) -> None:
    done = fleet.run("hosts", word, name_of(agent))
    assert done.returncode == 0, done.stderr


def begin(fleet: Fleet, gate: Path) -> int:
    """A running job that ends once the gate is there."""
    job_id = fleet.submit(f"until [ -e {gate} ]; do sleep 0.1; done")
    fleet.wait_job(job_id, "in_progress")
    return job_id


def fences(job: Json) -> list[int]:
    return [machine["fence"] for machine in job["machines"]]


def test_a_cordon_from_afar_stops_grants_and_no_running_job_and_outlives_both_sides(
    fleet: Fleet, agent: Agent, tmp_path: Path
) -> None:
    gate = tmp_path / "open"
    wait_host(fleet, agent, state="working", doing="working")
    running = begin(fleet, gate)
    busy = wait_host(fleet, agent, machines=1)
    order(fleet, "cordon", agent)
    waiting = fleet.submit("true")
    wait_host(fleet, agent, doing="cordoned")
    agent.kill()
    fleet.plane.kill()
    fleet.plane.start()
    agent.start()
    again = wait_host(fleet, agent, doing="cordoned", machines=1)
    gate.touch()
    ended = fleet.wait_job(running, "completed")
    empty = wait_host(fleet, agent, doing="cordoned", machines=0)
    held_back = fleet.job(waiting)
    order(fleet, "uncordon", agent)
    done = fleet.wait_job(waiting, "completed")
    assert busy["free_cpus"] is not None
    assert [each["job_id"] for each in again["leased"]] == [running]
    assert (ended["conclusion"], fences(ended)) == ("success", [1])
    assert (empty["wanted"], empty["state"]) == ("cordoned", "cordoned")
    assert (held_back["state"], fences(held_back)) == ("queued", [0])
    assert (done["conclusion"], fences(done)) == ("success", [1])


def test_a_drain_from_afar_waits_for_what_runs_and_leaves_an_agent_that_can_work_again(
    fleet: Fleet, agent: Agent, tmp_path: Path
) -> None:
    gate = tmp_path / "open"
    wait_host(fleet, agent, doing="working")
    running = begin(fleet, gate)
    argv = nimbus_argv("hosts", "drain", name_of(agent), "--wait", "--json")
    with subprocess.Popen(argv, env=fleet.env, stdout=subprocess.PIPE, text=True) as drain:
        try:
            assert drain.stdout is not None
            first = json.loads(drain.stdout.readline())
            wait_host(fleet, agent, doing="draining")
            gate.touch()
            told = [first, *map(json.loads, drain.stdout)]
            status = drain.wait(60)
        finally:
            drain.kill()
    drained = wait_host(fleet, agent, state="drained")
    order(fleet, "uncordon", agent)
    later = fleet.wait_job(fleet.submit("true"), "completed")
    assert [each["job_id"] for each in first["left"]] == [running]
    assert (status, told[-1]["drained"], told[-1]["left"]) == (0, True, [])
    assert fleet.job(running)["conclusion"] == "success"
    assert (drained["drained"], agent.is_running()) == (True, True)
    assert later["conclusion"] == "success"


def test_the_ledger_of_a_host_can_be_looked_at_from_afar(fleet: Fleet, agent: Agent, tmp_path: Path) -> None:
    gate = tmp_path / "open"
    job_id = begin(fleet, gate)
    (vm,) = [str(record.vm) for record in agent.records()]

    def look() -> list[Json]:
        return [each for each in show(fleet, agent)["records"] or () if each["state"] == "running"]

    (told,) = wait_until(look, "the running VM's record")
    gate.touch()
    fleet.wait_job(job_id, "completed")
    wait_until(lambda: show(fleet, agent)["records"] == [], "an empty ledger")
    assert (told["vm"], told["machine_id"]) == (vm, fleet.job(job_id)["machines"][0]["machine_id"])
    assert {"slot", "vmm"} <= set(told["claims"])


def test_a_host_whose_agent_left_in_good_order_says_so(fleet: Fleet) -> None:
    with fleet.agent("leaver", "fake") as agent:
        wait_host(fleet, agent, doing="working")
    assert show(fleet, agent)["state"] == "leaving"
