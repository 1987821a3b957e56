"""`nimbus jobs list`, `why` and `events`: what people type, against a real control plane."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from nimbus.cli.joblist import describe_event, describe_seconds, describe_wait, parse_moment, render_filters
from nimbus.model.errors import Refused
from tests.unit.cli.test_jobs import jobs
from tests.unit.control_plane.plane import open_plane

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.services
async def test_a_list_is_filtered_paged_and_streamed_as_one_object_a_line(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.sql(
            "INSERT INTO jobs (org_id, source, name, state, conclusion, learned_by) "
            "SELECT 1, 'api', 'n' || n, 'completed', 'failure', 'api' FROM generate_series(1, 450) n"
        )
        await plane.submit(name="fresh")
        streamed = await jobs(plane, "list", "--all", "--json", "--conclusion", "failure", "--since", "1h")
        few = await jobs(plane, "list", "--state", "queued", "--state", "in_progress")
        some = await jobs(plane, "list", "--limit", "210", "--name", "n4", "--json")
        none = await jobs(plane, "list", "--until", "2020-01-01T00:00:00Z")
        wrong = await jobs(plane, "list", "--state", "stuck")
        unknown = await jobs(plane, "list", "--org", "nobody")

    numbers = [json.loads(line)["job_id"] for line in streamed.out.splitlines()]
    assert numbers == sorted(set(numbers), reverse=True)
    assert len(numbers) == 450
    assert few.out.splitlines()[0].startswith("JOB  STATE")
    assert "fresh" in few.out
    assert len(few.out.splitlines()) == 2
    assert len(some.out.splitlines()) == 1 + 10 + 51  # n4, n40 to n49, n400 to n450
    assert none.out == "no such job; without filters: nimbus jobs list\n"
    assert (wrong.status, "state must be one of" in wrong.err) == (2, True)
    assert (unknown.status, "there is no org nobody" in unknown.err) == (2, True)


@pytest.mark.services
async def test_a_job_says_why_it_waits_and_what_happened_to_it(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        submitted = await jobs(plane, "submit", "--size", "2cpu-1gb", "--priority", "7", "--json", "--", "true")
        number = str(json.loads(submitted.out)["job_id"])
        waits = await jobs(plane, "why", number)
        told = json.loads((await jobs(plane, "why", number, "--json")).out)
        shown = await jobs(plane, "show", number)
        await jobs(plane, "cancel", number)
        ledger = await jobs(plane, "events", number)
        streamed = await jobs(plane, "events", number, "--json")

    assert "the operator: no host has been heard of lately" in waits.out
    assert (told["code"], told["estimate_s"]) == ("no_host", None)
    assert told["reason"] in shown.out
    assert "priority      7" in shown.out
    assert "machine 1#0" in ledger.out
    assert "queued -> completed: cancelled" in ledger.out
    assert ledger.out.count("cancelled by cli") == 2
    assert [json.loads(line)["state_to"] for line in streamed.out.splitlines()] == [
        "queued", "queued", "cancelled", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", datetime(2026, 11, 21, 10, tzinfo=UTC)),
        ("30m", datetime(2026, 11, 21, 11, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 14, 12, tzinfo=UTC)),
        ("2026-11-21T08:00:00+01:00", datetime(2026, 11, 21, 7, tzinfo=UTC)),
    ],
)
def test_moments_are_read_as_people_write_them(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW, "--since") == moment


@pytest.mark.parametrize("text", ["", "2w", "yesterday", "-2h", "0001-01-01T00:00:00+23:59"])
def test_other_moments_are_refused_with_the_options_name(text: str) -> None:
    with pytest.raises(Refused, match="--until"):
        parse_moment(text, NOW, "--until")


def test_filters_become_a_query_and_states_one_parameter() -> None:
    asked = {"states": ("queued", "lost"), "org": "octo", "since": "1h", "repo": None}
    assert render_filters(asked, NOW) == {
        "state": "queued,lost", "org": "octo", "since": "2026-11-21T11:00:00+00:00",
    }  # fmt: skip


def test_nothing_in_a_wait_or_an_event_drives_the_terminal() -> None:
    hostile = "x\x1b[2J"
    wait: dict[str, Any] = {
        "waits": True, "reason": hostile, "code": "labels", "place": 3, "length": 4, "ahead": 9, "estimate_s": 240.0,
        "basis": hostile,
    }  # fmt: skip
    event: dict[str, Any] = {
        "at": "2026-11-21T08:00:00.123456+00:00", "about": "machine", "machine_id": 7, "fence": 1,
        "event": "ask_cancel", "state_from": "running", "state_to": "running", "conclusion": None, "cause": hostile,
        "told_by": "user", "subject": hostile, "learned": None, "agent_id": "host-1",
    }  # fmt: skip
    page = dict(describe_wait(wait))
    assert (page["place"], page["turn comes in"]) == ("3 of 4 of its organisation", "about 4 min")
    line = describe_event(event)
    assert line[:3] == ("2026-11-21 08:00:00.123", "machine 7#1", "ask_cancel")
    assert "\x1b" not in "".join((*page.values(), *line))


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (99, "99 s"), (240, "4 min"), (9000, "2 h")])
def test_an_estimate_has_no_more_digits_than_it_is_worth(seconds: float, shown: str) -> None:
    assert describe_seconds(seconds) == shown
