"""Failed deliveries asked for again, against a live fake GitHub whose deliveries get lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio
from quart import Response

from nimbus.control_plane.demand.redelivery import (
    MAX_ASKS,
    NAME,
    OVERLAP,
    RedeliveryRules,
    ask_again,
    judge_page,
    plan_start,
)
from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.github.client import AppCredentials, GithubClient, open_github
from nimbus.runtime.serving import build_app, serve_app
from nimbus.sim.faults import DeliveryFaults, FaultPlan
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.githubrest import DeliverySeen
from tests.forge import APP_ID, app_key
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WORKFLOW = parse_workflow("jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}")
LOST = FaultPlan(deliveries=DeliveryFaults(lost=1.0))


def seen(number: int, guid: str, *, ok: bool, event: str = "workflow_job") -> DeliverySeen:
    return DeliverySeen(number, guid, NOW, ok, 200 if ok else 502, event, "queued", 77, redelivery=False)


def test_what_failed_and_never_came_through_is_asked_for_by_its_newest_attempt() -> None:
    judged = judge_page([seen(3, "a", ok=False), seen(2, "b", ok=True), seen(1, "a", ok=False)], frozenset())
    assert [each.delivery_id for each in judged.failed] == [3]
    assert judged.arrived == {"b"}


def test_a_delivery_that_came_through_later_is_not_asked_for_on_this_page_or_an_older_one() -> None:
    newer = judge_page([seen(5, "a", ok=True), seen(4, "b", ok=True), seen(3, "a", ok=False)], frozenset())
    assert newer.failed == ()
    older = judge_page([seen(2, "b", ok=False), seen(1, "c", ok=False)], newer.arrived)
    assert [each.guid for each in older.failed] == ["c"]


def test_events_that_nobody_listens_to_are_not_asked_for() -> None:
    judged = judge_page(
        [
            seen(4, "a", ok=False, event="push"),
            seen(3, "b", ok=False, event="ping"),
            seen(2, "c", ok=False, event="installation"),
            seen(1, "d", ok=False, event="installation_repositories"),
        ],
        frozenset(),
    )
    assert {each.guid for each in judged.failed} == {"c", "d"}


def test_the_first_round_looks_back_over_the_window_and_the_next_over_a_little_more_than_is_new() -> None:
    assert plan_start(None, NOW, 3600.0) == NOW - timedelta(hours=1)
    assert plan_start((NOW - timedelta(minutes=2)).isoformat(), NOW, 3600.0) == NOW - timedelta(minutes=2) - OVERLAP
    assert plan_start((NOW - timedelta(days=30)).isoformat(), NOW, 3600.0) == NOW - timedelta(hours=1)


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def ended(github: GithubPlane, count: int) -> None:
    """Until GitHub has made so many attempts to deliver."""
    while len(github.sim.world.deliveries.newest(1000, None)) < count:  # noqa: ASYNC110 - nothing but a look tells it
        await trio.sleep(0.01)


async def start_lost_runs(github: GithubPlane, runs: int = 1) -> None:
    github.sim.world.faults.set_plan(LOST)
    for _ in range(runs):
        github.sim.world.forge.start_run(WORKFLOW, "hello")
    await ended(github, runs)
    github.sim.world.faults.set_plan(FaultPlan())


async def one_round(github: GithubPlane, client: GithubClient | None = None) -> int:
    services = github.plane.services
    async with hold_duty(services, NAME, 60.0) as duty:
        assert duty is not None
        return await ask_again(services, client or github.forge.github, RedeliveryRules(), duty)
    raise AssertionError("the duty was lost")


async def attempts(github: GithubPlane) -> list[int]:
    return [row["attempts"] for row in await github.plane.sql("SELECT attempts FROM redeliveries")]


async def pass_time(github: GithubPlane) -> None:
    """Let every pause before the next time be over."""
    await github.plane.sql("UPDATE redeliveries SET asked_at = asked_at - interval '1 day'")


@pytest.mark.services
async def test_a_lost_delivery_comes_on_request_and_its_job_says_how_it_was_learned(github: GithubPlane) -> None:
    await start_lost_runs(github, 2)
    assert await github.jobs() == []
    assert await one_round(github) == 2
    await ended(github, 4)
    await github.drain()
    assert [(job["state"], job["learned_by"]) for job in await github.jobs()] == [("queued", "redelivery")] * 2
    assert await one_round(github) == 0
    assert await github.plane.sql("SELECT * FROM missed_deliveries") == []
    asked = github.plane.services.metrics.registry.get_sample_value("nimbus_control_plane_redeliveries_asked")
    assert asked == 2


@pytest.mark.services
async def test_what_lies_in_the_inbox_is_not_asked_for_though_github_was_answered_too_late(github: GithubPlane) -> None:
    github.sim.world.faults.set_plan(FaultPlan(deliveries=DeliveryFaults(answered_late=1.0)))
    github.sim.world.forge.start_run(WORKFLOW, "hello")
    await ended(github, 1)
    assert await one_round(github) == 0
    await github.drain()
    assert [job["learned_by"] for job in await github.jobs()] == ["webhook"]


@pytest.mark.services
async def test_a_delivery_that_fails_again_is_asked_for_later_and_given_up_after_five_times(
    github: GithubPlane,
) -> None:
    await start_lost_runs(github)
    github.sim.world.faults.set_plan(LOST)
    asked = []
    for number in range(MAX_ASKS + 1):
        asked.append(await one_round(github))
        if asked[-1]:
            await ended(github, number + 2)
        assert await one_round(github) == 0  # too early
        await pass_time(github)
    assert asked == [1] * MAX_ASKS + [0]
    assert await attempts(github) == [MAX_ASKS]


@pytest.mark.services
async def test_a_round_lists_no_further_back_than_the_last_one_began(github: GithubPlane) -> None:
    await start_lost_runs(github)
    services = github.plane.services
    async with hold_duty(services, NAME, 60.0) as duty:
        assert duty is not None
        duty.notes = {"watermark": (datetime.now(UTC) + 2 * OVERLAP).isoformat()}
    assert await one_round(github) == 0


@asynccontextmanager
async def open_github_that_redelivers_nothing() -> AsyncIterator[GithubClient]:
    """A GitHub that lists deliveries, and answers every wish for one with an error of its own."""
    app = build_app("half.github", max_body_bytes=1000)

    @app.get("/app/hook/deliveries")
    async def list_deliveries() -> Response:
        await trio.lowlevel.checkpoint()
        return Response("[]", content_type="application/json")

    @app.post("/app/hook/deliveries/<int:delivery_id>/attempts")
    async def redeliver(delivery_id: int) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(f"{delivery_id}", 502)

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve_app, app, ["127.0.0.1:0"], stop)
        async with open_github(urls[0], AppCredentials(APP_ID, app_key().private_pem)) as client:
            yield client
        stop.set()


@pytest.mark.services
async def test_an_outage_while_asking_costs_none_of_the_five_times(github: GithubPlane) -> None:
    await github.plane.sql("INSERT INTO missed_deliveries VALUES ('0b9a6d0e-missed', 1, clock_timestamp())")
    async with open_github_that_redelivers_nothing() as client:
        assert await one_round(github, client=client) == 0
    assert await attempts(github) == [0]
    services = github.plane.services
    assert services.metrics.registry.get_sample_value("nimbus_control_plane_redeliveries_asked") == 0
    await pass_time(github)
    assert await one_round(github) == 1


@pytest.mark.services
async def test_the_end_of_a_job_is_asked_for_before_its_beginning(github: GithubPlane) -> None:
    github.sim.world.faults.set_plan(LOST)
    run = github.sim.world.forge.start_run(WORKFLOW, "hello")
    github.sim.world.forge.cancel(run.jobs[0].job_id)
    await ended(github, 2)
    github.sim.world.faults.set_plan(FaultPlan())
    assert await one_round(github) == 2
    await ended(github, 4)
    actions = [each.action for each in github.sim.world.deliveries.newest(2, None)]
    assert actions == ["queued", "completed"]


@pytest.mark.services
async def test_a_delivery_that_github_has_forgotten_is_not_asked_for_again(github: GithubPlane) -> None:
    await github.plane.sql("INSERT INTO missed_deliveries VALUES ('0b9a6d0e-forgotten', 1, clock_timestamp())")
    assert await one_round(github) == 1
    await pass_time(github)
    assert await one_round(github) == 0
    assert await github.plane.sql("SELECT * FROM missed_deliveries") == []
