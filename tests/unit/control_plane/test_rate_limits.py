"""What an org's budget of jobs does to submissions, and an agent's to its tokens: over two planes, without Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
import trio

from nimbus.control_plane.services import JobRules
from nimbus.runtime.limiter import WithoutRedis
from nimbus.wire.tokens import Audience, render_token
from tests.services import RedisServer
from tests.unit.control_plane.plane import Plane, bearer, open_plane

pytestmark = pytest.mark.services

FEW = JobRules(rate_limit=3, rate_interval_s=60)
KEPT = (
    "INSERT INTO jobs (org_id, source, forge_job_id, state, queued_at, limited_until) "
    "SELECT org_id, 'github', 5, 'queued', clock_timestamp(), clock_timestamp() + make_interval(secs => $1) "
    "FROM orgs WHERE forge = 'local'"
)


@asynccontextmanager
async def open_two(dsn: str, redis_url: str, **what: Any) -> AsyncIterator[tuple[Plane, Plane]]:
    """Two control planes of one database and one Redis."""
    prefix = f"test:{time.monotonic_ns()}:"
    async with (
        open_plane(dsn, redis_url, prefix=prefix, **what) as one,
        open_plane(dsn, redis_url, prefix=prefix, **what) as other,
    ):
        yield one, other


async def submit(plane: Plane, **body: object) -> httpx2.Response:
    return await plane.http.post("/api/jobs", json={"argv": ["true"]} | body, headers=plane.admin())


async def enrol(plane: Plane) -> int:
    key = plane.services.access.enrolment_keys[0]
    token = render_token(key, subject="busy", audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=60)
    asked = {"version": "1", "boot_id": "b", "cpus": 1, "mem_mib": 512}
    return (await plane.http.post("/api/agents/enrol", json=asked, headers=bearer(token))).status_code


async def count_jobs(plane: Plane) -> int:
    [row] = await plane.sql("SELECT count(*) AS jobs FROM jobs")
    return int(row["jobs"])


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(60):
        while not await check():  # noqa: ASYNC110 -- another process' clock
            await trio.sleep(0.02)


async def test_two_planes_share_an_orgs_budget(database_dsn: str, redis_url: str) -> None:
    async with open_two(database_dsn, redis_url, rules=FEW) as (one, other):
        statuses = [(await submit(plane)).status_code for plane in (one, other, one, other, one)]
        jobs = await count_jobs(one)

    assert statuses == [201, 201, 201, 429, 429]
    assert jobs == 3


async def test_a_submission_that_came_too_early_passes_when_it_was_told_to_come(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url, rules=JobRules(rate_limit=1, rate_interval_s=2)) as plane:
        await plane.submit()
        refused = await submit(plane)
        await trio.sleep(int(refused.headers["Retry-After"]))
        passed = await submit(plane)

    assert (refused.status_code, passed.status_code) == (429, 201)
    assert 1 <= int(refused.headers["Retry-After"]) <= 2


async def test_a_repeat_takes_nothing_and_is_answered_though_the_budget_is_used_up(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url, rules=FEW) as plane:
        first = await plane.submit(idempotency_key="k")
        for _ in range(5):
            assert (await plane.submit(expect=200, idempotency_key="k"))["job_id"] == first["job_id"]
        await plane.submit()
        await plane.submit()
        assert (await submit(plane)).status_code == 429
        assert (await submit(plane, idempotency_key="k")).status_code == 200


async def test_of_many_with_one_key_at_once_one_takes_of_the_budget(database_dsn: str, redis_url: str) -> None:
    answers: list[int] = []

    async def send(plane: Plane) -> None:
        answers.append((await submit(plane, idempotency_key="k")).status_code)

    async with open_two(database_dsn, redis_url, rules=JobRules(rate_limit=10, rate_interval_s=60)) as both:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(send, both[number % 2])
        free = [(await submit(both[0])).status_code for _ in range(10)]

    assert sorted(answers) == [200] * 7 + [201]
    assert free == [201] * 9 + [429]


async def test_a_submission_that_is_refused_leaves_nothing_and_takes_nothing(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, rules=FEW) as plane:
        wrong: list[dict[str, Any]] = [{"argv": []}, {"org_id": 99999}, {"argv": ["a"], "cpus": 0}]
        for body in wrong:
            assert (await submit(plane, **body)).status_code in {400, 404}
        assert [(await submit(plane)).status_code for _ in range(4)] == [201, 201, 201, 429]
        assert await count_jobs(plane) == 3


async def test_older_jobs_of_the_org_that_are_kept_go_first(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, rules=FEW) as plane:
        await plane.sql(KEPT, 40.0)
        refused = await submit(plane)
        await plane.sql("UPDATE jobs SET limited_until = clock_timestamp()")
        passed = await submit(plane)

    assert (refused.status_code, passed.status_code) == (429, 201)
    assert 30 <= int(refused.headers["Retry-After"]) <= 40


@pytest.mark.parametrize(
    ("mode", "statuses"),
    [
        (WithoutRedis.LOCAL, [201, 201, 201, 429, 429]),
        (WithoutRedis.ALLOW, [201] * 5),
        (WithoutRedis.REFUSE, [503] * 5),
    ],
)
async def test_without_redis_submissions_meet_what_the_operator_chose(
    database_dsn: str, redis_server: RedisServer, mode: WithoutRedis, statuses: list[int]
) -> None:
    async with open_plane(database_dsn, redis_server.url, rules=FEW, without_redis=mode) as plane:
        redis_server.stop()
        answers = [await submit(plane) for _ in range(5)]
        jobs = await count_jobs(plane)
        metrics = await plane.http.get("/metrics")

    assert [answer.status_code for answer in answers] == statuses
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code != 201)
    assert jobs == statuses.count(201)
    assert "nimbus_control_plane_limiter_without_redis 1.0" in metrics.text


async def test_a_refusal_for_want_of_redis_ends_with_its_return(database_dsn: str, redis_server: RedisServer) -> None:
    async def passes() -> bool:
        with suppress(httpx2.HTTPError):
            return (await submit(plane)).status_code == 201
        return False

    async with open_plane(database_dsn, redis_server.url, rules=FEW, without_redis=WithoutRedis.REFUSE) as plane:
        redis_server.stop()
        assert (await submit(plane)).status_code == 503
        redis_server.start()
        await until(passes)
        assert [(await submit(plane)).status_code for _ in range(3)] == [201, 201, 429]


async def test_an_agents_tokens_are_counted_over_all_planes(database_dsn: str, redis_url: str) -> None:
    async with open_two(database_dsn, redis_url) as both:
        statuses = [await enrol(both[number % 2]) for number in range(102)]

    assert statuses == [200] * 100 + [429] * 2


async def test_an_agent_gets_its_token_without_redis_whatever_was_chosen_for_jobs(
    database_dsn: str, redis_server: RedisServer
) -> None:
    async with open_plane(database_dsn, redis_server.url, without_redis=WithoutRedis.REFUSE) as plane:
        redis_server.stop()
        assert await enrol(plane) == 200
