"""What GitHub's REST API is like, held against a control plane and a sim that run (facts 5.2 to 5.6).

test_github_facts.py is the list of all facts and where each is held.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest
import trio

from nimbus.control_plane.demand.installations import list_all
from nimbus.control_plane.demand.poll_rules import PollRules
from nimbus.control_plane.demand.polling import NAME as POLLING
from nimbus.control_plane.demand.polling import Poller
from nimbus.control_plane.demand.redelivery import BATCH, MAX_PAGES, RedeliveryRules, ask_again
from nimbus.control_plane.demand.redelivery import NAME as REDELIVERY
from nimbus.control_plane.demand.webhooks import WORKFLOW_JOB
from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.github.client import Deletion, RunnerScope
from nimbus.control_plane.github.limits import READ_POINTS, WRITE_POINTS, LimitTerms
from nimbus.model.forge import ForgeTrouble, ProblemKind
from nimbus.sim.app_auth import PERMISSIONS
from nimbus.sim.faults import DeliveryFaults, FaultPlan
from nimbus.sim.forge import DAY_S
from nimbus.sim.jobs import Conclusion
from nimbus.sim.workflow import parse_workflow
from tests.forge import APP_ID, INSTALLATION_ID, Sim, app_key, open_sim
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.github_server import Reply, Scripted, open_client, open_scripted
from tests.unit.control_plane.runner_stage import leased, minted, registered, undo

ROOT = Path(__file__).parents[3]
SCOPE = RunnerScope(INSTALLATION_ID, "octo-org", "hello")
REPO_RUNNERS = "/repos/octo-org/hello/actions/runners"
ORG_RUNNERS = "/orgs/octo-org/actions/runners"
JIT = {"name": "a", "runner_group_id": 1, "labels": ["nimbus"]}
ONE = "jobs: {a: {runs-on: [nimbus], steps: [{run: x}]}}"
TWO = "jobs: {a: {runs-on: [nimbus], steps: [{run: x}]}, b: {runs-on: [nimbus], steps: [{run: x}]}}"


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with open_scripted() as running:
        yield running


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    with trio.fail_after(60):
        async with open_sim() as running:
            yield running


# -- 5.2 the App ---------------------------------------------------------------------------------------------------


async def test_the_apps_jwt_is_of_a_minute_ago_and_ends_within_ten_minutes_of_that(scripted: Scripted) -> None:
    scripted.server.on("GET", REPO_RUNNERS, Reply(200, {"total_count": 0, "runners": []}))
    before_s = time.time()
    await scripted.client.list_runners(SCOPE)
    asked = scripted.server.asked[0]
    assert (asked.method, asked.target) == ("POST", f"/app/installations/{INSTALLATION_ID}/access_tokens")
    assert jwt.get_unverified_header(asked.token)["alg"] == "RS256"
    claims = jwt.decode(asked.token, app_key().public_pem, algorithms=["RS256"])
    assert claims["iss"] == APP_ID
    assert 55 <= before_s - claims["iat"] <= 65
    assert 0 < claims["exp"] - claims["iat"] <= 600


@pytest.mark.parametrize(
    ("path", "permission", "another"),
    [
        (REPO_RUNNERS, "administration", "organization_self_hosted_runners"),
        (ORG_RUNNERS, "organization_self_hosted_runners", "administration"),
    ],
)
async def test_runners_want_a_permission_to_write_at_their_own_level(
    sim: Sim, path: str, permission: str, another: str
) -> None:
    for permissions, status in (
        ({permission: "write"}, 201),
        ({permission: "read"}, 403),
        ({another: "write", "actions": "write"}, 403),
    ):
        headers = await sim.token_headers({"permissions": permissions})
        answer = await sim.http.post(f"{path}/generate-jitconfig", headers=headers, json=JIT)
        assert answer.status_code == status, permissions


async def test_runs_and_jobs_are_polled_by_the_permission_to_read_actions(sim: Sim) -> None:
    run = sim.world.forge.start_run(parse_workflow(ONE), "hello")
    root = "/repos/octo-org/hello/actions"
    paths = (f"{root}/runs?status=queued", f"{root}/runs/{run.run_id}/attempts/1/jobs")
    for permissions, status in (({"actions": "read"}, 200), ({"administration": "write"}, 403)):
        headers = await sim.token_headers({"permissions": permissions})
        assert [(await sim.http.get(path, headers=headers)).status_code for path in paths] == [status] * 2


def test_the_page_on_ones_own_app_names_the_permissions_and_events_that_it_needs() -> None:
    page = (ROOT / "docs/github.md").read_text()
    assert set(PERMISSIONS) - {"metadata"} == {"actions", "administration", "organization_self_hosted_runners"}
    assert WORKFLOW_JOB == "workflow_job"
    rows = ("*Administration* | read and write", "*Actions* | read |", "*Self-hosted runners* | read and write")
    for words in (*rows, "*Workflow job*"):
        assert words in page


def test_runners_belong_to_a_repository_or_an_organisation_and_to_no_enterprise() -> None:
    scopes = (SCOPE, RunnerScope(INSTALLATION_ID, "octo-org", None))
    assert [scope.path for scope in scopes] == [REPO_RUNNERS, ORG_RUNNERS]


# -- 5.3 just-in-time runners --------------------------------------------------------------------------------------


async def test_a_mint_names_its_group_its_labels_and_the_usual_work_folder(scripted: Scripted) -> None:
    answer = {"runner": {"id": 7}, "encoded_jit_config": "x"}
    scripted.server.on("POST", f"{REPO_RUNNERS}/generate-jitconfig", Reply(201, answer))
    await scripted.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus", "x64"), 3)
    assert json.loads(scripted.server.asked[-1].body) == {
        "name": "nimbus-1-1",
        "runner_group_id": 3,
        "labels": ["nimbus", "x64"],
        "work_folder": "_work",
    }


async def test_a_runner_has_a_hundred_labels_at_most(sim: Sim) -> None:
    async with open_client(sim.url) as client:
        await client.mint_runner(SCOPE, "most", tuple(f"label-{number}" for number in range(100)), 1)
        with pytest.raises(ForgeTrouble) as caught:
            await client.mint_runner(SCOPE, "more", tuple(f"label-{number}" for number in range(101)), 1)
    assert caught.value.problem.kind is ProblemKind.REFUSED


@pytest.mark.services
async def test_a_runner_has_its_jobs_labels_in_lower_case_none_besides_and_is_given_that_job(
    github: GithubPlane,
) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", labels=["Nimbus", "X64"])
    assert (await github.mint(agent, await github.lease(agent))).status_code == 200
    [runner] = registered(github).values()
    assert sorted(runner.labels) == ["nimbus", "x64"]
    forge = github.sim.world.forge
    run = forge.start_run(parse_workflow("jobs: {a: {runs-on: [X64, Nimbus], steps: [{run: x}]}}"), "hello")
    forge.go_online(runner)
    assert forge.offer(runner) is run.jobs[0]


@pytest.mark.services
async def test_nothing_is_registered_before_a_machine_asks_for_it(github: GithubPlane) -> None:
    """GitHub drops a runner that idles for minutes: the time in which a VM boots must not count."""
    agent, [grant] = await leased(github)
    assert (await github.plane.renew(agent, grant, "booting")).status_code == 200
    assert registered(github) == {}
    assert (await github.mint(agent, grant)).status_code == 200
    assert len(registered(github)) == 1


@pytest.mark.services
async def test_a_config_is_in_no_row_of_the_database(github: GithubPlane) -> None:
    agent, [grant] = await leased(github)
    config = (await github.mint(agent, grant)).json()["env"]["ACTIONS_RUNNER_INPUT_JITCONFIG"]
    tables = await github.plane.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) > 10
    for table in tables:
        # the name is the database's own
        rows = await github.plane.sql(f'SELECT t::text AS line FROM "{table["tablename"]}" t')  # noqa: S608
        assert not any(config in row["line"] for row in rows), table["tablename"]


@pytest.mark.services
async def test_a_runner_serves_whatever_job_github_gives_it_and_is_gone_with_that(github: GithubPlane) -> None:
    forge, agent = github.sim.world.forge, await github.plane.enrol()
    first, _ = forge.start_run(parse_workflow(TWO), "hello").jobs
    await delivered(github, 2)
    for grant in (grants := [await github.lease(agent) for _ in range(2)]):
        assert (await github.mint(agent, grant)).status_code == 200
    runner = registered(github)[await github.name_of(grants[1])]
    forge.go_online(runner)
    assert forge.offer(runner) is first, "though the first machine was made for it"
    forge.accept(runner, first.job_id)
    forge.complete(runner, first.job_id, Conclusion.SUCCESS)
    await delivered(github, 4)
    assert list(registered(github)) == [await github.name_of(grants[0])]
    linked = await github.plane.sql("SELECT machine_id, forge_job_id FROM machines JOIN jobs USING (job_id)")
    assert [tuple(row.values()) for row in linked] == [(grants[1]["machine_id"], first.job_id)]


# -- 5.4 listing and deleting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 409, 422])
async def test_a_runner_that_runs_a_job_is_not_deleted_whatever_the_status_says(
    scripted: Scripted, status: int
) -> None:
    said = 'Runner "nimbus-1-1" is currently running a job and cannot be deleted.'
    scripted.server.on("DELETE", f"{REPO_RUNNERS}/7", Reply(status, {"message": said}))
    assert await scripted.client.delete_runner(SCOPE, 7) is Deletion.BUSY


async def test_a_deletion_that_is_forbidden_for_another_reason_is_a_problem(scripted: Scripted) -> None:
    said = "Resource not accessible by integration"
    scripted.server.on("DELETE", f"{REPO_RUNNERS}/7", Reply(403, {"message": said}))
    with pytest.raises(ForgeTrouble) as caught:
        await scripted.client.delete_runner(SCOPE, 7)
    assert caught.value.problem.kind is ProblemKind.NO_PERMISSION


@pytest.mark.services
async def test_a_job_that_github_gave_up_after_a_day_leaves_no_machine(github: GithubPlane) -> None:
    forge = github.sim.world.forge
    [job] = forge.start_run(parse_workflow(ONE), "hello").jobs
    await delivered(github, 1)
    assert await github.states() == ["queued"]
    forge.now_s = lambda: time.time() + DAY_S + 1.0
    forge.sweep()
    await delivered(github, 2)
    assert job.conclusion is Conclusion.FAILURE
    assert [(row["state"], row["conclusion"]) for row in await github.jobs()] == [("completed", "failure")]
    assert await github.states() == ["cancelled!"]


@pytest.mark.services
async def test_a_job_whose_runner_did_not_accept_within_a_minute_goes_to_another_machines(github: GithubPlane) -> None:
    await minted(github, jobs=2)
    forge, (silent, other) = github.sim.world.forge, registered(github).values()
    for runner in (silent, other):
        forge.go_online(runner)
    [job] = forge.start_run(parse_workflow(ONE), "hello").jobs
    first = job.offered_to
    forge.now_s = lambda: time.time() + 59.0
    forge.sweep()
    assert job.offered_to is first
    forge.now_s = lambda: time.time() + 61.0
    for runner in (silent, other):
        forge.see(runner)
    forge.sweep()
    assert job.offered_to is (other if first is silent else silent)


# -- 5.5 reconciliation --------------------------------------------------------------------------------------------


async def poll_once(github: GithubPlane, poller: Poller) -> int:
    await github.plane.sql("UPDATE repos SET polled_at = NULL")
    async with hold_duty(github.plane.services, POLLING, 60.0) as duty:
        assert duty is not None
        return await poller.poll(duty)
    raise AssertionError("the duty was lost")


@pytest.fixture
async def unheard(github: GithubPlane) -> GithubPlane:
    """Its webhooks never arrive, its repositories are known."""
    github.sim.world.faults.set_plan(FaultPlan(deliveries=DeliveryFaults(unlisted=1.0)))
    async with hold_duty(github.plane.services, "installations", 60.0) as duty:
        assert duty is not None
        await list_all(github.plane.services, github.forge.github, duty)
    return github


def plan_poller(github: GithubPlane) -> Poller:
    return Poller(github.plane.services, github.forge.github, github.forge.demand, PollRules())


@pytest.mark.services
async def test_a_pass_asks_each_repository_for_queued_and_running_runs_and_each_attempt_for_its_jobs(
    unheard: GithubPlane,
) -> None:
    forge = unheard.sim.world.forge
    run = forge.start_run(parse_workflow(TWO), "hello")
    runner = forge.register("octo-org/hello", "theirs", ("nimbus",), 1, "_work")
    forge.go_online(runner)
    forge.accept(runner, run.jobs[0].job_id)
    unheard.sim.world.tally.clear()
    assert await poll_once(unheard, plan_poller(unheard)) == 2
    root = "/repos/<owner>/<repo>/actions"
    asked = {call.route: times for call, times in unheard.sim.world.tally.calls() if not call.is_token}
    assert sorted(asked.values()) == [1, 2]
    assert asked[f"{root}/runs"] == 2
    [jobs] = [route for route in asked if route != f"{root}/runs"]
    assert jobs.startswith(f"{root}/runs/")
    assert "/attempts/" in jobs
    assert await unheard.states() == ["queued"], "the sibling of a running job waits all the same"


@pytest.mark.services
async def test_a_pass_over_what_has_not_changed_costs_nothing_of_the_hour(unheard: GithubPlane) -> None:
    unheard.sim.world.forge.start_run(parse_workflow(TWO), "hello")
    poller, quotas = plan_poller(unheard), []
    for _ in range(3):
        await poll_once(unheard, poller)
        quota = unheard.forge.github.quota(INSTALLATION_ID)
        assert quota is not None
        quotas.append(quota.remaining)
    assert quotas[2] == quotas[1] <= quotas[0]


@pytest.mark.services
async def test_what_was_made_too_much_is_taken_away_again(github: GithubPlane) -> None:
    """Demand is queued jobs less runners that wait: too many cost a while, too few would cost a job."""
    await minted(github, jobs=2)
    await github.tell("completed", 1, conclusion="cancelled")
    assert await undo(github) == (0, 1)
    assert len(registered(github)) == 1
    assert sorted(await github.states()) == ["leased", "leased!"]


@pytest.mark.services
async def test_a_round_of_redelivery_reads_a_hundred_pages_at_most(github: GithubPlane, scripted: Scripted) -> None:
    endless = {"Link": f'<{scripted.server.url}/app/hook/deliveries?per_page=100&cursor=v1_1>; rel="next"'}
    scripted.server.on("GET", "/app/hook/deliveries", Reply(200, [], endless))
    async with hold_duty(github.plane.services, REDELIVERY, 60.0) as duty:
        assert duty is not None
        assert await ask_again(github.plane.services, scripted.client, RedeliveryRules(), duty) == 0
    assert len(scripted.server.asked) == MAX_PAGES == 100
    assert BATCH == 25


# -- 5.6 limits ----------------------------------------------------------------------------------------------------


def test_unless_the_operator_says_otherwise_no_secondary_limit_can_be_reached() -> None:
    terms = LimitTerms()
    assert terms.places <= 100
    assert (READ_POINTS, WRITE_POINTS, terms.points_per_minute) == (1, 5, 900)
    assert terms.penalty_s >= 60.0
    mints_a_minute = terms.points_per_minute // WRITE_POINTS
    assert mints_a_minute == 180
    assert 5 * mints_a_minute <= 1500, "registrations in five minutes, in one repository or organisation"


@pytest.mark.parametrize("limit", [5000, 12_500, 15_000])
async def test_the_hourly_quota_is_whatever_the_headers_say(limit: int) -> None:
    with trio.fail_after(60):
        async with open_sim(rate_limit=limit) as sim, open_client(sim.url) as client:
            await client.list_runners(SCOPE)
            quota = client.quota(INSTALLATION_ID)
            assert quota is not None
            assert (quota.limit, quota.remaining) == (limit, limit - 1)
            answer = await sim.http.get(REPO_RUNNERS, headers=await sim.token_headers())
            told = {name for name in answer.headers if name.lower().startswith("x-ratelimit-")}
            assert {name.lower().removeprefix("x-ratelimit-") for name in told} == {
                "limit", "remaining", "used", "reset", "resource",
            }  # fmt: skip


async def delivered(github: GithubPlane, count: int) -> None:
    """Until GitHub's attempts to deliver have ended, so many in all; then they are processed."""
    while len(github.sim.world.deliveries.newest(1000, None)) < count:  # noqa: ASYNC110 - nothing but a look tells it
        await trio.sleep(0.01)
    await github.drain()
