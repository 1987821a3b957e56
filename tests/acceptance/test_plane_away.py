"""A control plane that is away for longer than a lease lasts: GitHub's job in progress goes on.

GitHub gives no second runner for a job that one has begun, so such a lease is longer than the others.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from nimbus.host_agent.ledger import Ledger
from nimbus.model.record import Record
from tests.acceptance.fleet import show
from tests.acceptance.gate import WAIT, running_gate
from tests.acceptance.stack import Stack, open_github, prepare_state, running_stack, wait_idle, wait_until
from tests.hosts import needs_root, require_guest

pytestmark = [needs_root, pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]

TTL_S = 8.0


def the_record(stack: Stack) -> Record:
    ledger = Ledger(stack.state / "ledger")
    (record,) = (record for vm in ledger.vms() if (record := ledger.read(vm)) is not None)
    return record


def left_s(record: Record) -> float:
    """How long the machine may live on if no renewal is answered any more."""
    return ((record.deadline_ns or 0) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9


def test_a_github_job_in_progress_outlives_two_ttls_without_a_control_plane(tmp_path: Path) -> None:
    require_guest()
    state = prepare_state(tmp_path / "state")
    with (
        running_gate() as gate,
        running_stack(state, "--sim", NIMBUS_GUEST_PORTS=gate.guest_ports, NIMBUS_JOB_LEASE_TTL=f"{TTL_S:g}") as stack,
    ):
        github = open_github(stack)
        run = github.start(f"echo begun; {WAIT}; echo ended")
        (told,) = run["jobs"]
        stack.wait_job(told["job_id"], "in_progress")
        stack.wait_output(told["job_id"], "begun")
        wait_until(lambda: left_s(the_record(stack)) > 60, "the longer lease of a job in progress")
        keeper, plane = the_record(stack).keeper, stack.pids()["control-plane"]
        os.kill(plane, signal.SIGSTOP)
        away_at = time.time()
        try:
            time.sleep(2 * TTL_S + 1)  # what is shown: nobody answers for so long
        finally:
            os.kill(plane, signal.SIGCONT)
        back_at, after = time.time(), the_record(stack).keeper
        gate.open()
        ended = github.wait_end(run)
        job = stack.wait_job(told["job_id"], "completed")
        wait_idle(stack)
        stack.count_guests()
    show(
        f"control plane away from {away_at:.3f} to {back_at:.3f}, {(back_at - away_at) / TTL_S:.1f} TTLs:"
        f" the job in progress ended in {ended['conclusion']} under fence {job['machines'][0]['fence']}"
    )
    assert after == keeper
    assert (ended["conclusion"], job["conclusion"], job["machines"][0]["fence"]) == ("success", "success", 1)
    assert len(job["machines"]) == 1
