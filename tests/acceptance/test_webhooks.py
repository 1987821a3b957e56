"""Bad and repeated input over the wire: each gets its answer, and none of it boots a guest."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from nimbus.sim.forge import Forge, ForgePolicy
from nimbus.sim.jobs import Job
from nimbus.sim.payloads import render_workflow_job_event
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.github import render_signature
from tests.acceptance.stack import Json, Stack

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow]

SETTLED_S = 60.0
LIMIT_BYTES = 25 * 1024 * 1024
FOREIGN = "ubuntu-latest"  # a label of GitHub's own hosts
UNSERVED = "nimbus, no-such-host"  # ours, and no agent here has the second label


class Line:
    """GitHub's end of the wire: signs what it sends, and keeps what a job's states would tell."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.secret = stack.secret("NIMBUS_GITHUB_WEBHOOK_SECRET")
        self.forge = Forge("wire-tests", ForgePolicy(), time.time)

    def make_job(self, labels: str) -> Job:
        text = f"jobs:\n  only:\n    runs-on: [{labels}]\n    steps:\n      - run: 'true'\n"
        return self.forge.start_run(parse_workflow(text), "hello").jobs[0]

    def render(self, job: Job, action: str) -> bytes:
        return json.dumps(render_workflow_job_event(job, action, 1)).encode()

    def send(self, body: bytes, event: str = "workflow_job", guid: str | None = None) -> tuple[int, Json]:
        """A delivery with the right signature, and its answer; returns once it is worked in."""
        signature, guid = render_signature(self.secret, body), guid or str(uuid.uuid4())
        answer = self.stack.deliver(event, body, guid, X_Hub_Signature_256=signature)
        deadline = time.monotonic() + SETTLED_S
        settled = answer.json().get("state") != "stored"
        while not settled:  # the same delivery again changes nothing, and says how the first one stands
            assert time.monotonic() < deadline, f"the control plane did not work in {guid}"
            time.sleep(0.05)
            settled = self.stack.deliver(event, body, guid, X_Hub_Signature_256=signature).status_code == 200
        return answer.status_code, dict(answer.json())


@pytest.fixture
def line(stack: Stack) -> Line:
    return Line(stack)


def test_a_wrong_signature_is_401(stack: Stack, line: Line) -> None:
    body = line.render(line.make_job(UNSERVED), "queued")
    before = stack.machines()
    wrong = render_signature("another secret", body)
    answer = stack.deliver("workflow_job", body, str(uuid.uuid4()), X_Hub_Signature_256=wrong)
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
    assert stack.machines() == before


def test_no_signature_is_401(stack: Stack, line: Line) -> None:
    body = line.render(line.make_job(UNSERVED), "queued")
    assert stack.deliver("workflow_job", body, str(uuid.uuid4())).status_code == 401


def test_a_body_over_25_mb_is_413(line: Line) -> None:
    status, told = line.send(b"{" + b" " * LIMIT_BYTES)
    assert (status, set(told)) == (413, {"error", "message"})


def test_json_that_is_none_is_400(line: Line) -> None:
    assert line.send(b"{not json")[0] == 400
    assert line.send(b"[]")[0] == 400


def test_an_event_that_is_unknown_is_taken_and_ignored(stack: Stack, line: Line) -> None:
    before = stack.machines()
    status, told = line.send(b'{"zen": "Keep it logically awesome."}', event="some_future_event")
    assert (status, told["state"]) == (202, "ignored")
    assert stack.machines() == before


def test_a_delivery_that_comes_again_changes_nothing(stack: Stack, line: Line) -> None:
    job, guid, before = line.make_job(UNSERVED), str(uuid.uuid4()), stack.machines()
    body = line.render(job, "queued")
    first, again = line.send(body, guid=guid), line.send(body, guid=guid)
    assert (first[0], first[1]["duplicate"]) == (202, False)
    assert (again[0], again[1]["duplicate"]) == (200, True)
    assert stack.machines()["queued"] == before["queued"] + 1
    end(line, job)
    assert stack.machines()["queued"] == before["queued"]


def test_a_job_for_other_hosts_is_ignored(stack: Stack, line: Line) -> None:
    job, before = line.make_job(FOREIGN), stack.machines()
    status, told = line.send(line.render(job, "queued"))
    assert (status, told["state"]) == (202, "stored")
    assert (stack.job(job.job_id), stack.machines()) == ({}, before)


def test_a_job_that_is_cancelled_before_it_starts_boots_nothing(stack: Stack, line: Line) -> None:
    job, before = line.make_job(UNSERVED), stack.machines()
    line.send(line.render(job, "queued"))
    end(line, job)
    told = stack.job(job.job_id)
    assert (told["state"], told["conclusion"], told["machines"]) == ("completed", "cancelled", [])
    assert stack.machines() == {**before, "cancelled": before["cancelled"] + 1}


def test_an_end_that_comes_before_its_beginning_is_recorded_and_stays(stack: Stack, line: Line) -> None:
    job, before = line.make_job(UNSERVED), stack.machines()
    queued = line.render(job, "queued")
    end(line, job)
    late = line.send(queued)
    assert late[0] == 202
    assert stack.job(job.job_id)["state"] == "completed"
    assert stack.machines() == before


def end(line: Line, job: Job) -> None:
    """GitHub cancels the job and says so."""
    line.forge.cancel(job.job_id)
    assert line.send(line.render(job, "completed"))[0] == 202
