"""Registrations undone against a live fake GitHub: GitHub first, the machine second, and no job taken from a runner."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimbus.sim.jobs import Conclusion
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.runner_stage import leased, minted, registered, take_job, undo

pytestmark = pytest.mark.services


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def test_a_runner_is_deregistered_when_its_machine_fails(github: GithubPlane) -> None:
    agent, [grant] = await minted(github)
    assert await undo(github) == (0, 0)
    await github.plane.finish(agent, grant, "host_fault", cause="no room")
    assert await undo(github) == (1, 0)
    assert registered(github) == {}
    assert (await github.machines())[0]["runner_id"] is None


async def test_a_runner_is_deregistered_when_its_lease_expires(github: GithubPlane) -> None:
    await minted(github)
    await github.plane.pass_deadlines()
    assert await undo(github) == (1, 0)
    assert registered(github) == {}


async def test_a_runner_that_github_removed_already_is_a_success(github: GithubPlane) -> None:
    agent, [grant] = await minted(github)
    github.sim.world.forge.runners.clear()
    await github.plane.finish(agent, grant, "host_fault")
    assert await undo(github) == (1, 0)
    assert (await github.machines())[0]["runner_id"] is None


async def test_a_runner_whose_id_was_never_learned_is_found_by_its_name(github: GithubPlane) -> None:
    agent, [grant] = await minted(github)
    # what a crash between GitHub's answer and our commit leaves behind
    await github.plane.sql("UPDATE machines SET runner_id = 0")
    await github.plane.finish(agent, grant, "host_fault")
    assert await undo(github) == (1, 0)
    assert registered(github) == {}


async def test_a_busy_runner_is_left_alone_and_asked_about_again(github: GithubPlane) -> None:
    await minted(github)
    [runner] = registered(github).values()
    run = take_job(github, runner)
    await github.plane.sql("UPDATE machines SET state = 'lost', deadline = NULL")
    assert await undo(github) == (0, 0)
    assert list(registered(github)) == [runner.name]
    assert (await github.machines())[0]["runner_id"] == runner.runner_id
    github.sim.world.forge.complete(runner, run.jobs[0].job_id, Conclusion.SUCCESS)
    assert await undo(github) == (1, 0)


async def test_an_idle_runner_that_no_job_needs_is_deregistered_and_then_its_machine_is_cancelled(
    github: GithubPlane,
) -> None:
    agent, [first, second] = await leased(github, jobs=2)
    for grant in (first, second):
        await github.mint(agent, grant)
    await github.tell("completed", 1, conclusion="cancelled")
    assert await github.states() == ["leased", "leased"]
    assert await undo(github) == (0, 1)
    assert await github.states() == ["leased", "leased!"]
    assert list(registered(github)) == [await github.name_of(first)]


async def test_an_idle_looking_runner_that_took_a_job_a_moment_ago_keeps_its_machine(github: GithubPlane) -> None:
    await minted(github)
    [runner] = registered(github).values()
    take_job(github, runner)
    await github.plane.sql("UPDATE jobs SET state = 'completed'")
    assert await undo(github) == (0, 0)
    assert (await github.states())[0] == "leased"


async def test_one_orgs_trouble_does_not_keep_anothers_runners_registered(github: GithubPlane) -> None:
    agent, grants = await leased(github, jobs=2)
    for grant in grants:
        await github.mint(agent, grant)
        await github.plane.finish(agent, grant, "host_fault")
    # the second machine is another org's, whose installation GitHub does not know
    await github.plane.sql("INSERT INTO orgs (org_id, forge, forge_id, login) VALUES (99, 'github', 99, 'other')")
    await github.plane.sql("INSERT INTO installations (installation_id, org_id) VALUES (999, 99)")
    await github.plane.sql("UPDATE machines SET org_id = 99 WHERE machine_id = $1", grants[0]["machine_id"])
    assert await undo(github) == (1, 0)
    assert list(registered(github)) == [await github.name_of(grants[0])]
