"""Runner registrations against a live fake GitHub: minted late, replaced, undone, never taken from under a job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from nimbus.control_plane.demand import DemandRules, RunnerLevel
from nimbus.control_plane.runners import deregister_ended, release_idle
from nimbus.sim.jobs import Conclusion, Runner
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.github import decode_jit_config
from tests.runner_script import needs_busybox, open_script_folder
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

pytestmark = pytest.mark.services


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


def registered(github: GithubPlane) -> dict[str, Runner]:
    return {runner.name: runner for runner in github.sim.world.forge.runners.values()}


async def leased(github: GithubPlane, jobs: int = 1) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """An agent that holds a machine for each of so many queued jobs."""
    agent = await github.plane.enrol()
    for job_id in range(1, jobs + 1):
        await github.tell("queued", job_id)
    return agent, [await github.lease(agent) for _ in range(jobs)]


async def sweep(github: GithubPlane) -> tuple[int, int]:
    services, forge = github.plane.services, github.forge
    ended = await deregister_ended(services, forge.github, forge.demand)
    return ended, await release_idle(services, forge.github, forge.demand)


async def test_the_holder_of_a_lease_gets_a_jit_config_for_its_own_machine(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    reply = await github.mint(agent, grant)
    assert reply.status_code == 200
    name = await github.name_of(grant)
    assert (reply.json()["runner_name"], reply.json()["argv"]) == (name, ["/usr/local/bin/nimbus-runner"])
    files = decode_jit_config(reply.json()["env"]["ACTIONS_RUNNER_INPUT_JITCONFIG"])
    assert json.loads(files[".runner"])["agentName"] == name
    runner = registered(github)[name]
    assert (runner.scope, runner.labels) == ("octo-org/hello", ("nimbus",))
    [machine] = await github.machines()
    assert (machine["runner_name"], machine["runner_id"]) == (name, runner.runner_id)


async def test_runners_register_at_the_organisation_where_the_operator_says_so(
    database_dsn: str, redis_url: str
) -> None:
    rules = DemandRules(level=RunnerLevel.ORG)
    async with open_github_plane(database_dsn, redis_url, demand=rules) as github:
        agent, [grant] = await leased(github)
        assert (await github.mint(agent, grant)).status_code == 200
        assert [runner.scope for runner in registered(github).values()] == ["octo-org"]


async def test_a_reply_that_was_lost_is_asked_for_again_and_leaves_one_runner(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    first = (await github.mint(agent, grant)).json()
    second = (await github.mint(agent, grant)).json()
    assert first["runner_name"] == second["runner_name"]
    assert first["env"] != second["env"]
    [runner] = registered(github).values()
    assert (await github.machines())[0]["runner_id"] == runner.runner_id


async def test_a_lease_that_has_ended_gets_no_runner(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    stranger = await github.plane.enrol("agent-2")
    assert (await github.mint(stranger, grant)).json()["error"] == "fenced"
    assert (await github.mint(agent, grant | {"fence": 2})).json()["error"] == "fenced"
    await github.plane.pass_deadlines()
    answer = await github.mint(agent, grant)
    assert (answer.status_code, answer.json()["error"]) == (409, "fenced")
    assert registered(github) == {}


async def test_only_an_agents_token_mints(github: GithubPlane) -> None:
    _, [grant] = await leased(github)
    for headers in ({}, github.plane.admin()):
        assert (await github.mint(headers, grant)).status_code == 401


async def test_a_machine_whose_job_was_cancelled_is_told_that_it_is_unneeded(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.tell("completed", conclusion="cancelled")
    answer = await github.mint(agent, grant)
    assert (answer.status_code, answer.json()["error"]) == (410, "unneeded")
    assert registered(github) == {}
    assert (await github.plane.finish(agent, grant, "cancelled")).json()["state"] == "cancelled"


async def test_only_as_many_runners_as_queued_jobs_are_minted(github: GithubPlane) -> None:
    agent, [first, second] = await leased(github, jobs=2)
    assert (await github.mint(agent, first)).status_code == 200
    # the event that cancelled the second job cancelled no machine: it was lost, and is told only now
    await github.plane.sql("UPDATE jobs SET state = 'completed' WHERE forge_job_id = 2")
    assert (await github.mint(agent, second)).status_code == 410
    assert await github.states() == ["leased", "leased!"]


async def test_a_command_machine_has_no_runner(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.plane.submit()
    grant = await github.lease(agent)
    assert (await github.mint(agent, grant)).status_code == 400


async def test_a_runner_is_deregistered_when_its_machine_fails(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.mint(agent, grant)
    assert await sweep(github) == (0, 0)
    await github.plane.finish(agent, grant, "host_fault", cause="no room")
    assert await sweep(github) == (1, 0)
    assert registered(github) == {}
    assert (await github.machines())[0]["runner_id"] is None


async def test_a_runner_is_deregistered_when_its_lease_expires(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.mint(agent, grant)
    await github.plane.pass_deadlines()
    assert await sweep(github) == (1, 0)
    assert registered(github) == {}


async def test_a_runner_that_github_removed_already_is_a_success(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.mint(agent, grant)
    github.sim.world.forge.runners.clear()
    await github.plane.finish(agent, grant, "host_fault")
    assert await sweep(github) == (1, 0)
    assert (await github.machines())[0]["runner_id"] is None


async def test_a_runner_whose_id_was_never_learned_is_found_by_its_name(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.mint(agent, grant)
    # what a crash between GitHub's answer and our commit leaves behind
    await github.plane.sql("UPDATE machines SET runner_id = 0")
    await github.plane.finish(agent, grant, "host_fault")
    assert await sweep(github) == (1, 0)
    assert registered(github) == {}


async def test_a_busy_runner_is_left_alone_and_asked_about_again(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.mint(agent, grant)
    [runner] = registered(github).values()
    run = github.sim.world.forge.start_run(parse_workflow("jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}"), "hello")
    github.sim.world.forge.go_online(runner)
    github.sim.world.forge.accept(runner, run.jobs[0].job_id)
    await github.plane.sql("UPDATE machines SET state = 'lost', deadline = NULL")
    assert await sweep(github) == (0, 0)
    assert list(registered(github)) == [runner.name]
    assert (await github.machines())[0]["runner_id"] == runner.runner_id
    github.sim.world.forge.complete(runner, run.jobs[0].job_id, Conclusion.SUCCESS)
    assert await sweep(github) == (1, 0)


async def test_an_idle_runner_that_no_job_needs_is_deregistered_and_then_its_machine_is_cancelled(
    github: GithubPlane,
) -> None:
    agent, [first, second] = await leased(github, jobs=2)
    for grant in (first, second):
        await github.mint(agent, grant)
    await github.tell("completed", 1, conclusion="cancelled")
    assert await github.states() == ["leased", "leased"]
    assert await sweep(github) == (0, 1)
    assert await github.states() == ["leased", "leased!"]
    assert list(registered(github)) == [await github.name_of(first)]


async def test_an_idle_looking_runner_that_took_a_job_a_moment_ago_keeps_its_machine(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.mint(agent, grant)
    [runner] = registered(github).values()
    run = github.sim.world.forge.start_run(parse_workflow("jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}"), "hello")
    github.sim.world.forge.go_online(runner)
    github.sim.world.forge.accept(runner, run.jobs[0].job_id)
    await github.plane.sql("UPDATE jobs SET state = 'completed'")
    assert await sweep(github) == (0, 0)
    assert (await github.states())[0] == "leased"


async def test_githubs_refusals_reach_the_agent_as_unavailable_with_a_reason(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.sim.http.post("/sim/installation", json={"suspended": True})
    answer = await github.mint(agent, grant)
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    assert "suspended" in answer.json()["message"]
    assert int(answer.headers["Retry-After"]) >= 60
    await github.sim.http.post("/sim/installation", json={"suspended": False})
    assert (await github.mint(agent, grant)).status_code == 200


async def test_one_orgs_trouble_does_not_keep_anothers_runners_registered(github: GithubPlane) -> None:
    agent, grants = await leased(github, jobs=2)
    for grant in grants:
        await github.mint(agent, grant)
        await github.plane.finish(agent, grant, "host_fault")
    await github.plane.sql("UPDATE machines SET installation_id = 999 WHERE machine_id = $1", grants[0]["machine_id"])
    assert await sweep(github) == (1, 0)
    assert list(registered(github)) == [await github.name_of(grants[0])]


async def test_the_whole_github_line_from_the_sims_webhook_to_a_completed_job(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    forge = github.sim.world.forge
    run = forge.start_run(parse_workflow("jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}"), "hello")
    grant = await github.plane.lease(agent, wait_s=20.0)
    assert grant is not None
    await github.mint(agent, grant)
    [runner] = registered(github).values()
    forge.go_online(runner)
    forge.accept(runner, run.jobs[0].job_id)
    forge.complete(runner, run.jobs[0].job_id, Conclusion.SUCCESS)
    while [job["state"] for job in await github.jobs()] != ["completed"]:  # noqa: ASYNC110 -- another process's rows
        await trio.sleep(0.05)
    [job], [machine] = await github.jobs(), await github.machines()
    assert (job["forge_job_id"], job["conclusion"], machine["job_id"]) == (run.jobs[0].job_id, "success", job["job_id"])
    assert (await github.plane.finish(agent, grant)).json()["state"] == "done"
    assert await sweep(github) == (1, 0)


@needs_busybox
@pytest.mark.parametrize(("step", "conclusion"), [("echo it works", "success"), ("exit 3", "failure")])
async def test_a_workflow_runs_from_the_signed_webhook_to_its_conclusion_by_the_guests_own_script(
    github: GithubPlane, step: str, conclusion: str
) -> None:
    agent = await github.plane.enrol()
    workflow = f"jobs: {{a: {{runs-on: nimbus, steps: [{{run: {step}}}]}}}}"
    run = github.sim.world.forge.start_run(parse_workflow(workflow), "hello")
    grant = await github.plane.lease(agent, wait_s=20.0)
    assert grant is not None
    config = (await github.mint(agent, grant)).json()["env"]["ACTIONS_RUNNER_INPUT_JITCONFIG"]
    with open_script_folder() as script:
        ended = await script.run(config)
    assert ended.status == 0, ended.err
    assert run.conclusion == conclusion
    while [job["conclusion"] for job in await github.jobs()] != [conclusion]:  # noqa: ASYNC110 -- as above
        await trio.sleep(0.05)
    [job], [machine] = await github.jobs(), await github.machines()
    assert (machine["job_id"], job["runner_name"]) == (job["job_id"], machine["runner_name"])
    assert (await github.plane.finish(agent, grant)).json()["state"] == "done"
    assert (await sweep(github), registered(github)) == ((1, 0), {})
