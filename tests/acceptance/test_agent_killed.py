"""SIGKILL for the host agent in the middle of its work: the next one goes on with it, and touches nobody else's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.gate import WAIT, Gate
from tests.acceptance.stack import (
    LIMIT_S,
    Github,
    Stack,
    clean_environment,
    find_leaks,
    nimbus_argv,
    prepare_state,
    wait_idle,
)
from tests.guests import count_boots

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]

TALE = f"echo begun; {WAIT}; echo ended"


@contextmanager
def running_neighbour(state: Path, gate: Gate) -> Iterator[subprocess.Popen[str]]:
    """A `nimbus run` of somebody on this host, whose command has begun and waits at the gate."""
    env = clean_environment(state, NIMBUS_GUEST_PORTS=gate.guest_ports)
    argv = nimbus_argv("run", "--", "sh", "-c", TALE)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "begun\n"
            count_boots("qemu", 1)
            yield run
        finally:
            run.terminate()  # it has ended by now, unless the test failed


def test_its_jobs_go_on_to_their_ends_under_their_first_leases_and_neighbours_live(
    stack: Stack, github: Github, gate: Gate, tmp_path: Path
) -> None:
    elsewhere = prepare_state(tmp_path)
    gate.shut()
    with running_neighbour(elsewhere, gate) as stranger, running_neighbour(stack.state, gate) as housemate:
        ours = stack.submit(TALE)
        run = github.start(f"echo begun; {WAIT}")
        (told,) = run["jobs"]
        for job_id in (ours, told["job_id"]):
            stack.wait_job(job_id, "in_progress")
            stack.wait_output(job_id, "begun")
        purged = json.loads(stack.run("vms", "purge", "--all", "--json").stdout)
        before = {row["vm"] for row in stack.vms()}

        with stack.killed("host-agent"):
            pass
        after = {row["vm"] for row in stack.vms()}
        gate.open()
        job = stack.wait_job(ours, "completed")
        linked = stack.wait_job(told["job_id"], "completed")
        ended = github.wait_end(run)
        told_by = [one.communicate(timeout=LIMIT_S)[0] for one in (stranger, housemate)]
    gate.shut()
    wait_idle(stack)
    assert (purged["reaped"], len(purged["alive"])) == ([], 3)  # everybody's supervisor lived
    assert (len(before), after) == (3, before)
    assert (job["conclusion"], job["machines"][0]["fence"]) == ("success", 1)
    assert stack.output(ours) == "begun\nopen\nended\n"
    assert (ended["conclusion"], linked["conclusion"], linked["machines"][0]["fence"]) == ("success", "success", 1)
    assert stack.output(linked["job_id"]).count("begun\n") == 1
    assert told_by == ["open\nended\n"] * 2
    assert (stranger.returncode, housemate.returncode) == (0, 0)
    assert find_leaks(elsewhere) == ()
