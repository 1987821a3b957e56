"""When a job's turn comes: the estimate, and what GET /api/jobs/{id}/wait tells of any of thousands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.control_plane.jobs.jobwait import Pace, estimate_wait
from nimbus.runtime.postgres import load_queries
from tests.unit.control_plane.plane import Plane, open_plane
from tests.unit.control_plane.plans import rows_read

_WAITING = load_queries("nimbus.control_plane", "queries", "waiting.sql")
COUNT = st.integers(0, 10**6)
SECONDS = st.floats(0, 1e9)
PACES = st.builds(Pace, st.just("hosts"), COUNT, SECONDS, SECONDS, COUNT, st.booleans())


@given(PACES, st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_estimate_is_never_negative_and_never_sooner_for_who_stands_further_back(
    pace: Pace, place: int, further: int
) -> None:
    near, far = estimate_wait(place, pace), estimate_wait(place + further, pace)
    if near.seconds is None:
        assert pace.ends == 0 or pace.span_s == 0
    elif far.seconds is not None:
        assert 0 <= near.seconds <= far.seconds


def test_an_estimate_goes_by_what_ended_or_by_what_runs_whichever_is_faster() -> None:
    idle_before = Pace("hosts that fit", ends=2, span_s=900, lengths_s=60, holds=10)
    assert estimate_wait(0, idle_before).seconds == pytest.approx(3)  # ten that take 30 s each
    busy = replace(idle_before, ends=300, lengths_s=9000, holds=0)
    assert estimate_wait(9, busy).seconds == pytest.approx(30)
    assert "a machine ends every 3 s, measured over the last 15 minutes" in estimate_wait(9, busy).basis


def test_nothing_is_estimated_where_nothing_is_known_and_room_now_is_no_wait() -> None:
    unknown = Pace("hosts that fit", ends=0, span_s=900, lengths_s=0, holds=4)
    assert estimate_wait(0, unknown).seconds is None
    assert "no machine of hosts that fit ended within the last 15 minutes" in estimate_wait(0, unknown).basis
    assert estimate_wait(0, replace(unknown, room=True)).seconds == 0
    assert estimate_wait(1, replace(unknown, room=True)).seconds is None


# --- as the API tells it -------------------------------------------------------------------------------------------


async def ask(plane: Plane, job_id: int, **claims: object) -> dict[str, Any]:
    reply = await plane.http.get(f"/api/jobs/{job_id}/wait", headers=plane.admin(**claims))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.services
async def test_a_job_tells_its_place_and_an_estimate_from_what_ended_lately(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        first = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        starting = await ask(plane, first["job_id"])
        await plane.renew(agent, grant)
        running = await ask(plane, first["job_id"])
        waiting = [await plane.submit() for _ in range(3)]
        unknown = await ask(plane, waiting[2]["job_id"])
        await plane.finish(agent, grant)
        ended = await ask(plane, first["job_id"])
        known = [await ask(plane, job["job_id"]) for job in waiting]

    assert (starting["waits"], starting["code"]) == (True, "starting")
    assert (running["waits"], running["code"], running["place"]) == (False, "running", None)
    assert (ended["waits"], ended["code"], ended["estimate_s"]) == (False, "ended", None)
    assert unknown == {
        "job_id": waiting[2]["job_id"], "waits": True, "code": "turn", "place": 3, "length": 3, "ahead": 2,
        "reason": "a free host: place 3 of 3 in the queue of local", "estimate_s": None,
        "basis": "no machine of hosts that fit ended within the last 15 minutes",
    }  # fmt: skip
    assert [(each["place"], each["ahead"]) for each in known] == [(1, 0), (2, 1), (3, 2)]
    estimates = [each["estimate_s"] for each in known]
    assert estimates == sorted(estimates)
    assert estimates[0] > 0


@pytest.mark.services
async def test_other_orgs_before_it_are_counted_and_not_named(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.enrol()
        rows = await plane.sql(
            "INSERT INTO orgs (forge, forge_id, login) VALUES ('github', 1, 'secretive') RETURNING org_id"
        )
        for _ in range(3):
            await plane.submit(org_id=rows[0]["org_id"])
        mine = await plane.submit()
        told = await ask(plane, mine["job_id"], org_id=1)
        hidden = await plane.http.get(f"/api/jobs/{mine['job_id']}/wait", headers=plane.admin(org_id=rows[0]["org_id"]))

    assert (told["place"], told["length"], told["ahead"]) == (1, 1, 1)
    assert told["reason"].endswith("and 1 of other organisations go first")
    assert "secretive" not in str(told)
    assert hidden.status_code == 404


QUEUE = """
    WITH made AS (
        INSERT INTO jobs (org_id, source, name, state, learned_by)
        SELECT 1 + n % 20, 'api', 'n', 'queued', 'api' FROM generate_series(1, 5000) n RETURNING job_id, org_id
    )
    INSERT INTO machines (org_id, kind, job_id, shape, image, command)
    SELECT org_id, 'command', job_id, '{"cpus": 1, "mem_mib": 256, "disk_mib": 2048}', 'base', '{}' FROM made
"""


@pytest.mark.services
async def test_any_of_five_thousand_queued_jobs_is_explained_by_reading_the_queue_once(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.enrol()
        made = "INSERT INTO orgs (forge, forge_id, login) SELECT 'github', n, 'o' || n FROM generate_series(1, 20) n"
        await plane.sql(made)
        await plane.sql(QUEUE)
        await plane.sql("ANALYZE")
        jobs = [row["job_id"] for row in await plane.sql("SELECT job_id FROM jobs ORDER BY job_id")]
        told = [await ask(plane, job_id) for job_id in jobs[::500]]
        read = {
            "waiting_facts": await rows_read(plane, _WAITING["waiting_facts"], [jobs[2500]]),
            "pace": await rows_read(plane, _WAITING["pace"], 300.0, 1, 900.0, 500),
        }

    assert {(each["code"], each["length"]) for each in told} == {("turn", 250)}
    assert len({each["ahead"] for each in told}) == len(told)
    assert read["waiting_facts"] < 1.1 * len(jobs)
    assert read["pace"] < 100
