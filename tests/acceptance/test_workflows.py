"""A workflow from GitHub's signed webhook to its conclusion, as the demo tells it, and a job that nobody waits for."""

from __future__ import annotations

import re
import time

import httpx2
import jwt
import pytest

from nimbus.wire.github import app_jwt_claims
from tests.acceptance.gate import WAIT, Gate
from tests.acceptance.stack import Github, Stack, wait_idle, wait_until

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]


def test_a_workflow_ends_in_success_and_its_output_is_in_the_log(stack: Stack, github: Github) -> None:
    run = github.start("echo the step speaks")
    ended = github.wait_end(run)
    (told,) = ended["jobs"]
    job = stack.wait_job(told["job_id"], "completed")
    (machine,) = job["machines"]
    wait_idle(stack)
    assert (ended["status"], ended["conclusion"], told["steps"][0]["conclusion"]) == ("completed", "success", "success")
    assert (job["source"], job["conclusion"], job["cause"]) == ("github", "success", None)
    assert machine["fence"] == 1
    assert re.fullmatch(rf"nimbus-[0-9a-f]{{4}}-{machine['machine_id']}-1", job["runner_name"])
    logs = stack.run("logs", "--job-id", str(job["job_id"]))
    assert (logs.returncode, "the step speaks\n" in logs.stdout) == (0, True)
    by_github_id = stack.run("logs", "--job-id", str(told["job_id"]))
    assert by_github_id.stdout == logs.stdout


def test_a_failing_step_ends_in_failure_with_its_output_and_the_machine_is_well(stack: Stack, github: Github) -> None:
    ended = github.wait_end(github.start("echo the last words; exit 3"))
    (told,) = ended["jobs"]
    job = stack.wait_job(told["job_id"], "completed")
    wait_idle(stack)
    (machine,) = stack.job(told["job_id"])["machines"]
    assert (ended["conclusion"], job["conclusion"]) == ("failure", "failure")
    assert (machine["state"], machine["ending"], machine["exit_code"]) == (
        "done",
        "done",
        0,
    )  # the runner itself worked
    assert "the last words" in stack.run("logs", "--job-id", str(job["job_id"])).stdout


def test_runners_are_gone_from_github_when_their_jobs_are(stack: Stack, github: Github, gate: Gate) -> None:
    run = github.start(f"echo begun; {WAIT}")
    (told,) = run["jobs"]
    job = stack.wait_job(told["job_id"], "in_progress")
    during = list_runners(stack, github)
    gate.open()
    github.wait_end(run)
    wait_idle(stack)
    gate.shut()
    assert job["runner_name"] in during
    assert job["runner_name"] not in list_runners(stack, github)


def test_a_job_cancelled_on_github_while_it_runs_ends_cancelled(stack: Stack, github: Github) -> None:
    run = github.start("echo begun; sleep 600")
    (told,) = run["jobs"]
    stack.wait_job(told["job_id"], "in_progress")
    stack.wait_output(told["job_id"], "begun")
    github.cancel(told["job_id"])
    assert github.wait_end(run)["conclusion"] == "cancelled"
    assert stack.wait_job(told["job_id"], "completed")["conclusion"] == "cancelled"
    wait_idle(stack)


def test_a_job_cancelled_while_the_host_is_full_boots_nothing(stack: Stack, github: Github, gate: Gate) -> None:
    cpus = stack.status()["agents"][0]["cpus"]
    fillers = [stack.submit(WAIT) for _ in range(cpus)]
    for filler in fillers:
        stack.wait_job(filler, "in_progress")
    before = stack.machines()
    (told,) = github.start("echo never")["jobs"]
    stack.wait_job(told["job_id"], "queued")
    assert stack.machines()["queued"] == before["queued"] + 1
    github.cancel(told["job_id"])
    job = stack.wait_job(told["job_id"], "completed")
    wait_until(lambda: stack.machines()["cancelled"] == before["cancelled"] + 1, "the machine request is cancelled")
    gate.open()
    for filler in fillers:
        stack.wait_job(filler, "completed")
    wait_idle(stack)
    gate.shut()
    assert (job["conclusion"], job["machines"]) == ("cancelled", [])
    # the fillers, and no other
    assert stack.machines()["done"] == before["done"] + cpus


def list_runners(stack: Stack, github: Github) -> set[str]:
    """The names of GitHub's runners of the repository, asked for as the App."""
    key = (stack.state / "github-app.pem").read_text()
    app = jwt.encode(app_jwt_claims("1", time.time()), key, algorithm="RS256")
    minted = httpx2.post(
        f"{github.url}/app/installations/1/access_tokens", headers={"Authorization": f"Bearer {app}"}, json={}
    )
    token = minted.json()["token"]
    answer = httpx2.get(
        f"{github.url}/repos/nimbus-demo/hello/actions/runners", headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200
    return {runner["name"] for runner in answer.json()["runners"]}
