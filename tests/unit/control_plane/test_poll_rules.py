"""What a poll asks and believes: pure rules."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from nimbus.control_plane.demand.poll_rules import PollRules, choose_due, idle_room, is_news, pace, plan_looks
from nimbus.control_plane.github.limits import Quota
from nimbus.model.job import JobState
from nimbus.wire.github import parse_workflow_job
from nimbus.wire.githubrest import RunSeen
from tests.unit.control_plane.github_plane import job_event

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RULES = PollRules()


def left(remaining: int) -> Quota:
    return Quota(5000, remaining, 0.0)


def test_the_less_quota_is_left_the_slower_the_poll_and_the_reserve_is_not_touched() -> None:
    assert pace(None, 0.1) == 1.0
    assert [pace(left(each), 0.1) for each in (5000, 2500, 2499, 1000, 999, 501)] == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert [pace(left(each), 0.1) for each in (500, 0)] == [None, None]


def test_idle_repositories_get_a_quarter_of_the_quota_at_most_however_many_there_are() -> None:
    room = idle_room(RULES, left(5000))
    assert room is not None
    calls_an_hour = room * 2 * 3600 / (RULES.interval_s / 10)
    assert 0.8 * 1250 < calls_an_hour <= 1250
    assert idle_room(RULES, None) is None
    assert idle_room(PollRules(interval_s=1.0), left(60)) == 1


def test_every_active_repository_is_taken_and_as_many_idle_ones_as_there_is_room_for() -> None:
    due = [{"repo_id": number, "active": number in {1, 4}} for number in range(6)]
    assert [row["repo_id"] for row in choose_due(due, 2)] == [0, 1, 2, 4]
    assert len(choose_due(due, None)) == 6


def test_runs_that_were_not_looked_into_come_first_and_then_the_oldest_look() -> None:
    runs = [RunSeen(number, 1, NOW) for number in range(1, 8)]
    looks = {(number, 1): 10.0 + number for number in range(1, 6)}
    assert [run.run_id for run in plan_looks([*runs, *runs], looks, 4)] == [6, 7, 1, 2]


def news(action: str, known: JobState | None, runner: str | None = None, known_runner: str | None = None) -> bool:
    event = parse_workflow_job(json.dumps(job_event(action, 1, runner_name=runner)).encode())
    return is_news(None if known is None else {"state": known, "runner_name": known_runner}, event)


def test_an_answer_older_than_what_we_know_is_no_news() -> None:
    assert news("queued", None)
    assert news("in_progress", JobState.QUEUED)
    assert news("completed", JobState.IN_PROGRESS)
    assert not news("queued", JobState.QUEUED)
    assert not news("queued", JobState.IN_PROGRESS)
    assert not news("in_progress", JobState.COMPLETED)
    assert not news("completed", JobState.LOST)


def test_the_name_of_the_runner_is_news_where_it_was_missed() -> None:
    assert news("in_progress", JobState.IN_PROGRESS, runner="nimbus-1-1")
    assert not news("in_progress", JobState.IN_PROGRESS, runner="nimbus-1-1", known_runner="nimbus-1-1")
