"""Lists of jobs: filters, cursors that stay good while jobs come in, and what a query string may hold."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from nimbus.control_plane.jobs.jobevents import Place, parse_asked_events, parse_place, render_place
from nimbus.control_plane.jobs.joblist import JobFilter, parse_asked, parse_cursor, render_cursor
from nimbus.model.errors import Refused
from nimbus.model.job import JobSource, JobState, Learned
from nimbus.runtime.postgres import load_queries
from tests.unit.control_plane.plane import Plane, open_plane
from tests.unit.control_plane.plans import rows_read

NAMES = [
    "state",
    "source",
    "repo",
    "org",
    "label",
    "name",
    "conclusion",
    "learned_by",
    "since",
    "until",
    "limit",
    "cursor",
]
TEXTS = st.one_of(
    st.text(max_size=300),
    st.sampled_from(
        ["queued", "queued,lost", "api", "0", "1", "200", "201", "2026-11-21T08:00:00Z", "0001-01-01T00:00:00+23:59"]
    ),
)


# --- reading -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), TEXTS), max_size=6))
@example([("since", "9999-12-31T23:59:59-23:59")])
@example([("limit", "٣")])
def test_any_query_string_is_read_or_refused(query: list[tuple[str, str]]) -> None:
    for parse in (parse_asked, parse_asked_events):
        try:
            parse(query)
        except Refused:
            continue


@given(st.one_of(st.text(max_size=80), st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_any_cursor_is_read_or_refused(text: str) -> None:
    for parse in (lambda: parse_cursor(text, JobFilter(), None), lambda: parse_place(text)):
        try:
            parse()
        except Refused:
            continue


@given(st.integers(1, 2**63 - 1), st.one_of(st.none(), st.integers(1, 2**63 - 1)))
def test_a_cursor_is_good_for_its_own_list_and_no_other(job_id: int, org_id: int | None) -> None:
    wanted = JobFilter(state=(JobState.QUEUED,), since=datetime(2026, 11, 21, tzinfo=UTC))
    cursor = render_cursor(job_id, wanted, org_id)
    assert parse_cursor(cursor, wanted, org_id) == job_id
    for other, org in ((wanted, 17 if org_id is None else None), (replace(wanted, source=JobSource.API), org_id)):
        with pytest.raises(Refused, match="other filters"):
            parse_cursor(cursor, other, org)


@given(
    st.builds(
        Place,
        st.datetimes(datetime(1970, 1, 1), datetime(8999, 12, 31), timezones=st.just(UTC)),
        st.sampled_from(["job", "machine"]),
        st.integers(1, 2**63 - 1),
    )
)
def test_a_place_among_events_is_read_as_it_was_told(place: Place) -> None:
    assert parse_place(render_place(place)) == place


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ([("states", "queued")], "'states' is no parameter of this list; known: conclusion, cursor"),
        ([("state", "queued,ended")], "state must be one of completed, in_progress, lost, queued, waiting"),
        ([("source", "gitlab")], "source must be one of api, github"),
        ([("org", "a"), ("org", "b")], "org is given twice"),
        ([("since", "yesterday")], "since must be a moment with its time zone"),
        ([("until", "2026-11-21T08:00:00")], "until must be a moment with its time zone"),
        ([("since", "2026-11-21T08:00:00Z"), ("until", "2026-11-21T08:00:00Z")], "since must be before until"),
        ([("limit", "0")], "limit must be a whole number from 1 to 200"),
        ([("name", "")], "name must be text of 1 to 64 characters"),
        ([("label", "a\0")], "label must be text"),
        ([("cursor", "x")], None),
    ],
)
def test_what_is_wrong_is_told_by_its_name(query: list[tuple[str, str]], told: str | None) -> None:
    if told is None:
        assert parse_asked(query).cursor == "x"  # judged with the filters, when the page is asked for
    else:
        with pytest.raises(Refused) as refused:
            parse_asked(query)
        assert told in str(refused.value)


def test_several_states_are_given_with_commas_or_again() -> None:
    for query in ([("state", "lost,queued")], [("state", "queued"), ("state", "lost")]):
        assert parse_asked(query).wanted.state == (JobState.LOST, JobState.QUEUED)
    assert parse_asked([("learned_by", "poll")]).wanted.learned_by is Learned.POLL


# --- as the API tells it -------------------------------------------------------------------------------------------


ORGS = "INSERT INTO orgs (org_id, forge, forge_id, login) VALUES (11, 'github', 1, 'Octo'), (12, 'github', 2, 'Hex')"
REPOS = "INSERT INTO repos (repo_id, org_id, forge_id, name) VALUES (21, 11, 1, 'api'), (22, 12, 2, 'api')"
JOBS = """
    INSERT INTO jobs (job_id, org_id, repo_id, source, name, labels, state, conclusion, learned_by, queued_at) VALUES
    (101, 11, 21, 'github', 'build (1)', '{big,nimbus}', 'completed', 'failure', 'webhook', '2026-11-01T00:00:00Z'),
    (102, 11, 21, 'github', 'build_2', '{nimbus}', 'completed', 'success', 'poll', '2026-11-02T00:00:00Z'),
    (103, 12, 22, 'github', 'test 100%', '{nimbus}', 'lost', NULL, 'webhook', '2026-11-03T00:00:00Z'),
    (104, 11, NULL, 'api', 'builder', '{}', 'queued', NULL, 'api', '2026-11-04T00:00:00Z'),
    (105, 12, 22, 'github', 'test', '{nimbus}', 'in_progress', NULL, 'redelivery', '2026-11-05T00:00:00Z')
"""


@pytest.fixture
async def plane(database_dsn: str, redis_url: str) -> AsyncIterator[Plane]:
    """Two orgs of GitHub with jobs of many kinds, beside the local one."""
    async with open_plane(database_dsn, redis_url) as running:
        for text in (ORGS, REPOS, JOBS):
            await running.sql(text)
        yield running


async def ids(plane: Plane, query: str, **claims: object) -> list[int]:
    reply = await plane.http.get(f"/api/jobs?{query}", headers=plane.admin(**claims))
    assert reply.status_code == 200, reply.text
    return [job["job_id"] for job in reply.json()["jobs"]]


@pytest.mark.services
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [105, 104, 103, 102, 101]),
        ("state=completed", [102, 101]),
        ("state=lost,in_progress&state=queued", [105, 104, 103]),
        ("source=api", [104]),
        ("source=github&learned_by=webhook", [103, 101]),
        ("source=github&learned_by=api", []),
        ("org=octo", [104, 102, 101]),
        ("org=12", [105, 103]),
        ("repo=Octo/API", [102, 101]),
        ("repo=22", [105, 103]),
        ("org=Octo&repo=21&conclusion=failure", [101]),
        ("label=NIMBUS", [105, 103, 102, 101]),
        ("label=big", [101]),
        ("name=build", [104, 102, 101]),
        ("name=build_", [102]),
        ("name=test%20100%25", [103]),
        ("name=test%25", []),
        ("conclusion=success", [102]),
        ("learned_by=poll", [102]),
        ("since=2026-11-02T00:00:00Z&until=2026-11-04T01:00:00%2B01:00", [103, 102]),
        ("limit=2", [105, 104]),
    ],
)
async def test_each_filter_narrows_the_list(plane: Plane, query: str, found: list[int]) -> None:
    assert await ids(plane, query) == found


@pytest.mark.services
async def test_a_token_of_one_org_lists_nothing_of_another_by_any_filter_or_cursor(plane: Plane) -> None:
    mine = plane.admin(org_id=11)
    theirs = await plane.http.get("/api/jobs?limit=1", headers=plane.admin(org_id=12))
    cursor = theirs.json()["next"]
    told = {
        path: (await plane.http.get(path, headers=mine)).status_code
        for path in (
            "/api/jobs?org=12", "/api/jobs?org=Hex", "/api/jobs?repo=22", "/api/jobs?repo=Hex/api",
            "/api/jobs?org=nobody", f"/api/jobs?limit=1&cursor={cursor}",
            "/api/jobs/105", "/api/jobs/105/events", "/api/jobs/105/wait",
        )
    }  # fmt: skip
    cancelled = await plane.http.post("/api/jobs/105/cancel", headers=mine)
    unknown = await plane.http.get("/api/jobs?org=nobody", headers=mine)
    foreign = await plane.http.get("/api/jobs?org=Hex", headers=mine)

    assert told.pop(f"/api/jobs?limit=1&cursor={cursor}") == 400
    assert set(told.values()) == {404}
    assert cancelled.status_code == 404
    assert unknown.json()["message"] == foreign.json()["message"].replace("Hex", "nobody")
    for query in ("state=in_progress", "label=nimbus", "name=test", "learned_by=redelivery"):
        assert not {103, 105} & set(await ids(plane, query, org_id=11))
    assert await ids(plane, "", org_id=11) == [104, 102, 101]
    assert await ids(plane, "", org_id=0) == []


@pytest.mark.services
async def test_a_cursor_that_was_made_up_leads_to_nothing_but_ones_own_jobs(plane: Plane) -> None:
    made = render_cursor(104, JobFilter(), 11)  # as only the list itself should: it is no secret
    reply = await plane.http.get(f"/api/jobs?cursor={made}", headers=plane.admin(org_id=11))
    assert [job["job_id"] for job in reply.json()["jobs"]] == [102, 101]


@pytest.mark.services
async def test_pages_hold_every_job_once_while_others_come_in_and_end(plane: Plane) -> None:
    await plane.sql(
        "INSERT INTO jobs (job_id, org_id, source, name, state, learned_by) "
        "SELECT n, 1, 'api', 'n', 'completed', 'api' FROM generate_series(1001, 1100) n"
    )
    seen: list[int] = []
    done = trio.Event()

    async def come_and_end() -> None:
        while not done.is_set():
            job = await plane.submit()
            await plane.http.post(f"/api/jobs/{job['job_id']}/cancel", headers=plane.admin())

    async def read_pages() -> None:
        cursor: str | None = None
        while True:
            path = "/api/jobs?limit=7" + ("" if cursor is None else f"&cursor={cursor}")
            page: dict[str, Any] = (await plane.http.get(path, headers=plane.admin())).json()
            seen.extend(job["job_id"] for job in page["jobs"])
            cursor = page["next"]
            if cursor is None:
                break
        done.set()

    await plane.sql("SELECT setval(pg_get_serial_sequence('jobs', 'job_id'), 5000)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_and_end)
        nursery.start_soon(read_pages)

    assert seen == sorted(set(seen), reverse=True)
    assert {*range(1001, 1101), *range(101, 106)} <= set(seen)


@pytest.mark.services
async def test_the_last_page_says_that_it_is_the_last(plane: Plane) -> None:
    exact = (await plane.http.get("/api/jobs?limit=5", headers=plane.admin())).json()
    assert (len(exact["jobs"]), exact["next"]) == (5, None)


HISTORY = """
    INSERT INTO jobs (job_id, org_id, repo_id, source, name, labels, state, conclusion, learned_by, queued_at)
    SELECT 1000 + n, 11 + n % 2, 21 + n % 2, 'github', CASE n WHEN 7 THEN 'rare' ELSE 'build ' || n % 30 END,
           CASE n WHEN 9 THEN '{gpu}'::text[] ELSE '{nimbus}' END,
           CASE n WHEN 11 THEN 'lost' ELSE 'completed' END, CASE n WHEN 13 THEN 'timed_out' ELSE 'success' END,
           CASE n WHEN 15 THEN 'poll' ELSE 'webhook' END, '2026-01-01Z'::timestamptz + n * interval '20 s'
    FROM generate_series(1, 30000) n
"""
# in the order of the statement's parameters; the first eleven are None where nothing is asked for
RARE: dict[str, dict[int, object]] = {
    "state": {3: ["lost", "queued"]},
    "state and label": {3: ["queued"], 5: "nimbus"},
    "state long ago": {3: ["lost"], 10: datetime(2026, 6, 1, tzinfo=UTC)},
    "source": {4: "api"},
    "label": {5: "gpu"},
    "unknown label": {5: "nope"},
    "name": {6: "rare%"},
    "conclusion": {7: "timed_out"},
    "way": {8: "poll"},
    "since": {9: datetime(2026, 11, 1, tzinfo=UTC)},
    "everyday": {3: ["completed"], 4: "github", 5: "nimbus", 7: "success"},
    "org": {1: 12},
    "repo": {2: 22, 11: 1500},
}


@pytest.mark.services
async def test_what_is_rare_is_found_in_a_long_history_without_reading_it(plane: Plane) -> None:
    await plane.sql(HISTORY)
    await plane.sql("SELECT brin_summarize_new_values('jobs_by_time')")  # as autovacuum does
    await plane.sql("ANALYZE")
    queries = load_queries("nimbus.control_plane", "queries", "jobs.sql")
    text = queries["list_jobs"]
    read = {"one job": await rows_read(plane, queries["find_job"], 1500, None)}
    for name, asked in RARE.items():
        few = 3 in asked and "completed" not in str(asked[3])
        args = [asked.get(number) for number in range(1, 12)]
        read[name] = await rows_read(plane, text, *args, 21, few)

    assert {name: rows for name, rows in read.items() if rows > 3000} == {}
