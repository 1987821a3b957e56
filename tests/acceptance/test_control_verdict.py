"""The verdict on a storm says what is wrong: each story that may not be is told, and the one that may is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.acceptance.controlload import Planned
from tests.acceptance.controlverdict import Found, Story, judge

Row = dict[str, Any]
PLAN = Planned(1, org=2, lasts_s=1.0, exit_code=7)
JOB = {"job_id": 5, "org_id": 2, "idempotency_key": "storm-1", "priority": 0}
ENDED = {"state": "completed", "conclusion": "failure"}
MACHINE = {"machine_id": 9, "job_id": 5, "exit_code": 7, "deadline": None}


def step(event: str, state_to: str, fence: int) -> Row:
    return {"event": event, "state_to": state_to, "fence": fence, "told_by": "agent", "cause": None, "at": 1.0}


def job_step(state_from: str | None, state_to: str, conclusion: str | None = None) -> Row:
    return {"state_from": state_from, "state_to": state_to, "conclusion": conclusion}


QUEUE, LEASE, LOST = step("queue", "queued", 0), step("lease", "leased", 1), step("expire", "queued", 1)
AGAIN, START, END = step("lease", "leased", 2), step("start", "running", 2), step("finish_bad", "failed", 2)
BEGINS = (job_step(None, "queued"), job_step("queued", "in_progress"))
ENDS = job_step("in_progress", "completed", "failure")
GOOD = Story(
    PLAN,
    jobs=[JOB | ENDED],
    machines=[MACHINE],
    machine_steps=[QUEUE, LEASE, LOST, AGAIN, START, END],
    job_steps=[*BEGINS, ENDS],
    marks=["begun", "ended"],
)


def test_a_job_that_lost_a_lease_before_its_start_and_ended_as_it_must_is_right() -> None:
    assert judge(Found([GOOD], [], [])) == []


@pytest.mark.parametrize(
    ("story", "told"),
    [
        (replace(GOOD, jobs=[]), "0 jobs"),
        (replace(GOOD, jobs=[JOB | ENDED] * 2), "2 jobs"),
        (replace(GOOD, jobs=[JOB | {"state": "queued", "conclusion": None}]), "it is queued"),
        (replace(GOOD, jobs=[JOB | ENDED | {"org_id": 3}]), "of org 3"),
        (replace(GOOD, machines=[MACHINE | {"exit_code": 0}]), "exit status 0"),
        (replace(GOOD, machine_steps=[QUEUE, LEASE, LOST, LEASE, START, END]), "grants under fences"),
        (replace(GOOD, machine_steps=[QUEUE, LEASE, AGAIN, START, END]), "came to nothing"),
        (replace(GOOD, machine_steps=[QUEUE, LEASE, LOST, AGAIN, START, END, END]), "2 ends"),
        (replace(GOOD, machine_steps=[QUEUE, LEASE, LOST, AGAIN, START]), "0 ends"),
        (replace(GOOD, machine_steps=[QUEUE, LEASE, LOST, AGAIN, START, START, END]), "started 2 times"),
        (replace(GOOD, job_steps=[*BEGINS, ENDS, ENDS]), "the job's ends are"),
        (replace(GOOD, job_steps=[BEGINS[0], ENDS]), "do not follow"),
        (replace(GOOD, marks=["begun", "begun", "ended"]), "it began 2 times"),
        (replace(GOOD, marks=["begun"]), "ended 0 times"),
        (replace(GOOD, plan=replace(PLAN, cancelled_after_s=1.0)), "cancelled, it began 1 times and ended 1 times"),
    ],
)
def test_a_story_that_may_not_be_is_told(story: Story, told: str) -> None:
    assert told in " | ".join(judge(Found([story], [], [])))


def test_a_job_that_nobody_ordered_and_a_lease_that_is_left_are_told() -> None:
    wrong = judge(Found([GOOD], [JOB | ENDED], [MACHINE | {"deadline": "soon"}]))
    assert [line.partition(" {")[0] for line in wrong] == ["nobody ordered", "still held:"]
