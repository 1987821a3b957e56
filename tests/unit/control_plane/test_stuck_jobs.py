"""Jobs that could wait for ever: each reason not to make or grant a machine must end, or be told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nimbus.control_plane.demand.admission import meet_demand
from nimbus.control_plane.demand.installations import keep_installation
from nimbus.control_plane.orgs.problems import Task, note_problem
from nimbus.model.forge import Problem, ProblemKind
from tests.forge import INSTALLATION_ID
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

pytestmark = pytest.mark.services
OTHER_REPO: dict[str, Any] = {"id": 602, "name": "other", "full_name": "octo-org/other", "private": True}
GONE = Problem(ProblemKind.NOT_INSTALLED, "Not Found", 3600.0)


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


def days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def sweep(github: GithubPlane) -> int:
    return await meet_demand(github.plane.services, github.forge.demand)


async def install(github: GithubPlane, installation_id: int, *, removed: bool = False) -> None:
    """What an `installation` event says of octo-org."""
    run = github.plane.services.database.run
    await run(keep_installation, installation_id, 501, "octo-org", False, removed)
    if removed:
        await run(note_problem, installation_id, None, GONE)


# --- a gate that opens late ---------------------------------------------------------------------------------------


async def test_a_job_that_is_approved_after_days_gets_its_machine(github: GithubPlane) -> None:
    await github.tell("waiting", created_at=days_ago(2))
    await github.tell("queued", created_at=days_ago(2))
    assert await github.states() == ["queued"]


async def test_a_job_that_is_approved_after_days_gets_its_machine_though_nobody_told_that_it_waited(
    github: GithubPlane,
) -> None:
    await github.tell("queued", created_at=days_ago(2))
    assert await github.states() == ["queued"]


async def test_a_late_word_that_the_job_waited_takes_its_machine_not_away(github: GithubPlane) -> None:
    await github.tell("queued", created_at=days_ago(2))
    await github.tell("waiting", created_at=days_ago(2))
    await sweep(github)
    assert await github.states() == ["queued"]


# --- a pause that belongs to others -------------------------------------------------------------------------------


async def test_machines_that_end_jobless_in_another_repository_keep_no_job_waiting(github: GithubPlane) -> None:
    await github.tell("queued", 1)
    await github.plane.sql("UPDATE machines SET state = 'failed', finished_at = now() - interval '1 hour'")
    await github.tell("queued", 2, repo=OTHER_REPO)
    await github.tell("completed", 2, repo=OTHER_REPO, conclusion="cancelled")
    assert await github.states() == ["failed", "cancelled!"]
    assert await sweep(github) == 1


# --- an App that was removed and installed again ------------------------------------------------------------------


async def test_a_late_event_of_a_removed_installation_is_served_by_the_new_one(github: GithubPlane) -> None:
    await install(github, INSTALLATION_ID, removed=True)
    await install(github, INSTALLATION_ID + 1)
    await github.tell("queued")
    assert [row["installation_id"] for row in await github.machines()] == [INSTALLATION_ID + 1]


async def test_a_late_event_of_a_removed_installation_does_not_end_the_poll_of_its_repository(
    github: GithubPlane,
) -> None:
    await install(github, INSTALLATION_ID + 1)
    await github.tell("queued", 1)
    await github.plane.sql("UPDATE repos SET installation_id = $1", INSTALLATION_ID + 1)
    await install(github, INSTALLATION_ID, removed=True)
    await github.tell("in_progress", 1)
    assert [row["installation_id"] for row in await github.plane.sql("SELECT * FROM repos")] == [INSTALLATION_ID + 1]


async def test_while_the_app_is_removed_no_machine_boots_in_vain_for_another_hour(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    await install(github, INSTALLATION_ID, removed=True)
    await github.plane.sql("UPDATE forge_problems SET retry_at = now() - interval '1 s'")
    grant = await github.lease(agent)
    assert (await github.mint(agent, grant)).status_code == 503
    [problem] = await github.plane.sql(
        "SELECT kind, task, retry_at > now() + interval '30 min' AS holds FROM forge_problems"
    )
    assert dict(problem) == {"kind": "not_installed", "task": Task.ANY, "holds": True}
