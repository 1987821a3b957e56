"""Registrations undone against a live fake GitHub: GitHub first, the machine second, and no job taken from a runner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.orgs.problems import retry_now
from nimbus.control_plane.runners.registrations import DUTY, IN_VAIN, Patience, end_overdue, undo_as_one_of_many
from nimbus.sim.jobs import Conclusion
from tests.forge import INSTALLATION_ID
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.runner_stage import minted, registered, registrar, take_job, undo

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
    _, [first, _second] = await minted(github, jobs=2)
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
    agent, grants = await minted(github, jobs=2)
    for grant in grants:
        await github.plane.finish(agent, grant, "host_fault")
    # the second machine is another org's, whose installation GitHub does not know
    await github.plane.sql("INSERT INTO orgs (org_id, forge, forge_id, login) VALUES (99, 'github', 99, 'other')")
    await github.plane.sql("INSERT INTO installations (installation_id, org_id) VALUES (999, 99)")
    await github.plane.sql("UPDATE machines SET org_id = 99 WHERE machine_id = $1", grants[0]["machine_id"])
    assert await undo(github) == (1, 0)
    assert list(registered(github)) == [await github.name_of(grants[0])]


async def test_a_runner_that_waits_in_vain_is_deregistered_and_another_machine_takes_its_place(
    github: GithubPlane,
) -> None:
    await minted(github)
    assert await undo(github) == (0, 0)
    await github.plane.sql("UPDATE machines SET registered_at = registered_at - interval '301 s'")
    assert await undo(github) == (0, 1)
    assert (await github.states(), registered(github)) == (["leased!", "queued"], {})
    [first, _] = await github.machines()
    [told] = await github.plane.sql("SELECT cause FROM machine_events WHERE event = 'ask_cancel'")
    assert (first["wasted_at"] is not None, told["cause"]) == (True, IN_VAIN)


async def test_a_runner_that_seems_to_wait_in_vain_and_is_busy_keeps_its_machine(github: GithubPlane) -> None:
    await minted(github)
    [runner] = registered(github).values()
    take_job(github, runner)
    await github.plane.sql("UPDATE machines SET registered_at = registered_at - interval '1 hour'")
    assert await undo(github) == (0, 0)
    assert (await github.states(), list(registered(github))) == (["leased"], [runner.name])


async def test_a_machine_that_goes_on_long_after_its_job_is_ended_without_a_call_to_github(github: GithubPlane) -> None:
    _, [grant] = await minted(github)
    github.sim.world.forge.runners.clear()
    name = await github.name_of(grant)
    just_now = datetime.now(UTC).isoformat()
    await github.tell("completed", conclusion="success", completed_at=just_now, runner_name=name, runner_id=1)
    assert await end_overdue(registrar(github)) == 0
    await github.plane.sql("UPDATE jobs SET completed_at = completed_at - interval '301 s'")
    assert await end_overdue(registrar(github)) == 1
    assert await github.states() == ["leased!"]
    assert await end_overdue(registrar(github)) == 0


async def test_a_busy_runner_is_not_asked_about_in_the_next_round_whoever_does_it(github: GithubPlane) -> None:
    await minted(github)
    [runner] = registered(github).values()
    take_job(github, runner)
    await github.plane.sql("UPDATE machines SET state = 'lost', deadline = NULL")
    patience = Patience()
    assert await undo(github, patience) == (0, 0)
    github.sim.world.forge.runners.clear()
    recalled = Patience.recall(patience.notes(), patience.pause_s)
    assert await undo(github, recalled) == (0, 0)
    assert await undo(github, Patience.recall({}, patience.pause_s)) == (1, 0)


async def test_what_github_refuses_to_undo_is_kept_as_a_problem_and_not_asked_for_again_before_its_time(
    github: GithubPlane,
) -> None:
    agent, grants = await minted(github, jobs=2)
    for grant in grants:
        await github.plane.finish(agent, grant, "host_fault")
    await github.sim.http.post("/sim/installation", json={"suspended": True})
    assert await undo(github) == (0, 0)
    [problem] = await github.plane.sql("SELECT kind FROM forge_problems")
    assert problem["kind"] == "suspended"
    await github.sim.http.post("/sim/installation", json={"suspended": False})
    assert await undo(github) == (0, 0)
    await github.plane.services.database.run(retry_now, INSTALLATION_ID)
    assert await undo(github) == (2, 0)
    assert await github.plane.sql("SELECT kind FROM forge_problems") == []


async def test_a_registration_that_cannot_be_undone_for_more_than_a_day_is_left_to_github(github: GithubPlane) -> None:
    await minted(github)
    long_ago = "state = 'lost', deadline = NULL, finished_at = clock_timestamp() - interval '2 days'"
    await github.plane.sql(f"UPDATE machines SET {long_ago}")  # noqa: S608 -- a constant
    await github.sim.http.post("/sim/installation", json={"suspended": True})
    assert await undo(github) == (1, 0)
    assert [row["runner_id"] for row in await github.machines()] == [None]


async def test_a_runner_that_github_removed_with_its_job_costs_no_call(github: GithubPlane) -> None:
    agent, [grant] = await minted(github)
    name = await github.name_of(grant)
    await github.tell("completed", conclusion="success", runner_name=name, runner_id=1)
    await github.plane.finish(agent, grant)
    before = (await github.sim.http.get("/sim/stats")).json()["calls"]
    assert await undo(github) == (1, 0)
    assert (await github.sim.http.get("/sim/stats")).json()["calls"] == before


async def test_while_another_process_undoes_this_one_does_not(github: GithubPlane) -> None:
    agent, [grant] = await minted(github)
    await github.plane.finish(agent, grant, "host_fault")
    async with hold_duty(github.plane.services, DUTY, ttl_s=60.0) as duty:
        assert duty is not None
        await undo_as_one_of_many(registrar(github))
        assert len(registered(github)) == 1
    await undo_as_one_of_many(registrar(github))
    assert registered(github) == {}


async def test_a_runner_that_ended_in_good_order_is_looked_for_before_it_is_deleted_and_not_at_once(
    github: GithubPlane,
) -> None:
    agent, [grant] = await minted(github)
    await github.plane.finish(agent, grant)
    assert await undo(github) == (0, 0)
    await github.plane.sql("UPDATE machines SET finished_at = finished_at - interval '31 s'")
    kept = github.sim.world.forge.runners.copy()
    github.sim.world.forge.runners.clear()  # GitHub removed it with its job, of which no webhook told
    assert await undo(github) == (1, 0)
    stats = (await github.sim.http.get("/sim/stats")).json()
    assert sum(each["deletes"] for each in stats["installations"]) == 0
    # while one that is registered yet is deleted
    github.sim.world.forge.runners |= kept
    await github.plane.sql("UPDATE machines SET runner_id = 0")
    assert (await undo(github), registered(github)) == ((1, 0), {})
