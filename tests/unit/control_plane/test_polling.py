"""Polling against a live fake GitHub that makes no deliveries at all: everything is found by asking."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from quart import Response

from nimbus.control_plane.demand.installations import list_all
from nimbus.control_plane.demand.poll_rules import PollRules
from nimbus.control_plane.demand.polling import NAME, Poller
from nimbus.control_plane.duties import hold_duty
from nimbus.control_plane.github.client import AppCredentials, GithubClient, open_github
from nimbus.runtime.serving import build_app, json_response, serve_app
from nimbus.sim.accounts import Refusal
from nimbus.sim.faults import DeliveryFaults, FaultPlan
from nimbus.sim.jobs import Conclusion, Run, Runner
from nimbus.sim.workflow import parse_workflow
from tests.forge import APP_ID, app_key
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ONE = "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}"
TWO = "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}, b: {runs-on: nimbus, steps: [{run: x}]}}"
FOREIGN = "jobs: {a: {runs-on: ubuntu-latest, steps: [{run: x}]}}"
RULES = PollRules()


class Polled:
    """A control plane to which GitHub sends nothing, and the passes of its poll."""

    def __init__(self, github: GithubPlane, rules: PollRules = RULES) -> None:
        self.github = github
        self.services = github.plane.services
        self.poller = Poller(self.services, github.forge.github, github.forge.demand, rules)
        self.forge = github.sim.world.forge

    def start(self, workflow: str = ONE, repo: str = "hello") -> Run:
        return self.forge.start_run(parse_workflow(workflow), repo)

    def run_on_a_runner(self, run: Run, number: int = 0) -> Runner:
        job = run.jobs[number]
        runner = self.forge.register(f"{self.forge.owner}/{run.repo.name}", f"other-{job.job_id}", ("nimbus",), 1, "_w")
        self.forge.go_online(runner)
        self.forge.accept(runner, job.job_id)
        return runner

    async def list_all(self) -> None:
        async with hold_duty(self.services, "installations", 60.0) as duty:
            assert duty is not None
            await list_all(self.services, self.github.forge.github, duty)

    async def poll(self) -> int:
        """One pass over all repositories, however recently they were looked at."""
        await self.github.plane.sql("UPDATE repos SET polled_at = NULL")
        return await self.poll_due()

    async def poll_due(self) -> int:
        async with hold_duty(self.services, NAME, 60.0) as duty:
            assert duty is not None
            return await self.poller.poll(duty)
        raise AssertionError("the duty was lost")

    async def jobs(self) -> list[tuple[str, str | None, str]]:
        return [(job["state"], job["conclusion"], job["learned_by"]) for job in await self.github.jobs()]

    async def problems(self) -> list[tuple[str, str]]:
        return [(row["scope"], row["kind"]) for row in await self.sql("SELECT * FROM forge_problems")]

    async def sql(self, text: str, *args: object) -> list[Any]:
        return await self.github.plane.sql(text, *args)


@pytest.fixture
async def polled(database_dsn: str, redis_url: str) -> AsyncIterator[Polled]:
    async with open_github_plane(database_dsn, redis_url) as github:
        github.sim.world.faults.set_plan(FaultPlan(deliveries=DeliveryFaults(unlisted=1.0)))
        polled = Polled(github)
        await polled.list_all()
        yield polled


@pytest.mark.services
async def test_a_job_that_no_webhook_told_of_is_found_and_gets_a_machine(polled: Polled) -> None:
    polled.start()
    with polled.services.bell.listen("machines") as ear:
        assert await polled.poll() == 1
        with trio.fail_after(30):
            await ear.wait()
    assert await polled.jobs() == [("queued", None, "poll")]
    assert await polled.github.states() == ["queued"]
    assert await polled.poll() == 0
    assert await polled.github.states() == ["queued"]


@pytest.mark.services
async def test_each_step_of_a_job_is_found_to_its_end(polled: Polled) -> None:
    run = polled.start()
    await polled.poll()
    runner = polled.run_on_a_runner(run)
    assert await polled.poll() == 1
    assert await polled.jobs() == [("in_progress", None, "poll")]
    polled.forge.complete(runner, run.jobs[0].job_id, Conclusion.SUCCESS)
    assert await polled.poll() == 1
    assert await polled.jobs() == [("completed", "success", "poll")]
    assert await polled.poll() == 0


@pytest.mark.services
async def test_a_queued_job_hidden_in_a_run_in_progress_is_found(polled: Polled) -> None:
    run = polled.start(TWO)
    polled.run_on_a_runner(run)
    assert await polled.poll() == 2
    assert sorted(state for state, _, _ in await polled.jobs()) == ["in_progress", "queued"]


@pytest.mark.services
async def test_a_cancelled_job_and_its_run_are_found_to_have_ended(polled: Polled) -> None:
    run = polled.start(TWO)
    await polled.poll()
    for job in run.jobs:
        polled.forge.cancel(job.job_id)
    assert await polled.poll() == 2
    assert [(state, conclusion) for state, conclusion, _ in await polled.jobs()] == [("completed", "cancelled")] * 2
    assert set(await polled.github.states()) == {"cancelled!"}


@pytest.mark.services
async def test_a_job_that_is_not_ours_is_left_alone(polled: Polled) -> None:
    polled.start(FOREIGN)
    assert await polled.poll() == 0
    assert await polled.poll() == 0
    assert await polled.jobs() == []


@pytest.mark.services
async def test_a_job_that_github_knows_no_longer_ends_on_the_second_look(polled: Polled) -> None:
    """Not on the first: GitHub may not have told itself of a new job everywhere."""
    run = polled.start()
    await polled.poll()
    del polled.forge.runs[run.run_id], polled.forge.jobs[run.jobs[0].job_id]
    assert await polled.poll() == 0
    assert await polled.poll() == 1
    assert await polled.jobs() == [("completed", "gone", "poll")]
    assert await polled.github.states() == ["cancelled!"]


@pytest.mark.services
async def test_a_webhook_that_was_faster_is_not_undone_by_the_poll(polled: Polled) -> None:
    run = polled.start()
    await polled.github.tell("in_progress", run.jobs[0].job_id, runner_name="other", runner_id=5)
    assert await polled.poll() == 0
    assert [state for state, _, _ in await polled.jobs()] == ["in_progress"]


@pytest.mark.services
async def test_repositories_are_looked_at_when_they_are_due(polled: Polled) -> None:
    polled.start()
    assert await polled.poll() == 1
    polled.start()
    assert await polled.poll_due() == 0
    await polled.sql("UPDATE repos SET polled_at = polled_at - interval '299 s'")
    assert await polled.poll_due() == 0
    await polled.sql("UPDATE repos SET polled_at = polled_at - interval '2 s'")
    assert await polled.poll_due() == 1


@pytest.mark.services
async def test_a_clock_that_was_set_back_keeps_no_repository_from_its_look(polled: Polled) -> None:
    polled.start()
    assert await polled.poll() == 1
    polled.start()
    await polled.sql("UPDATE repos SET polled_at = polled_at + interval '1 hour'")
    assert await polled.poll_due() == 1


@pytest.mark.services
async def test_an_idle_repository_is_looked_at_seldom_and_an_archived_one_never(polled: Polled) -> None:
    polled.start()
    await polled.sql("UPDATE repos SET active_at = clock_timestamp() - interval '7 hours'")
    await polled.sql("UPDATE repos SET polled_at = clock_timestamp() - interval '600 s'")
    assert await polled.poll_due() == 0
    await polled.sql("UPDATE repos SET archived = true, polled_at = clock_timestamp() - interval '901 s'")
    assert await polled.poll_due() == 0
    await polled.sql("UPDATE repos SET archived = false")
    assert await polled.poll_due() == 1


@pytest.mark.services
async def test_a_repository_that_vanished_stops_the_poll_of_no_other(polled: Polled) -> None:
    polled.start()
    polled.start(repo="second")
    await polled.list_all()
    await polled.sql("UPDATE repos SET name = 'renamed' WHERE name = 'hello'")
    assert await polled.poll() == 1


@pytest.mark.services
async def test_a_refusal_is_kept_until_a_poll_succeeds_and_stops_no_other_repository(polled: Polled) -> None:
    polled.start()
    polled.start(repo="second")
    await polled.list_all()
    account = polled.github.sim.world.accounts.first
    account.refuse("hello", frozenset({Refusal.ACTIONS_DISABLED}))
    assert await polled.poll() == 1
    assert await polled.problems() == [("hello", "actions_disabled")]
    account.refuse("hello", frozenset())
    assert await polled.poll() == 1
    assert await polled.problems() == []


@pytest.mark.services
async def test_a_refusal_of_a_whole_installation_is_asked_about_once(polled: Polled) -> None:
    polled.start()
    account = polled.github.sim.world.accounts.first
    account.refuse("", frozenset({Refusal.IP_ALLOW_LIST}))
    assert await polled.poll() == 0
    tally = polled.github.sim.world.tally
    tally.clear()
    assert await polled.poll() == 0
    assert list(tally.calls()) == []
    assert await polled.problems() == [("", "ip_allow_list")]


@pytest.mark.services
async def test_an_installation_that_refuses_holds_up_no_other(polled: Polled) -> None:
    acme = polled.github.sim.world.accounts.recall("acme", 88)
    acme.forge.start_run(parse_workflow(ONE), "hello")
    polled.start()
    await polled.list_all()
    polled.github.sim.world.accounts.first.refuse("", frozenset({Refusal.IP_ALLOW_LIST}))
    assert await polled.poll() == 1
    [found] = await polled.sql(
        "SELECT login, installation_id FROM jobs JOIN orgs USING (org_id) JOIN repos USING (repo_id)"
    )
    assert tuple(found.values()) == ("acme", 88)


@pytest.mark.services
async def test_nothing_is_polled_by_an_installation_whose_quota_is_down_to_the_reserve(polled: Polled) -> None:
    polled.start()
    rate = polled.github.sim.world.accounts.first.rate
    polled.github.sim.world.tally.clear()
    rate.limit = 2
    assert await polled.poll() == 0
    asked = sum(times for _, times in polled.github.sim.world.tally.calls())
    assert await polled.poll() == 0
    assert sum(times for _, times in polled.github.sim.world.tally.calls()) == asked
    assert await polled.problems() == []  # calls for runners may still have their share


@pytest.mark.services
async def test_runs_beyond_one_pass_are_looked_into_by_the_next(polled: Polled) -> None:
    polled.poller = Poller(
        polled.services, polled.github.forge.github, polled.github.forge.demand, PollRules(max_runs=2)
    )
    for _ in range(5):
        polled.start()
    assert [await polled.poll() for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.services
async def test_a_job_of_an_earlier_attempt_whose_end_was_missed_is_found_to_have_ended(polled: Polled) -> None:
    run = polled.start()
    await polled.poll()
    runner = polled.run_on_a_runner(run)
    await polled.poll()
    polled.forge.complete(runner, run.jobs[0].job_id, Conclusion.FAILURE)
    polled.forge.rerun(run.run_id, failed_only=True)
    assert await polled.poll() == 2
    assert sorted(await polled.jobs()) == [("completed", "failure", "poll"), ("queued", None, "poll")]


@pytest.mark.services
async def test_a_job_at_a_gate_is_known_and_boots_nothing_until_it_is_approved(polled: Polled) -> None:
    gated = (
        "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}, b: {runs-on: nimbus, environment: prod, steps: [{run: x}]}}"
    )
    run = polled.start(gated)
    assert await polled.poll() == 2
    assert sorted(state for state, _, _ in await polled.jobs()) == ["queued", "waiting"]
    assert await polled.github.states() == ["queued"]
    polled.forge.approve(run.jobs[1].job_id)
    assert await polled.poll() == 1
    assert await polled.github.states() == ["queued", "queued"]


@pytest.mark.services
async def test_a_job_that_waited_for_more_than_a_day_where_nobody_can_be_asked_has_ended(polled: Polled) -> None:
    polled.start(TWO)
    await polled.poll()
    await polled.sql("UPDATE jobs SET queued_at = clock_timestamp() - interval '26 hours' WHERE job_id = 1")
    assert await polled.poll() == 0  # it can be asked about, and GitHub says that it waits
    await polled.sql("UPDATE repos SET installation_id = NULL")
    assert await polled.poll() == 1
    assert [(state, conclusion) for state, conclusion, _ in await polled.jobs()] == [
        ("completed", "gone"),
        ("queued", None),
    ]


@pytest.mark.services
async def test_a_job_that_waited_for_more_than_a_day_where_github_refuses_to_be_asked_has_ended(polled: Polled) -> None:
    polled.start()
    await polled.poll()
    polled.github.sim.world.accounts.first.refuse("hello", frozenset({Refusal.ACTIONS_DISABLED}))
    await polled.sql("UPDATE jobs SET queued_at = clock_timestamp() - interval '26 hours'")
    assert await polled.poll() == 0  # it may be a short refusal
    await polled.sql("UPDATE forge_problems SET since = clock_timestamp() - interval '25 hours'")
    assert await polled.poll() == 1
    assert [state for state, _, _ in await polled.jobs()] == ["completed"]


@asynccontextmanager
async def open_github_with_a_broken_repository() -> AsyncIterator[GithubClient]:
    """A GitHub that answers each question about `broken` with an error of its own."""
    app = build_app("broken.github", max_body_bytes=1000)

    @app.post("/app/installations/<int:installation_id>/access_tokens")
    async def mint_token(installation_id: int) -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"token": f"t{installation_id}", "expires_at": "2100-01-01T00:00:00Z"}, 201)

    @app.get("/repos/octo-org/<repo>/actions/runs")
    async def list_runs(repo: str) -> Response:
        await trio.lowlevel.checkpoint()
        return Response("", 502) if repo == "broken" else json_response({"total_count": 0, "workflow_runs": []})

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve_app, app, ["127.0.0.1:0"], stop)
        async with open_github(urls[0], AppCredentials(APP_ID, app_key().private_pem)) as client:
            yield client
        stop.set()


@pytest.mark.services
async def test_a_repository_that_github_always_fails_at_is_not_the_first_each_time(polled: Polled) -> None:
    polled.forge.repo("broken")
    await polled.list_all()
    await polled.sql("UPDATE repos SET active_at = clock_timestamp()")
    await polled.sql("UPDATE repos SET polled_at = clock_timestamp() - interval '1 hour' WHERE name = 'hello'")
    for _ in range(2):
        async with open_github_with_a_broken_repository() as client:
            polled.poller = Poller(polled.services, client, polled.github.forge.demand, RULES)
            await polled.poll_due()
    late = await polled.sql("SELECT name FROM repos WHERE polled_at < clock_timestamp() - interval '1 minute'")
    assert late == []
