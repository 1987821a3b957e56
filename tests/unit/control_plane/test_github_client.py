"""The GitHub client against a live fake GitHub, and against answers that the fake never gives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import jwt
import pytest
import trio

from nimbus.control_plane.github.client import AppCredentials, Deletion, GithubClient, RunnerScope, open_github
from nimbus.model.errors import Conflict, NotFound, Refused
from nimbus.model.forge import ForgeTrouble, ProblemKind
from nimbus.model.job import JobState
from nimbus.wire.github import ForgeRepo
from nimbus.wire.githubrest import RunSeen
from tests.forge import APP_ID, INSTALLATION_ID, Sim, app_key, open_sim
from tests.unit.control_plane.github_server import Reply, Scripted, open_client, open_scripted

SCOPE = RunnerScope(INSTALLATION_ID, "octo-org", "hello")
ORG = RunnerScope(INSTALLATION_ID, "octo-org", None)
REPO = ForgeRepo(601, "hello", "octo-org/hello", True, 501, "octo-org")
RUNNERS = "/repos/octo-org/hello/actions/runners"
MINT = f"{RUNNERS}/generate-jitconfig"
NO_RUNNERS = {"total_count": 0, "runners": []}


@dataclass
class Clock:
    """Time as the client sees it."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass(frozen=True)
class Pair:
    """A client, its clock and the sim it speaks to."""

    client: GithubClient
    sim: Sim
    clock: Clock


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    clock = Clock()
    with trio.fail_after(60):
        async with open_sim() as sim, open_client(sim.url, clock=clock) as client:
            yield Pair(client, sim, clock)


# -- against the sim ----------------------------------------------------------------------------------------------


async def test_a_runner_is_minted_found_listed_and_deleted(pair: Pair) -> None:
    runner = await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert runner.config not in repr(runner)
    found = await pair.client.find_runner(SCOPE, "NIMBUS-1-1")
    assert found is not None
    assert (found.runner_id, found.online, found.busy, found.labels) == (runner.runner_id, False, False, ("nimbus",))
    assert await pair.client.find_runner(SCOPE, "nimbus-1") is None
    assert await pair.client.list_runners(SCOPE) == (found,)
    assert await pair.client.delete_runner(SCOPE, runner.runner_id) is Deletion.DELETED
    assert await pair.client.delete_runner(SCOPE, runner.runner_id) is Deletion.ABSENT


async def test_a_taken_name_is_a_conflict(pair: Pair) -> None:
    await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    with pytest.raises(Conflict):
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)


async def test_a_wrong_group_or_account_is_a_problem_with_githubs_words(pair: Pair) -> None:
    with pytest.raises(ForgeTrouble, match="Runner group not found") as missing:
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 99)
    assert missing.value.problem.kind is ProblemKind.GROUP_MISSING
    with pytest.raises(ForgeTrouble, match="not accessible by integration") as forbidden:
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 2)
    assert forbidden.value.problem.kind is ProblemKind.NO_PERMISSION
    with pytest.raises(ForgeTrouble) as elsewhere:
        await pair.client.find_runner(RunnerScope(INSTALLATION_ID, "else", "x/../../y"), "nimbus-1-1")
    assert elsewhere.value.problem.kind is ProblemKind.NOT_INSTALLED


async def test_twenty_calls_at_once_fetch_one_token(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(pair.client.find_runner, SCOPE, f"nimbus-{number}-1")
    assert len(pair.sim.world.auth.tokens) == 1


async def test_a_token_is_renewed_five_minutes_early(pair: Pair) -> None:
    await pair.client.find_runner(SCOPE, "a")
    pair.clock.ahead_s = 3600 - 301
    await pair.client.find_runner(SCOPE, "a")
    assert len(pair.sim.world.auth.tokens) == 1
    # the sim's clock stands where it was, so the App's JWT of a client far ahead is refused: it did ask
    pair.clock.ahead_s = 3600 - 299
    with pytest.raises(ForgeTrouble) as caught:
        await pair.client.find_runner(SCOPE, "a")
    assert caught.value.problem.kind is ProblemKind.APP_KEY


async def test_a_revoked_token_is_replaced_once(pair: Pair) -> None:
    await pair.client.find_runner(SCOPE, "a")
    pair.sim.world.auth.tokens.clear()
    assert await pair.client.find_runner(SCOPE, "a") is None
    assert len(pair.sim.world.auth.tokens) == 1


async def test_an_unknown_installation_is_not_installed(pair: Pair) -> None:
    with pytest.raises(ForgeTrouble) as caught:
        await pair.client.find_runner(RunnerScope(1, "octo-org", "hello"), "a")
    assert caught.value.problem.kind is ProblemKind.NOT_INSTALLED


async def test_an_exhausted_hour_says_how_long_to_wait_and_is_not_asked_about_again() -> None:
    async with open_sim(rate_limit=1) as sim, open_client(sim.url) as client:
        await client.find_runner(SCOPE, "a")
        for _ in range(2):
            with pytest.raises(ForgeTrouble) as caught:
                await client.find_runner(SCOPE, "a")
            assert caught.value.problem.kind is ProblemKind.RATE_LIMIT
            assert 3500 < caught.value.retry_after_s <= 3600
        quota = client.quota(INSTALLATION_ID)
        assert quota is not None
        assert (quota.limit, quota.remaining) == (1, 0)
        assert client.quota(1) is None


# -- against scripted answers -------------------------------------------------------------------------------------


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with open_scripted() as running:
        yield running


async def test_a_key_that_is_none_is_never_quoted() -> None:
    credentials = AppCredentials(APP_ID, "-----BEGIN PRIVATE KEY----- oops")
    assert "oops" not in repr(credentials)
    async with open_github("http://127.0.0.1:1", credentials) as client:
        with pytest.raises(ForgeTrouble) as caught:
            await client.find_runner(SCOPE, "a")
    assert caught.value.problem.kind is ProblemKind.APP_KEY
    assert "oops" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_github_that_is_away_is_an_outage() -> None:
    async with open_client("http://127.0.0.1:1") as client:
        with pytest.raises(ForgeTrouble, match="cannot be reached") as caught:
            await client.find_runner(SCOPE, "a")
    assert caught.value.problem.kind is ProblemKind.OUTAGE


@pytest.mark.parametrize("url", ["", "github.example", "ftp://github.example", "http://"])
async def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(Refused, match="NIMBUS_GITHUB_API_URL"):
        async with open_client(url):
            pytest.fail("opened")


@pytest.mark.parametrize("status", [409, 422])
async def test_either_refusal_to_delete_means_busy(scripted: Scripted, status: int) -> None:
    scripted.server.on("DELETE", f"{RUNNERS}/7", Reply(status))
    assert await scripted.client.delete_runner(SCOPE, 7) is Deletion.BUSY


async def test_deliveries_come_by_page_with_the_cursor_of_the_next(scripted: Scripted) -> None:
    one = {"id": 12, "guid": "0b989ba4-242f-11e5-81e1-c7b6966d2516", "delivered_at": "2026-11-21T08:00:00Z",
           "redelivery": False, "status": "OK", "status_code": 200, "event": "workflow_job", "action": "queued",
           "installation_id": 77}  # fmt: skip
    following = f'<{scripted.server.url}/app/hook/deliveries?per_page=100&cursor=v1_11>; rel="next"'
    scripted.server.on("GET", "/app/hook/deliveries", Reply(200, [one], {"Link": following}), Reply(200, []))
    deliveries, cursor = await scripted.client.list_deliveries(None)
    assert [(each.delivery_id, each.ok, each.installation_id) for each in deliveries] == [(12, True, 77)]
    assert cursor == "v1_11"
    assert await scripted.client.list_deliveries(cursor) == ((), None)
    assert scripted.server.asked[-1].target == "/app/hook/deliveries?per_page=100&cursor=v1_11"
    claims = jwt.decode(scripted.server.asked[-1].token, app_key().public_pem, algorithms=["RS256"])
    assert claims["iss"] == APP_ID


async def test_a_delivery_is_asked_for_again_unless_github_forgot_it(scripted: Scripted) -> None:
    scripted.server.on("POST", "/app/hook/deliveries/12/attempts", Reply(202, {}))
    await scripted.client.redeliver(12)
    with pytest.raises(NotFound):
        await scripted.client.redeliver(13)


async def test_installations_and_their_repositories_are_listed(scripted: Scripted) -> None:
    account = {"id": 501, "login": "octo-org"}
    repo = {"id": 601, "name": "hello", "full_name": "octo-org/hello", "private": True, "owner": account,
            "archived": False, "pushed_at": "2026-11-21T08:00:00Z"}  # fmt: skip
    installations = [
        {"id": 77, "account": account, "suspended_at": None},
        {"id": 78, "account": {"slug": "an-enterprise"}},
    ]
    scripted.server.on("GET", "/app/installations", Reply(200, installations))
    scripted.server.on("GET", "/installation/repositories", Reply(200, {"total_count": 1, "repositories": [repo]}))
    (seen,) = await scripted.client.list_installations()
    assert (seen.installation_id, seen.account_id, seen.login, seen.suspended) == (77, 501, "octo-org", False)
    (found,) = await scripted.client.list_repositories(77)
    assert found.repo == REPO
    assert found.pushed_at is not None


async def test_runs_and_their_jobs_are_listed_as_their_webhooks_would_tell(scripted: Scripted) -> None:
    run = {"id": 10, "run_attempt": 2, "updated_at": "2026-11-21T08:00:00Z"}
    job = {"id": 20, "run_id": 10, "run_attempt": 2, "name": "build", "status": "queued", "labels": ["Nimbus"]}
    runs = "/repos/octo-org/hello/actions/runs"
    scripted.server.on("GET", runs, Reply(200, {"total_count": 1, "workflow_runs": [run]}))
    scripted.server.on("GET", f"{runs}/10/attempts/2/jobs", Reply(200, {"total_count": 1, "jobs": [job]}))
    scripted.server.on("GET", "/repos/octo-org/hello/actions/jobs/20", Reply(200, job | {"status": "completed"}))
    (seen,) = await scripted.client.list_runs(77, "octo-org/hello", "queued")
    assert scripted.server.asked[-1].target == f"{runs}?status=queued&per_page=100"
    (listed,) = await scripted.client.list_jobs(77, REPO, seen)
    assert (listed.told, listed.run_attempt, listed.labels, listed.repo) == (JobState.QUEUED, 2, ("nimbus",), REPO)
    found = await scripted.client.find_job(77, REPO, 20)
    assert found is not None
    assert (found.told, found.installation_id) == (JobState.COMPLETED, 77)
    assert await scripted.client.find_job(77, REPO, 21) is None


async def test_a_repository_that_is_gone_is_not_found(scripted: Scripted) -> None:
    run = RunSeen(10, 1, datetime.now(UTC))
    with pytest.raises(NotFound):
        await scripted.client.list_runs(77, "octo-org/gone", "queued")
    with pytest.raises(NotFound):
        await scripted.client.list_jobs(77, REPO, run)
    for name in ("nothing", "octo-org/..", "/x", "octo-org/"):
        with pytest.raises(Refused):
            await scripted.client.list_runs(77, name, "queued")


async def test_a_registration_token_is_fetched_once_for_its_scope(scripted: Scripted) -> None:
    for path in (RUNNERS, "/orgs/octo-org/actions/runners"):
        token = {"token": f"AABF{len(path)}", "expires_at": "2999-01-01T00:00:00Z"}
        scripted.server.on("POST", f"{path}/registration-token", Reply(201, token))
    first = await scripted.client.registration_token(SCOPE)
    assert await scripted.client.registration_token(SCOPE) == first
    assert first.token not in repr(first)
    assert (await scripted.client.registration_token(ORG)).token != first.token
    assert len(scripted.server.routes()) == 2


async def test_an_enterprise_servers_path_is_kept_before_every_call(scripted: Scripted) -> None:
    scripted.server.on("GET", "/api/v3" + RUNNERS, Reply(200, NO_RUNNERS))
    token = {"token": "ghs_x", "expires_at": "2999-01-01T00:00:00Z"}
    scripted.server.on("POST", "/api/v3/app/installations/77/access_tokens", Reply(201, token))
    async with open_client(f"{scripted.server.url}/api/v3/") as client:
        assert await client.list_runners(SCOPE) == ()
