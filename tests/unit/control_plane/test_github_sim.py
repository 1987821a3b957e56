"""The GitHub client reads all that the sim plays: lists, refusals in GitHub's words, and a bad day of REST calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from nimbus.control_plane.github.client import GithubClient, RunnerScope
from nimbus.control_plane.github.limits import LimitTerms
from nimbus.model.errors import Conflict
from nimbus.model.forge import ForgeTrouble, ProblemKind
from nimbus.model.job import JobState
from tests.forge import INSTALLATION_ID, Sim, open_sim
from tests.unit.control_plane.github_server import open_client

SCOPE = RunnerScope(INSTALLATION_ID, "octo-org", "hello")
WORKFLOW = "jobs: {a: {runs-on: nimbus, steps: [{run: 'true'}]}, b: {runs-on: nimbus, steps: [{run: 'true'}]}}"


@dataclass(frozen=True)
class Pair:
    """A client and the sim it speaks to."""

    client: GithubClient
    sim: Sim

    async def control(self, path: str, **body: object) -> dict[str, Any]:
        answer = await self.sim.http.post(f"/sim/{path}", json=body)
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    async def start(self, owner: str = "octo-org") -> dict[str, Any]:
        answer = await self.sim.http.post(f"/sim/workflows?owner={owner}", content=WORKFLOW)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with open_pair(LimitTerms()) as both:
        yield both


@asynccontextmanager
async def open_pair(terms: LimitTerms) -> AsyncIterator[Pair]:
    with trio.fail_after(240):
        async with open_sim(more_owners=("acme",)) as sim, open_client(sim.url, terms=terms) as client:
            yield Pair(client, sim)


async def test_each_installation_lists_its_own_repositories_runs_and_jobs(pair: Pair) -> None:
    await pair.start()
    theirs = await pair.start("acme")
    ours, other = await pair.client.list_installations()
    assert [(each.login, each.suspended) for each in (ours, other)] == [("octo-org", False), ("acme", False)]
    (repo,) = await pair.client.list_repositories(other.installation_id)
    assert repo.repo.full_name == "acme/hello"
    assert repo.repo.owner_id == other.account_id
    (run,) = await pair.client.list_runs(other.installation_id, "acme/hello", "queued")
    assert run.run_id == theirs["run_id"]
    jobs = await pair.client.list_jobs(other.installation_id, repo.repo, run)
    assert [(job.told, job.labels, job.installation_id) for job in jobs] == [
        (JobState.QUEUED, ("nimbus",), other.installation_id)
    ] * 2
    assert await pair.client.find_job(other.installation_id, repo.repo, jobs[0].forge_job_id) == jobs[0]
    assert await pair.client.find_job(other.installation_id, repo.repo, 10**9) is None


async def test_a_list_that_has_not_changed_costs_no_quota(pair: Pair) -> None:
    await pair.start()
    for _ in range(3):
        await pair.client.list_runs(INSTALLATION_ID, "octo-org/hello", "queued")
    before = pair.client.quota(INSTALLATION_ID)
    for _ in range(5):
        assert len(await pair.client.list_runs(INSTALLATION_ID, "octo-org/hello", "queued")) == 1
    assert pair.client.quota(INSTALLATION_ID) == before
    assert before is not None
    assert before.remaining < before.limit


async def test_more_runners_than_a_page_holds_are_all_listed(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(130):
            nursery.start_soon(pair.client.mint_runner, SCOPE, f"nimbus-{number}-1", ("nimbus",), 1)
    listed = await pair.client.list_runners(SCOPE)
    assert {runner.name for runner in listed} == {f"nimbus-{number}-1" for number in range(130)}


async def test_deliveries_are_listed_page_by_page_and_one_is_asked_for_again(pair: Pair) -> None:
    for _ in range(130):
        await pair.control("ping")
    seen, cursor = await pair.client.list_deliveries(None)
    assert len(seen) == 100
    more, end = await pair.client.list_deliveries(cursor)
    assert (len(more), end) == (30, None)
    ids = [each.delivery_id for each in (*seen, *more)]
    assert ids == sorted(ids, reverse=True), "newest first"
    await pair.client.redeliver(ids[0])


async def test_a_registration_token_comes_once_an_hour(pair: Pair) -> None:
    first = await pair.client.registration_token(SCOPE)
    assert await pair.client.registration_token(SCOPE) == first


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("suspended", ProblemKind.SUSPENDED),
        ("ip_allow_list", ProblemKind.IP_ALLOW_LIST),
        ("actions_disabled", ProblemKind.ACTIONS_DISABLED),
        ("runners_disabled", ProblemKind.RUNNERS_DISABLED),
        ("no_permission", ProblemKind.NO_PERMISSION),
        ("group_full", ProblemKind.GROUP_FULL),
    ],
)
async def test_what_an_account_forbids_is_told_by_its_kind_and_passes_with_it(
    pair: Pair, state: str, kind: ProblemKind
) -> None:
    await pair.control("account", states=[state])
    with pytest.raises(ForgeTrouble) as caught:
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert caught.value.problem.kind is kind
    elsewhere = RunnerScope(INSTALLATION_ID + 1, "acme", "hello")
    await pair.client.mint_runner(elsewhere, "nimbus-2-1", ("nimbus",), 1)
    await pair.control("account", states=[])
    await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)


async def test_an_installation_that_is_gone_is_not_installed(pair: Pair) -> None:
    await pair.client.find_runner(SCOPE, "a")
    await pair.control("installation", owner="octo-org", installed=False)
    with pytest.raises(ForgeTrouble) as caught:
        await pair.client.find_runner(SCOPE, "a")
    assert caught.value.problem.kind is ProblemKind.NOT_INSTALLED


async def register(client: GithubClient, name: str) -> None:
    """As whoever needs a runner does it: what is refused is asked for again when it may be."""
    while True:
        try:
            found = await client.find_runner(SCOPE, name)
            if found is not None:
                await client.delete_runner(SCOPE, found.runner_id)
            await client.mint_runner(SCOPE, name, ("nimbus",), 1)
        except ForgeTrouble as trouble:
            await trio.sleep(min(trouble.retry_after_s, 1.0))
        except Conflict:
            continue
        else:
            return


@pytest.mark.parametrize("places", [1, 20])
async def test_on_a_bad_day_every_runner_is_registered_once(places: int) -> None:
    # short silences: the sim's bad days come often
    async with open_pair(LimitTerms(places=places, penalty_s=0.2)) as pair:
        await pair.control(
            "faults",
            seed=11,
            rest={
                "secondary_limit": 0.03, "secondary_limit_unsaid": 0.03, "too_many": 0.02, "retry_after_s": 1,
                "outage": 0.03, "token_expired": 0.05, "dropped": 0.05, "no_json": 0.02,
            },
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(register, pair.client, f"nimbus-{number}-1")
        struck = (await pair.sim.http.get("/sim/faults")).json()["struck"]
        names = [runner.name for runner in pair.sim.world.forge.runners.values()]
    assert sorted(names) == sorted(f"nimbus-{number}-1" for number in range(30))
    assert len(struck) >= 3, "the day was bad"
    # those under way when a limit is told cannot know of it; with one place there are none
    tellings = sum(struck.get(f"rest.{kind}", 0) for kind in ("secondary_limit", "secondary_limit_unsaid", "too_many"))
    assert struck.get("rest.limit_ignored", 0) <= (places - 1) * tellings
