"""Runners that jobs of other labels took: the robbed label set gets another, not for ever; and what repair tells."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from nimbus.control_plane.demand.admission import announce, meet_demand
from nimbus.control_plane.demand.demand import DemandRules, Recorded, record_event
from nimbus.model.job import Learned
from nimbus.runtime.postgres import Transaction
from nimbus.wire.github import parse_workflow_job
from tests.unit.control_plane.github_plane import GithubPlane, job_event, open_github_plane

pytestmark = pytest.mark.services
RUNNER: dict[str, Any] = {"runner_id": 7, "started_at": "2026-11-21T08:00:09Z"}
WANTED = ["gpu", "nimbus"]


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def rob(github: GithubPlane, thief: int, **job: Any) -> None:
    """One runner is made for the waiting label set, and a job of other labels takes it."""
    agent = await github.plane.enrol()
    body = {"wait_s": 0.0, "free": {"cpus": 8, "mem_mib": 8192, "slots": 8}, "labels": WANTED}
    grant = (await github.plane.http.post("/api/agents/lease", json=body, headers=agent)).json()
    assert (await github.mint(agent, grant)).status_code == 200
    await github.tell(
        "in_progress", thief, runner_name=await github.name_of(grant), **RUNNER, **{"labels": ["gpu"]} | job
    )


async def queued(github: GithubPlane) -> int:
    return (await github.states()).count("queued")


async def test_a_foreign_job_that_took_our_runner_is_linked_and_the_robbed_set_gets_another(
    github: GithubPlane,
) -> None:
    await github.tell("queued", 1, labels=WANTED)
    await rob(github, 900)
    jobs = {job["forge_job_id"]: job for job in await github.jobs()}
    linked = [row for row in await github.machines() if row["job_id"] is not None]
    assert [row["job_id"] for row in linked] == [jobs[900]["job_id"]]
    assert linked[0]["wasted_at"] is not None
    assert await queued(github) == 1
    await github.tell("completed", 900, labels=["gpu"], conclusion="success", **RUNNER)
    assert (await github.jobs())[-1]["state"] == "completed"


async def test_a_foreign_job_of_another_org_takes_nothing(github: GithubPlane) -> None:
    await github.tell("queued", 1, labels=WANTED)
    await rob(github, 900, owner={"id": 502, "login": "else"})
    assert [job["forge_job_id"] for job in await github.jobs()] == [1]
    assert [row["job_id"] for row in await github.machines()] == [None]


async def test_a_job_of_the_same_labels_robs_nobody(github: GithubPlane) -> None:
    await github.tell("queued", 1, labels=WANTED)
    await rob(github, 2, labels=WANTED)
    assert {row["wasted_at"] for row in await github.machines()} == {None}


async def test_no_more_than_three_runners_replace_stolen_ones_for_a_job_until_the_hour_has_passed(
    github: GithubPlane,
) -> None:
    await github.tell("queued", 1, labels=WANTED)
    for thief in range(900, 903):
        await rob(github, thief)
        assert await queued(github) == 1
    await rob(github, 903)
    services, rules = github.plane.services, github.forge.demand
    assert await queued(github) == 0
    assert await meet_demand(services, rules) == 0
    await github.plane.sql("UPDATE machines SET wasted_at = wasted_at - interval '61 minutes'")
    assert await meet_demand(services, rules) == 1


async def test_more_jobs_of_the_label_set_allow_more_replacements(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, demand=DemandRules(stolen_limit=1)) as github:
        await github.tell("queued", 1, labels=WANTED)
        await rob(github, 900)
        await rob(github, 901)
        assert await queued(github) == 0
        await github.tell("queued", 2, labels=WANTED)
        assert await queued(github) == 2


# --- what repair finds --------------------------------------------------------------------------------------------


async def learn(github: GithubPlane, learned: Learned, action: str, **job: Any) -> Recorded:
    """An event that came by that way."""
    body = job_event(action, **job)

    async def record(transaction: Transaction) -> Recorded | None:
        event = parse_workflow_job(json.dumps(body).encode())
        assert event.told is not None
        return await record_event(transaction, event, event.told, datetime.now(UTC), github.forge.demand, learned)

    recorded = await github.plane.services.database.run(record)
    assert recorded is not None
    return await announce(github.plane.services, recorded, github.forge.demand)


def drift(github: GithubPlane, source: str) -> float:
    value = github.plane.services.metrics.registry.get_sample_value("nimbus_control_plane_drift", {"source": source})
    return value or 0.0


async def test_a_job_that_a_poll_found_is_drift_and_gets_its_machine(github: GithubPlane) -> None:
    recorded = await learn(github, Learned.POLL, "queued")
    assert (recorded.queued, recorded.drift) == (1, Learned.POLL)
    [job] = await github.jobs()
    assert (job["learned_by"], job["repaired_by"]) == ("poll", None)
    assert drift(github, "poll") == 1


async def test_a_step_that_only_a_repair_told_is_shown_and_counted_once(github: GithubPlane) -> None:
    await github.tell("queued")
    assert (await learn(github, Learned.POLL, "queued")).drift is None
    assert (await learn(github, Learned.REDELIVERY, "in_progress", runner_name="theirs")).drift is Learned.REDELIVERY
    assert (await learn(github, Learned.POLL, "in_progress", runner_name="theirs")).drift is None
    await github.tell("in_progress", runner_name="theirs")
    [job] = await github.jobs()
    assert (job["learned_by"], job["repaired_by"], job["state"]) == ("webhook", "redelivery", "in_progress")
    assert (drift(github, "redelivery"), drift(github, "poll")) == (1, 0)
