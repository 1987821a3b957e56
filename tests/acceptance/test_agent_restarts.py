"""A running job outlives its agent: each line arrives once, its own exit is told, nothing is run anew.

The control plane, the logging pipeline with its embedded store, and the agents are real processes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.acceptance.fleet import Agent, Fleet, Room, running_fleet, show
from tests.acceptance.gate import Gate, running_gate
from tests.acceptance.stack import wait_until
from tests.guests import count_boots
from tests.hosts import needs_root, require_guest
from tests.services import PostgresServer, RedisServer, open_schema

pytestmark = [needs_root, pytest.mark.root, pytest.mark.services, pytest.mark.slow]

BACKENDS = ["fake", pytest.param("qemu", marks=pytest.mark.vm)]
LINE_EVERY_S = 0.05
TALKS_S = 30 if os.environ.get("NIMBUS_TEST_ALL_POINTS") else 10
LINES = int(TALKS_S / LINE_EVERY_S)
STOPS_WITHIN_S = 5.0  # the promise to whoever restarts an agent


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, shared_redis: RedisServer
) -> Iterator[Fleet]:
    with (
        open_schema(postgres_server) as dsn,
        running_fleet(tmp_path_factory.mktemp("fleet"), dsn, shared_redis.url) as running,
    ):
        yield running


@pytest.fixture
def door() -> Iterator[Gate]:
    with running_gate() as gate:
        yield gate


@pytest.fixture
def agent(request: pytest.FixtureRequest, fleet: Fleet, door: Gate) -> Iterator[Agent]:
    """One agent; its backend is the test's parameter."""
    if request.param == "qemu":
        require_guest()
    with fleet.agent("agent", request.param, NIMBUS_GUEST_PORTS=door.guest_ports) as running:
        yield running
    count_boots(request.param, 1)


@pytest.mark.parametrize("agent", BACKENDS, indirect=True)
def test_every_line_is_stored_once_and_in_order_though_the_agent_is_killed_three_times(
    fleet: Fleet, agent: Agent
) -> None:
    pids, away = [agent.pid], []
    began = time.monotonic()
    job_id = fleet.submit(f"n=0; while [ $n -lt {LINES} ]; do echo line $n; n=$((n+1)); sleep {LINE_EVERY_S}; done")
    for part in (1, 2, 3):
        fleet.wait_output(job_id, f"line {LINES * part // 4}\n")
        killed_at = time.monotonic()
        agent.kill()
        agent.start()
        away.append(time.monotonic() - killed_at)
        pids.append(agent.pid)
    job = fleet.wait_job(job_id, "completed")
    took_s = time.monotonic() - began
    fleet.wait_output(job_id, f"line {LINES - 1}\n")
    output = fleet.output(job_id)
    show(
        f"{LINES} lines in {took_s:.1f} s, agent killed 3 times and away for {', '.join(f'{s:.1f}' for s in away)} s:"
        f" {len(output.splitlines())} lines stored, {len(set(output.splitlines()))} distinct,"
        f" {job['conclusion']} under fence {job['machines'][0]['fence']}"
    )
    assert (job["conclusion"], job["machines"][0]["fence"]) == ("success", 1)
    assert output.splitlines() == [f"line {n}" for n in range(LINES)]
    assert len(set(pids)) == 4


@pytest.mark.parametrize("agent", BACKENDS, indirect=True)
def test_a_job_that_exits_with_7_while_its_agent_is_dead_is_finished_with_7_by_the_next_under_the_same_fence(
    fleet: Fleet, agent: Agent, door: Gate, request: pytest.FixtureRequest
) -> None:
    backend = request.node.callspec.params["agent"]
    job_id = fleet.submit(f"echo begun; {door.wait_line(backend)}; echo ended; exit 7")
    fleet.wait_output(job_id, "begun")
    fleet.wait_job(job_id, "in_progress")
    agent.kill()
    killed_at = time.time()
    door.open()
    wait_until(lambda: door.answers, "the job went through the door")
    ended_at = time.time()
    agent.start()
    job = fleet.wait_job(job_id, "completed")
    (machine,) = job["machines"]
    steps = [(step["event"], step["fence"], step["told_by"]) for step in fleet.trace(job_id)]
    show(
        f"agent killed at {killed_at:.3f}, job went on to its exit at {ended_at:.3f}, finished by the next agent:"
        f" exit {machine['exit_code']} under fence {machine['fence']}"
    )
    assert (job["conclusion"], machine["state"], machine["ending"]) == ("failure", "failed", "failed")
    assert (machine["exit_code"], machine["fence"]) == (7, 1)
    assert (machine["attestation"] is not None) == (backend == "qemu")  # the fake boots from no image
    assert steps == [("queue", 0, None), ("lease", 1, "agent"), ("start", 1, "agent"), ("finish_bad", 1, "agent")]
    fleet.wait_output(job_id, "ended")
    assert fleet.output(job_id) == "begun\nopen\nended\n"


def begin(fleet: Fleet, door: Gate, backend: str) -> int:
    """A job that runs and waits at the door."""
    job_id = fleet.submit(f"echo begun; {door.wait_line(backend)}; echo ended")
    fleet.wait_output(job_id, "begun")
    fleet.wait_job(job_id, "in_progress")
    return job_id


def told_to_stop(agent: Agent, what: str) -> None:
    """SIGTERM, which it obeys in time."""
    status, took_s = agent.stop(signal.SIGTERM)
    show(f"SIGTERM {what}: exit status {status} after {took_s:.2f} s")
    assert status == 0
    assert took_s < STOPS_WITHIN_S


def ends_well(fleet: Fleet, job_id: int, fence: int = 1) -> None:
    job = fleet.wait_job(job_id, "completed")
    (machine,) = job["machines"]
    assert (job["conclusion"], machine["fence"]) == ("success", fence)
    fleet.wait_output(job_id, "ended")
    assert fleet.output(job_id) == "begun\nopen\nended\n"


@pytest.mark.parametrize("agent", BACKENDS, indirect=True)
def test_sigterm_leaves_the_vm_to_the_next_agent_with_the_same_vmm(
    fleet: Fleet, agent: Agent, door: Gate, request: pytest.FixtureRequest
) -> None:
    job_id = begin(fleet, door, request.node.callspec.params["agent"])
    before = _, vmm = agent.vm_processes()
    told_to_stop(agent, "while a job runs")
    agent.start()
    wait_until(lambda: agent.events("vm.adopted"), "the VM is adopted")
    after = agent.vm_processes()
    show(f"VMM before: pid {vmm.pid} started at {vmm.start_ticks}; after: pid {after[1].pid}, {after[1].start_ticks}")
    door.open()
    ends_well(fleet, job_id)
    assert after == before


@pytest.mark.parametrize("agent", ["fake"], indirect=True)
def test_sigterm_is_obeyed_while_the_pipeline_is_away_and_no_line_is_lost(
    fleet: Fleet, agent: Agent, door: Gate
) -> None:
    job_id = begin(fleet, door, "fake")
    assert fleet.pipeline is not None
    fleet.pipeline.kill()
    try:
        before = agent.vm_processes()
        told_to_stop(agent, "while the pipeline is away")
        agent.start()
        wait_until(lambda: agent.events("vm.adopted"), "the VM is adopted")
        after = agent.vm_processes()
        door.open()
        fleet.wait_job(job_id, "completed")
    finally:
        fleet.pipeline.start()
    ends_well(fleet, job_id)
    assert after == before


@pytest.mark.parametrize("agent", ["fake"], indirect=True)
def test_sigterm_is_obeyed_while_the_control_plane_is_away_and_the_end_is_told_when_it_is_back(
    fleet: Fleet, agent: Agent, door: Gate
) -> None:
    job_id = begin(fleet, door, "fake")
    before = agent.vm_processes()
    fleet.plane.kill()
    try:
        told_to_stop(agent, "while the control plane is away")
        agent.start()
        wait_until(lambda: agent.events("vm.adopted"), "the VM is adopted")
        after = agent.vm_processes()
        door.open()
        wait_until(lambda: agent.records()[0].report, "the end is in the record")
        told_to_stop(agent, "with an end that nobody heard")
    finally:
        fleet.plane.start()
    agent.start()
    ends_well(fleet, job_id)
    assert after == before


@contextmanager
def hung(*rooms: Room | None) -> Iterator[None]:
    """They take connections inside the block and answer nobody: worse than one that is dead."""
    for room in filter(None, rooms):
        room.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for room in filter(None, rooms):
            room.send(signal.SIGCONT)


@pytest.mark.parametrize("agent", ["fake"], indirect=True)
def test_sigterm_is_obeyed_though_neither_the_control_plane_nor_the_pipeline_ever_answers(
    fleet: Fleet, agent: Agent, door: Gate
) -> None:
    job_id = begin(fleet, door, "fake")
    before = agent.vm_processes()
    with hung(fleet.plane, fleet.pipeline):
        told_to_stop(agent, "while a job runs and nobody answers")
        agent.start()
        after = agent.vm_processes()
        door.open()
        wait_until(lambda: agent.records()[0].report, "the end is in the record")
        told_to_stop(agent, "with an end and an output that nobody takes")
    agent.start()
    ends_well(fleet, job_id)
    assert after == before


@pytest.mark.vm
@pytest.mark.parametrize("agent", ["qemu"], indirect=True)
def test_a_vm_that_still_boots_at_sigterm_is_given_back_and_run_anew(fleet: Fleet, agent: Agent, door: Gate) -> None:
    job_id = fleet.submit(f"echo begun; {door.wait_line('qemu')}; echo ended")
    wait_until(lambda: any(record.keeper for record in agent.records()), "its VMM was started")
    _, booting = agent.vm_processes()
    told_to_stop(agent, "while a VM boots")
    left = agent.records()
    given_back = fleet.job(job_id)
    door.open()
    agent.start()
    ends_well(fleet, job_id, fence=2)
    steps = [(step["event"], step["fence"]) for step in fleet.trace(job_id)]
    show(f"VMM {booting.pid} ended with its boot; steps: {steps}")
    assert left == []
    assert (given_back["state"], [m["state"] for m in given_back["machines"]]) == ("queued", ["queued"])
    assert steps == [("queue", 0), ("lease", 1), ("expire", 1), ("lease", 2), ("start", 2), ("finish_ok", 2)]
