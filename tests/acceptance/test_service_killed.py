"""SIGKILL for one service in the middle of a job: the job ends meanwhile, and not a line of its output is missing."""

from __future__ import annotations

import pytest

from tests.acceptance.gate import WAIT, Gate
from tests.acceptance.stack import Stack, wait_idle

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]


@pytest.mark.parametrize("service", ["control-plane", "logging-pipeline", "postgres", "redis"])
def test_a_job_ends_well_under_its_first_lease(stack: Stack, gate: Gate, service: str) -> None:
    gate.shut()
    job_id = stack.submit(f"echo begun; {WAIT}; echo ended")
    stack.wait_job(job_id, "in_progress")
    stack.wait_output(job_id, "begun")
    with stack.killed(service):
        gate.open()
    job = stack.wait_job(job_id, "completed")
    gate.shut()
    stack.wait_output(job_id, "ended")
    wait_idle(stack)
    assert (job["conclusion"], job["machines"][0]["fence"]) == ("success", 1)
    assert stack.output(job_id) == "begun\nopen\nended\n"
