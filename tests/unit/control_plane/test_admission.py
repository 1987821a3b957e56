"""GitHub's jobs and their org's budget: none is lost, twice or out of turn, and no interval holds too many."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from nimbus.control_plane.demand.admission import admit, admit_due, meet_demand, serve_admission
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.demand.inbox import serve_inbox
from nimbus.control_plane.services import JobRules
from nimbus.runtime.limiter import WithoutRedis
from tests.services import RedisServer
from tests.unit.control_plane.github_plane import GithubPlane, job_event, open_github_plane

pytestmark = pytest.mark.services

RUNNER: dict[str, Any] = {"runner_id": 7, "started_at": "2026-11-21T08:00:09Z"}
SLOW = DemandRules(sweep_s=3600)  # so that only the timer can be who does it
# the most machine requests that any interval of that length held, ended by one of them
MOST = """
SELECT max(count) AS most FROM (
    SELECT (SELECT count(*) FROM machines b
            WHERE b.created_at > a.created_at - make_interval(secs => $1) AND b.created_at <= a.created_at)
    FROM machines a) each_window
"""
# whether a job was admitted before one that was heard of earlier
OVERTAKEN = """
SELECT coalesce(max(job_id) FILTER (WHERE limited_until IS NULL)
                > min(job_id) FILTER (WHERE limited_until IS NOT NULL), false) AS overtaken
FROM jobs
"""
# so many jobs as the first, as if they had been heard of while no process admitted any
KEEP = """
INSERT INTO jobs (org_id, repo_id, source, forge_job_id, name, labels, state, limited_until, queued_at)
SELECT org_id, repo_id, source, 1000 + n, name, labels, 'queued', clock_timestamp(), clock_timestamp()
FROM jobs, generate_series(1, $2) n WHERE org_id = $1 AND forge_job_id = 1
"""
KEPT = "SELECT count(*) AS kept FROM jobs WHERE limited_until IS NOT NULL"


def few(most: int, interval_s: float = 60.0) -> JobRules:
    return JobRules(rate_limit=most, rate_interval_s=interval_s)


@asynccontextmanager
async def working(*planes: GithubPlane, rules: DemandRules = SLOW) -> AsyncIterator[None]:
    """Inbox and timer of each of them at work."""
    async with trio.open_nursery() as nursery:
        for github in planes:
            nursery.start_soon(serve_inbox, github.plane.services, rules)
            nursery.start_soon(serve_admission, github.plane.services, rules)
        yield
        nursery.cancel_scope.cancel()


async def burst(github: GithubPlane, jobs: range, **job: Any) -> None:
    """Deliveries that come together, in any order."""
    places = trio.CapacityLimiter(8)

    async def send(job_id: int) -> None:
        async with places:
            answer = await github.deliver(job_event("queued", job_id, **job))
            assert answer.status_code == 202

    async with trio.open_nursery() as nursery:
        for job_id in jobs:
            nursery.start_soon(send, job_id)


async def count(github: GithubPlane, query: str = "SELECT count(*) FROM machines", *args: object) -> int:
    [row] = await github.plane.sql(query, *args)
    return int(next(iter(dict(row).values())))


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(100):
        while not await check():  # noqa: ASYNC110 -- the database's rows ring no bell here
            await trio.sleep(0.05)


def has(github: GithubPlane, machines: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        assert not await count(github, OVERTAKEN)
        return await count(github) >= machines

    return check


async def test_a_burst_of_webhooks_is_recorded_at_once_and_admitted_in_order_as_fast_as_the_budget_allows(
    database_dsn: str, redis_url: str
) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(50, 2.0)) as github, working(github):
        await burst(github, range(1, 301))
        await until(has(github, 300))
        assert await count(github, MOST, 2.0) <= 50
        assert (await count(github), await count(github, KEPT)) == (300, 0)
        assert {job["state"] for job in await github.jobs()} == {"queued"}


async def test_two_planes_share_the_budget_of_github_s_jobs(database_dsn: str, redis_url: str) -> None:
    prefix, rules = f"test:{secrets.token_hex(8)}:", few(15, 1.0)
    async with (
        open_github_plane(database_dsn, redis_url, rules=rules, prefix=prefix) as one,
        open_github_plane(database_dsn, redis_url, rules=rules, prefix=prefix) as other,
        working(one, other),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(burst, one, range(1, 41))
            nursery.start_soon(burst, other, range(41, 81))
        await until(has(one, 80))
        assert await count(one, MOST, 1.0) <= 15
        assert await count(one) == 80


async def test_what_is_admitted_late_does_not_meet_the_next_interval_s(database_dsn: str, redis_url: str) -> None:
    prefix, rules = f"test:{secrets.token_hex(8)}:", few(3, 0.5)
    async with (
        open_github_plane(database_dsn, redis_url, rules=rules, prefix=prefix) as slow,
        open_github_plane(database_dsn, redis_url, rules=rules, prefix=prefix) as quick,
    ):
        for job_id in range(1, 4):
            await slow.tell("queued", job_id)
        [org] = await slow.plane.sql("SELECT org_id FROM orgs WHERE login = 'octo-org'")
        await slow.plane.sql(KEEP, org["org_id"], 12)
        await trio.sleep(0.6)
        async with trio.open_nursery() as nursery:
            for _ in range(4):  # all connections of its pool
                nursery.start_soon(slow.plane.sql, "SELECT pg_sleep(1.5)")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(admit, slow.plane.services, SLOW, org["org_id"], 3)
            async with working(quick):
                await until(has(quick, 12))
        assert await count(quick, MOST, 0.5) <= 3


async def test_without_redis_one_plane_keeps_to_the_limit_by_itself(
    database_dsn: str, redis_server: RedisServer
) -> None:
    async with open_github_plane(database_dsn, redis_server.url, rules=few(20, 1.0)) as github, working(github):
        await burst(github, range(1, 31))
        redis_server.stop()
        await burst(github, range(31, 61))
        await until(has(github, 60))
        assert await count(github, MOST, 1.0) <= 20


async def test_without_redis_all_are_admitted_at_once_where_that_was_chosen(
    database_dsn: str, redis_server: RedisServer
) -> None:
    what: dict[str, Any] = {"rules": few(5), "without_redis": WithoutRedis.ALLOW}
    async with open_github_plane(database_dsn, redis_server.url, **what) as github, working(github):
        redis_server.stop()
        await burst(github, range(1, 31))
        await until(has(github, 30))


async def test_without_redis_all_are_kept_until_it_is_back_where_that_was_chosen(
    database_dsn: str, redis_server: RedisServer
) -> None:
    what: dict[str, Any] = {"rules": few(20, 1.0), "without_redis": WithoutRedis.REFUSE}
    async with open_github_plane(database_dsn, redis_server.url, **what) as github, working(github):

        async def recorded() -> bool:
            return len(await github.jobs()) == 30

        redis_server.stop()
        await burst(github, range(1, 31))
        await until(recorded)
        assert (await count(github), await count(github, KEPT)) == (0, 30)
        redis_server.start()
        await until(has(github, 30))
        assert await count(github, MOST, 1.0) <= 20


async def test_kept_jobs_are_admitted_after_a_restart(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(2, 3600.0)) as github:
        await burst(github, range(1, 6))
        await github.drain()
        assert (await count(github), await count(github, KEPT)) == (2, 3)
    async with open_github_plane(database_dsn, redis_url, rules=few(2, 0.5)) as github, working(github):
        await until(has(github, 5))


async def test_a_turn_that_was_told_by_a_clock_that_ran_ahead_is_not_waited_for(
    database_dsn: str, redis_url: str
) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(2)) as github:
        for job_id in range(1, 4):
            await github.tell("queued", job_id)
        await github.plane.sql(
            "UPDATE jobs SET limited_until = clock_timestamp() + interval '9 hours' WHERE limited_until IS NOT NULL"
        )
        assert await admit_due(github.plane.services, SLOW) == 0
    async with open_github_plane(database_dsn, redis_url, rules=few(3)) as github:
        assert await admit_due(github.plane.services, SLOW) == 1
        assert await count(github, KEPT) == 0


async def test_a_job_says_when_its_turn_comes(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(2, 60.0)) as github:
        for job_id in range(1, 6):
            await github.tell("queued", job_id)
        await admit_due(github.plane.services, SLOW)
        due = await github.plane.sql(
            "SELECT extract(epoch FROM limited_until - clock_timestamp())::float8 AS due_s FROM jobs ORDER BY job_id"
        )
    assert [row["due_s"] is None for row in due] == [True, True, False, False, False]
    third, fourth, fifth = (row["due_s"] for row in due[2:])
    assert 0 < third <= 60
    assert (round(fourth - third), round(fifth - third)) == (30, 60)


async def test_what_github_tells_again_or_late_takes_nothing_of_the_budget(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(2)) as github:
        await github.tell("queued", 1)
        for _ in range(4):
            await github.tell("queued", 1)
        await github.tell("completed", 1, conclusion="cancelled")
        await github.tell("queued", 1)
        await github.tell("queued", 2)
        assert [job["limited_until"] for job in await github.jobs()] == [None, None]
        await github.tell("queued", 3)
        assert await count(github, KEPT) == 1


async def test_a_job_that_github_ends_while_it_is_kept_takes_nobody_s_place(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(1, 1.0)) as github:
        for job_id in (1, 2, 3):
            await github.tell("queued", job_id)
        await github.tell("completed", 2, conclusion="cancelled")
        await trio.sleep(1.0)
        assert await meet_demand(github.plane.services, SLOW) == 1
        assert [job["limited_until"] for job in await github.jobs()] == [None, None, None]


async def test_a_kept_job_that_takes_anothers_runner_leaves_that_one_to_wait(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(1)) as github:
        await github.tell("queued", 1)
        await github.tell("queued", 2)
        agent = await github.plane.enrol()
        grant = await github.lease(agent)
        assert (await github.mint(agent, grant)).status_code == 200
        await github.tell("in_progress", 2, runner_name=await github.name_of(grant), **RUNNER)
        first, second = await github.jobs()
        assert (first["limited_until"] is None, second["limited_until"] is None) == (False, True)
        assert await meet_demand(github.plane.services, SLOW) == 0
        assert await count(github) == 1


async def test_a_gate_that_opens_asks_for_the_budget_then(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(1, 60)) as github:
        await github.tell("waiting", 1)
        await github.tell("queued", 2)
        assert await count(github) == 1
        await github.tell("queued", 1)
        assert (await count(github), await count(github, KEPT)) == (1, 1)


async def test_submissions_and_github_s_jobs_share_one_budget_and_one_count_of_refusals(
    database_dsn: str, redis_url: str
) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(3)) as github:
        await github.tell("queued", 1)
        [org] = await github.plane.sql("SELECT org_id FROM orgs WHERE login = 'octo-org'")
        await github.plane.submit(org_id=org["org_id"])
        await github.tell("queued", 2)
        refused = await github.plane.submit(expect=429, org_id=org["org_id"])
        await github.tell("queued", 3)
        metrics = await github.plane.http.get("/metrics")

    assert refused["error"] == "rate_limited"
    assert "nimbus_control_plane_org_rate_limits_hit 2.0" in metrics.text


async def test_one_orgs_flood_leaves_anothers_budget_alone(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, rules=few(2)) as github:
        await burst(github, range(1, 8))
        await github.drain()
        other = {"id": 777, "login": "other-org"}
        repo = {"id": 888, "name": "r", "full_name": "other-org/r", "private": True}
        await github.tell("queued", 99, owner=other, repo=repo)
        assert (await github.jobs())[-1]["limited_until"] is None
