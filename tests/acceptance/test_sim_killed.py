"""SIGKILL for the fake GitHub, alone and with a whole `nimbus up --sim`: the next one knows every job and ends it.

A job whose guest lives goes on. Of those whose guests are gone, one ran, and GitHub gives it no second runner; one
waited for a machine, and gets another.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.acceptance.gate import WAIT, Gate, running_gate
from tests.acceptance.stack import (
    Github,
    Stack,
    find_leaks,
    open_github,
    prepare_state,
    running_stack,
    wait_idle,
    wait_until,
)
from tests.guests import count_boots
from tests.hosts import needs_root, require_guest

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow, needs_root]


def test_the_next_stack_runs_what_was_queued_and_ends_what_was_lost(tmp_path: Path) -> None:
    require_guest()
    state = prepare_state(tmp_path / "state")
    with running_gate() as gate:
        settings = {"NIMBUS_GUEST_PORTS": gate.guest_ports, "NIMBUS_AGENT_CPU_OVERCOMMIT": "2"}
        with running_stack(state, "--sim", **settings) as killed:
            github = open_github(killed)
            taken = github.start(f"echo begun; {WAIT}")
            killed.wait_job(taken["jobs"][0]["job_id"], "in_progress")
            late = github.start("echo better late than never")
            # Frozen, the sim gives the second job's guest no runner, so it stays in the queue.
            killed.wait_job(late["jobs"][0]["job_id"], "queued")
            os.kill(killed.pids()["sim"], signal.SIGSTOP)
            wait_until(lambda: len(list((state / "ledger").glob("*.json"))) == 2, "two machines in the ledger")
            killed.kill_all()
        count_boots("qemu", 1)  # the second may not have come so far
        purged = killed.run("vms", "purge", "--all", "--json")
        assert (purged.returncode, len(json.loads(purged.stdout)["reaped"])) == (0, 2)
        assert find_leaks(state) == ()

        with running_stack(state, "--sim", **settings, NIMBUS_SIM_RUNNER_RETURN_WITHIN_S="5") as again:
            github = open_github(again)
            known = github.run(late)["status"]
            ended, broken = github.wait_end(late), github.wait_end(taken)
            caught_up = again.wait_job(late["jobs"][0]["job_id"], "completed")
            lost = again.wait_job(taken["jobs"][0]["job_id"], "lost")
            again.wait_output(caught_up["job_id"], "better late than never")
            wait_idle(again)
            again.count_guests()
        assert again.popen.returncode == 0
    assert known == "queued"
    assert (ended["conclusion"], caught_up["conclusion"]) == ("success", "success")
    assert caught_up["machines"][0]["fence"] == 2
    assert "the runner lost communication with the server" in [line["what"] for line in broken["jobs"][0]["history"]]
    assert (broken["conclusion"], lost["machines"][0]["state"]) == ("failure", "lost")
    assert find_leaks(state) == ()


def test_a_job_goes_on_in_its_guest_while_github_is_killed(stack: Stack, github: Github, gate: Gate) -> None:
    gate.shut()
    run = github.start(f"echo begun; {WAIT}; echo ended")
    job_id = run["jobs"][0]["job_id"]
    stack.wait_job(job_id, "in_progress")
    stack.wait_output(job_id, "begun")
    with stack.killed("sim"):
        gate.open()
    ended = github.wait_end(run)
    job = stack.wait_job(job_id, "completed")
    gate.shut()
    wait_idle(stack)
    assert (ended["conclusion"], job["conclusion"], job["machines"][0]["fence"]) == ("success", "success", 1)
