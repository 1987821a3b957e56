"""`nimbus agent drain` on the real agent: running jobs come to their own end, no new one begins, then it is gone.

On the fake VMM: what is looked at is the agent's leaving, not the guest. `nimbus up` starts the next agent at once, as
a person would who drained for an upgrade, and that one takes what had to wait.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.acceptance.stack import Json, Stack, nimbus_argv, running_stack, wait_idle
from tests.hosts import needs_root

pytestmark = [needs_root, pytest.mark.root, pytest.mark.services, pytest.mark.slow]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this module's own, whose agent it sends away."""
    with running_stack(tmp_path_factory.mktemp("drain"), "--sim", NIMBUS_VMM="fake") as up:
        yield up


@contextmanager
def draining(stack: Stack, *options: str) -> Iterator[IO[str]]:
    """The events of a drain; it has ended when the block has."""
    argv = nimbus_argv("agent", "drain", "--json", *options)
    with subprocess.Popen(argv, env=stack.env, stdout=subprocess.PIPE, text=True) as drain:
        try:
            assert drain.stdout is not None
            yield drain.stdout
        finally:
            drain.kill()


def submit_waiting(stack: Stack, gate: Path) -> int:
    """A job that runs until the gate is there."""
    job = stack.submit(f"echo begun; until [ -e {gate} ]; do sleep 0.1; done; echo ended")
    stack.wait_output(job, "begun")
    return job


def ending(job: Json) -> tuple[str, list[int]]:
    return str(job["conclusion"]), [machine["fence"] for machine in job["machines"]]


def test_a_running_job_comes_to_its_own_end_and_no_new_one_begins(stack: Stack, tmp_path: Path) -> None:
    gate = tmp_path / "open"
    running = submit_waiting(stack, gate)
    (vm,) = [row["vm"] for row in stack.vms()]
    agent = stack.pids()["host-agent"]
    with draining(stack) as events:
        first = json.loads(events.readline())
        later = stack.submit("echo later")
        gate.touch()
        told = [first, *map(json.loads, events)]
    ended = stack.wait_job(running, "completed")
    after = stack.wait_job(later, "completed")
    assert first == {"event": "draining", "agent": agent, "left": [vm], "untold": []}
    assert {left for event in told for left in event["left"]} == {vm}
    assert told[-1] == {"event": "ended", "agent": agent, "left": [], "untold": []}
    assert (ending(ended), ending(after)) == (("success", [1]), ("success", [1]))
    assert stack.output(running) == "begun\nended\n"
    wait_idle(stack)


def test_what_runs_when_time_is_up_is_torn_down_and_starts_again_elsewhere(stack: Stack, tmp_path: Path) -> None:
    gate = tmp_path / "open"
    running = submit_waiting(stack, gate)
    done = stack.run("agent", "drain", "--within", "1", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    gate.touch()
    ended = stack.wait_job(running, "completed")
    assert done.returncode == 1
    assert [event["event"] for event in told if event["left"]] == ["draining", "tearing_down"]
    assert (told[-1]["event"], told[-1]["left"]) == ("ended", [])
    assert ending(ended) == ("success", [2])
    wait_idle(stack)


def test_the_status_names_the_agents_process(stack: Stack) -> None:
    done = stack.run("agent", "status", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["pid"]) == (0, stack.pids()["host-agent"])
