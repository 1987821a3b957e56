"""Jobs of our own API as a user meets them: `nimbus jobs` and `nimbus logs` beside a running stack."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from nimbus.storage.content import ImageStore
from nimbus.storage.images import resolve_image
from tests.acceptance.stack import LIMIT_S, Stack, wait_idle, wait_until
from tests.hosts import BUILT_IMAGES

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]

CANCEL_WITHIN_S = 20.0  # ten until the host hears of it; the rest is for a busy machine


def test_the_exit_status_and_the_output_of_a_command_come_back(stack: Stack) -> None:
    line = 'echo "hello $WHO"; echo trouble >&2; exit 7'
    done = stack.run("jobs", "submit", "--json", "--wait", "--env", "WHO=you", "--cmd", line)
    job = json.loads(done.stdout)
    (machine,) = job["machines"]
    logs = stack.run("logs", "--json", "--job-id", str(job["job_id"]))
    rows = [json.loads(text) for text in logs.stdout.splitlines()]
    wait_idle(stack)
    assert done.returncode == 7
    assert (job["state"], job["conclusion"]) == ("completed", "failure")
    assert (machine["state"], machine["exit_code"], machine["fence"]) == ("failed", 7, 1)
    told = {(row["stream"], row["message"]) for row in rows}
    assert {("stdout", "hello you"), ("stderr", "trouble")} <= told
    assert machine["attestation"]["rootfs"] == resolve_image(ImageStore(BUILT_IMAGES), "base").digests["rootfs"]
    assert "image base: kernel " in stack.run("jobs", "show", str(job["job_id"])).stdout


def test_the_documented_module_does_what_the_command_does(stack: Stack) -> None:
    argv = [sys.executable, "-m", "nimbus.cli.jobs", "submit", "--wait", "--", "uname", "-s"]
    done = subprocess.run(argv, env=stack.env, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    job_id = done.stdout.split()[1]
    argv = [sys.executable, "-m", "nimbus.cli.logs", "--job-id", job_id]
    logs = subprocess.run(argv, env=stack.env, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert logs.stdout == "Linux\n"


def test_the_same_idempotency_key_gives_the_same_job_and_another_command_is_refused(stack: Stack) -> None:
    first = stack.submit("echo once", "--idempotency-key", "acceptance-1")
    stack.wait_job(first, "completed")
    before = stack.machines()
    again = stack.submit("echo once", "--idempotency-key", "acceptance-1")
    other = stack.run("jobs", "submit", "--cmd", "echo twice", "--idempotency-key", "acceptance-1")
    assert again == first
    assert (other.returncode, "use a new key" in other.stderr) == (1, True)
    assert stack.machines() == before


def test_a_running_job_that_is_cancelled_ends_within_seconds(stack: Stack) -> None:
    job_id = stack.submit("echo begun; sleep 600; echo never")
    stack.wait_output(job_id, "begun")
    stack.wait_job(job_id, "in_progress")
    asked_at = time.monotonic()
    cancelled = stack.run("jobs", "cancel", "--json", str(job_id))
    job = stack.wait_job(job_id, "completed")
    took_s = time.monotonic() - asked_at
    wait_idle(stack)
    assert (cancelled.returncode, job["conclusion"]) == (0, "cancelled")
    assert job["machines"][0]["state"] == "cancelled"
    assert took_s < CANCEL_WITHIN_S
    assert stack.output(job_id) == "begun\n"


def test_a_job_that_no_host_has_room_for_waits_and_is_cancelled_without_a_guest(stack: Stack) -> None:
    job_id = stack.submit("echo never", "--cpus", "64")
    wait_until(lambda: stack.machines()["queued"] == 1, "the job waits")
    cancelled = stack.run("jobs", "cancel", str(job_id))
    job = stack.job(job_id)
    assert cancelled.returncode == 0
    assert (job["state"], job["conclusion"]) == ("completed", "cancelled")
    assert (job["machines"][0]["state"], job["machines"][0]["fence"]) == ("cancelled", 0)
    wait_idle(stack)


def test_a_job_is_stopped_at_its_own_time_limit(stack: Stack) -> None:
    done = stack.run("jobs", "submit", "--json", "--wait", "--timeout", "2", "--cmd", "echo begun; sleep 600")
    job = json.loads(done.stdout)
    wait_idle(stack)
    assert done.returncode == 124
    assert (job["conclusion"], job["machines"][0]["ending"]) == ("timed_out", "timed_out")
    assert stack.output(job["job_id"]) == "begun\n"


def test_a_job_can_be_followed_while_it_runs(stack: Stack) -> None:
    job_id = stack.submit("for n in 1 2 3; do echo line $n; done")
    followed = stack.run("logs", "--follow", "--job-id", str(job_id))
    assert (followed.returncode, followed.stdout) == (0, "line 1\nline 2\nline 3\n")


def test_an_unknown_image_ends_the_job_with_a_cause_that_names_it(stack: Stack) -> None:
    done = stack.run("jobs", "submit", "--json", "--wait", "--image", "no-such-image", "--cmd", "true")
    job = json.loads(done.stdout)
    assert (done.returncode, job["conclusion"]) == (125, "failure")
    assert "no-such-image" in job["cause"]
    wait_idle(stack)
