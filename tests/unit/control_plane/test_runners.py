"""Runners minted against a live fake GitHub: late, at most once a job, and refused in words that name who must act."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from nimbus.control_plane.demand.demand import DemandRules, RunnerLevel
from nimbus.control_plane.demand.inbox import serve_inbox
from nimbus.control_plane.orgs.problems import Blocked, note_problem, retry_now
from nimbus.control_plane.runners.registrations import Registration, RunnerRules
from nimbus.control_plane.runners.runners import INPUT_PREFIX, mint_patiently, mint_runner
from nimbus.model.forge import Problem, ProblemKind
from nimbus.model.lease import LeaseKey
from nimbus.sim.jobs import Conclusion
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.github import decode_jit_config
from tests.forge import INSTALLATION_ID
from tests.runner_script import needs_busybox, open_script_folder
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.runner_stage import leased, registered, registrar, undo

SUSPENDED = Problem(ProblemKind.SUSPENDED, "This installation has been suspended", 300.0)

pytestmark = pytest.mark.services


@pytest.fixture
async def live(github: GithubPlane) -> AsyncIterator[GithubPlane]:
    """With the inbox at work: what the sim delivers is processed by itself."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_inbox, github.plane.services, github.forge.demand)
        yield github
        nursery.cancel_scope.cancel()


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


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


async def test_a_refusal_names_who_must_act_and_is_not_asked_for_again_before_its_time(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.sim.http.post("/sim/installation", json={"suspended": True})
    for _ in range(2):
        answer = await github.mint(agent, grant)
        assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
        assert "an owner of octo-org must unsuspend it" in answer.json()["message"]
        assert int(answer.headers["Retry-After"]) >= 60
    [problem] = await github.plane.sql("SELECT * FROM forge_problems")
    assert (problem["kind"], problem["scope"], problem["task"]) == ("suspended", "", "any")
    assert await registering_calls(github) == 0


async def test_no_host_is_blamed_for_a_machine_that_github_refused_a_runner(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.sim.http.post("/sim/installation", json={"suspended": True})
    for _ in range(4):  # more than NIMBUS_JOB_MAX_ATTEMPTS
        assert (await github.mint(agent, grant)).status_code == 503
        assert (await github.plane.finish(agent, grant, "host_fault")).json()["state"] == "queued"
        await github.plane.sql("UPDATE forge_problems SET retry_at = clock_timestamp(), probed_at = NULL")
        grant = await github.lease(agent)
    await github.sim.http.post("/sim/installation", json={"suspended": False})
    await github.plane.sql("UPDATE forge_problems SET retry_at = clock_timestamp()")
    assert (await github.mint(agent, grant)).status_code == 200
    assert (await github.plane.finish(agent, grant, "host_fault")).json()["state"] == "queued"
    [machine] = await github.machines()
    assert machine["failures"] == 1  # the host's own


async def test_a_runner_is_minted_as_soon_as_an_owner_has_acted_and_the_problem_is_gone(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    await github.plane.services.database.run(note_problem, INSTALLATION_ID, None, SUSPENDED)
    assert (await github.mint(agent, grant)).status_code == 503
    await github.plane.services.database.run(retry_now, INSTALLATION_ID)
    assert (await github.mint(agent, grant)).status_code == 200
    assert await github.plane.sql("SELECT * FROM forge_problems") == []


async def test_a_refusal_for_one_repository_keeps_no_other_from_a_runner(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", 1)
    first = await github.lease(agent)
    await github.tell("queued", 2, repo={"id": 602, "name": "web", "full_name": "octo-org/web", "private": True})
    second = await github.lease(agent)
    states = {"owner": "octo-org", "repo": "hello", "states": ["runners_disabled"]}
    assert (await github.sim.http.post("/sim/account", json=states)).status_code == 200
    refused = await github.mint(agent, first)
    assert "self-hosted runners are disabled for octo-org/hello" in refused.json()["message"]
    assert (await github.mint(agent, second)).status_code == 200
    [problem] = await github.plane.sql("SELECT * FROM forge_problems")
    assert (problem["scope"], problem["task"]) == ("hello", "register")


async def test_an_agent_waits_out_a_short_limit_instead_of_throwing_its_machine_away(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    limited = Problem(ProblemKind.SECONDARY_LIMIT, "You have exceeded a secondary rate limit", 1.0)
    await github.plane.services.database.run(note_problem, INSTALLATION_ID, None, limited)
    assert (await github.mint(agent, grant)).status_code == 200


async def test_a_runner_of_a_lost_reply_that_github_does_not_list_yet_blocks_its_own_machine_alone(
    github: GithubPlane,
) -> None:
    _, [grant] = await leased(github)
    name = await github.name_of(grant)
    lag = {"runners": {"listed_late": 1.0, "list_lag_s": [600, 600]}}
    assert (await github.sim.http.post("/sim/faults", json=lag)).status_code == 200
    github.sim.world.forge.register("octo-org/hello", name, ("nimbus",), 1, "_work")
    with pytest.raises(Blocked, match="does not list it yet"):
        await mint_runner(registrar(github), "agent-1", LeaseKey(grant["machine_id"], grant["lease_id"], 1))
    assert await github.plane.sql("SELECT * FROM forge_problems") == []
    await github.sim.http.post("/sim/faults", json={})
    await mint_runner(registrar(github), "agent-1", LeaseKey(grant["machine_id"], grant["lease_id"], 1))
    assert list(registered(github)) == [name]


async def test_the_runner_group_is_the_orgs_own_or_the_settings(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url, runners=RunnerRules(group_id=99)) as github:
        agent, [grant] = await leased(github)
        refused = await github.mint(agent, grant)
        assert "runner group" in refused.json()["message"]
        await github.plane.sql("UPDATE orgs SET runner_group_id = 1 WHERE login = 'octo-org'")
        await github.plane.services.database.run(retry_now, INSTALLATION_ID)
        assert (await github.mint(agent, grant)).status_code == 200


async def test_a_machine_of_an_app_that_was_installed_anew_registers_by_the_new_installation(
    github: GithubPlane,
) -> None:
    agent, [grant] = await leased(github)
    await github.plane.sql("UPDATE machines SET installation_id = 5")
    assert (await github.mint(agent, grant)).status_code == 200
    assert [row["installation_id"] for row in await github.machines()] == [INSTALLATION_ID]


async def registering_calls(github: GithubPlane) -> int:
    """How often GitHub has made a runner."""
    stats = (await github.sim.http.get("/sim/stats")).json()
    return sum(installation["minted"] for installation in stats["installations"])


async def test_the_whole_github_line_from_the_sims_webhook_to_a_completed_job(live: GithubPlane) -> None:
    github = live
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
    assert await undo(github) == (1, 0)


@needs_busybox
@pytest.mark.parametrize(("step", "conclusion"), [("echo it works", "success"), ("exit 3", "failure")])
async def test_a_workflow_runs_from_the_signed_webhook_to_its_conclusion_by_the_guests_own_script(
    live: GithubPlane, step: str, conclusion: str
) -> None:
    github = live
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
    assert (await undo(github), registered(github)) == ((1, 0), {})


# --- registration tokens --------------------------------------------------------------------------------------------


@pytest.fixture
async def by_token(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    rules = RunnerRules(registration=Registration.TOKEN)
    async with open_github_plane(database_dsn, redis_url, runners=rules) as github:
        # the guest reaches the sim where the control plane does
        rules = replace(rules, web_url=github.sim.url)
        yield replace(github, forge=replace(github.forge, runners=rules))


async def mint_for_guest(github: GithubPlane, agent_id: str, grant: dict[str, Any]) -> dict[str, str]:
    key = LeaseKey(grant["machine_id"], grant["lease_id"], grant["fence"])
    return dict((await mint_patiently(registrar(github), agent_id, key)).env)


@needs_busybox
async def test_a_guest_registers_by_itself_where_the_operator_says_so_and_runs_its_job(by_token: GithubPlane) -> None:
    github = by_token
    agent = await github.plane.enrol()
    run = github.sim.world.forge.start_run(parse_workflow("jobs: {a: {runs-on: nimbus, steps: [{run: env}]}}"), "hello")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_inbox, github.plane.services, github.forge.demand)
        grant = await github.plane.lease(agent, wait_s=20.0)
        nursery.cancel_scope.cancel()
    assert grant is not None
    env = await mint_for_guest(github, "agent-1", grant)
    assert env["ACTIONS_RUNNER_INPUT_URL"] == f"{github.sim.url}/octo-org/hello"
    with open_script_folder() as script:
        ended = await script.run("", **env)
    assert (ended.status, run.conclusion) == (0, "success"), ended.err
    assert env["ACTIONS_RUNNER_INPUT_TOKEN"] not in ended.out
    runner = run.jobs[0].runner
    assert runner is not None
    assert runner.name == await github.name_of(grant)


async def test_one_registration_token_serves_every_guest_of_a_scope(by_token: GithubPlane) -> None:
    _, grants = await leased(by_token, jobs=3)
    envs = [await mint_for_guest(by_token, "agent-1", grant) for grant in grants]
    assert len({env["ACTIONS_RUNNER_INPUT_TOKEN"] for env in envs}) == 1
    assert len({env["ACTIONS_RUNNER_INPUT_NAME"] for env in envs}) == 3


async def test_a_runner_that_registered_by_token_is_found_by_its_name_when_nobody_needs_it(
    by_token: GithubPlane,
) -> None:
    _, [grant] = await leased(by_token)
    env = await mint_for_guest(by_token, "agent-1", grant)
    by_token.sim.world.forge.register("octo-org/hello", env["ACTIONS_RUNNER_INPUT_NAME"], ("nimbus",), 1, "_work")
    await by_token.tell("completed", conclusion="cancelled")
    assert await undo(by_token) == (0, 1)
    assert (registered(by_token), await by_token.states()) == ({}, ["leased!"])


async def test_by_token_no_runner_joins_another_group_than_the_default(by_token: GithubPlane) -> None:
    _, [grant] = await leased(by_token)
    await by_token.plane.sql("UPDATE orgs SET runner_group_id = 4")
    with pytest.raises(Blocked, match="default group"):
        await mint_for_guest(by_token, "agent-1", grant)


@needs_busybox
async def test_a_guest_whose_registration_token_is_refused_says_so_and_ends(by_token: GithubPlane) -> None:
    told = {"TOKEN": "AFORGED", "URL": f"{by_token.sim.url}/octo-org/hello", "NAME": "nimbus-x", "LABELS": "nimbus"}
    with open_script_folder() as script:
        ended = await script.run("", **{f"{INPUT_PREFIX}{name}": value for name, value in told.items()})
    assert (ended.status, registered(by_token)) == (1, {})
    assert f"{by_token.sim.url} does not register this runner" in ended.err
