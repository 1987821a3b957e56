"""The GitHub client against a live fake GitHub, and against answers that the fake never gives."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from quart import Response, request

from nimbus.control_plane.github_client import AppCredentials, Deletion, GithubClient, RunnerScope, open_github
from nimbus.model.errors import Conflict, NotFound, Refused, Unauthorized, Unavailable
from nimbus.runtime.serving import build_app, serve_app
from tests.forge import APP_ID, INSTALLATION_ID, Sim, app_key, open_sim

SCOPE = RunnerScope(INSTALLATION_ID, "octo-org", "hello")


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
    with trio.fail_after(30):
        async with open_sim() as sim, open_client(sim.url, clock) as client:
            yield Pair(client, sim, clock)


def open_client(url: str, clock: Callable[[], float] = time.time) -> AbstractAsyncContextManager[GithubClient]:
    return open_github(url, AppCredentials(APP_ID, app_key().private_pem), clock)


async def test_a_runner_is_minted_found_and_deleted(pair: Pair) -> None:
    runner = await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert runner.config not in repr(runner)
    assert await pair.client.find_runner(SCOPE, "NIMBUS-1-1") == runner.runner_id
    assert await pair.client.find_runner(SCOPE, "nimbus-1") is None
    assert await pair.client.delete_runner(SCOPE, runner.runner_id) is Deletion.DELETED
    assert await pair.client.delete_runner(SCOPE, runner.runner_id) is Deletion.ABSENT


async def test_a_taken_name_is_a_conflict(pair: Pair) -> None:
    await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    with pytest.raises(Conflict):
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)


async def test_a_wrong_group_or_account_is_refused_with_githubs_words(pair: Pair) -> None:
    with pytest.raises(NotFound, match="Runner group not found"):
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 99)
    with pytest.raises(Unavailable, match="not accessible by integration"):
        await pair.client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 2)
    with pytest.raises(NotFound):
        await pair.client.find_runner(RunnerScope(INSTALLATION_ID, "else", "x/../../y"), "nimbus-1-1")


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
    with pytest.raises(Unauthorized):
        await pair.client.find_runner(SCOPE, "a")


async def test_a_revoked_token_is_replaced_once(pair: Pair) -> None:
    await pair.client.find_runner(SCOPE, "a")
    pair.sim.world.auth.tokens.clear()
    assert await pair.client.find_runner(SCOPE, "a") is None
    assert len(pair.sim.world.auth.tokens) == 1


async def test_an_unknown_installation_is_not_found(pair: Pair) -> None:
    with pytest.raises(NotFound):
        await pair.client.find_runner(RunnerScope(1, "octo-org", "hello"), "a")


async def test_an_exhausted_hour_says_how_long_to_wait() -> None:
    async with open_sim(rate_limit=1) as sim, open_client(sim.url) as client:
        await client.find_runner(SCOPE, "a")
        with pytest.raises(Unavailable) as caught:
            await client.find_runner(SCOPE, "a")
    assert 3500 < caught.value.retry_after_s <= 3600


async def test_a_key_that_is_none_is_never_quoted(pair: Pair) -> None:
    credentials = AppCredentials(APP_ID, "-----BEGIN PRIVATE KEY----- oops")
    assert "oops" not in repr(credentials)
    async with open_github(pair.sim.url, credentials) as client:
        with pytest.raises(Unavailable) as caught:
            await client.find_runner(SCOPE, "a")
    assert "oops" not in str(caught.value)


async def test_a_github_that_is_away_is_unavailable() -> None:
    async with open_client("http://127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await client.find_runner(SCOPE, "a")


# -- answers of the real GitHub, or of what stands before it, that the sim never gives --------------------------


@dataclass
class Script:
    """Answers with what the test wrote, after a good token."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self, path: str) -> Response:
        await request.get_data()
        if path.endswith("/access_tokens"):
            token = {"token": "ghs_x", "expires_at": "2999-01-01T00:00:00Z"}
            return Response(json.dumps(token), 201, content_type="application/json")
        return Response(self.body, self.status, headers=self.headers)


@asynccontextmanager
async def open_scripted(script: Script) -> AsyncIterator[GithubClient]:
    app, stop = build_app("scripted"), trio.Event()
    app.add_url_rule("/<path:path>", "answer", script.answer, methods=["GET", "POST", "DELETE"])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve_app, app, ["127.0.0.1:0"], stop)
            async with open_client(urls[0]) as client:
                yield client
            stop.set()


@pytest.mark.parametrize(
    ("script", "kind", "wait_s"),
    [
        (Script(403, b"{}", {"Retry-After": "17"}), Unavailable, 17.0),
        (Script(429, b"{}", {"Retry-After": "23"}), Unavailable, 23.0),
        (Script(429), Unavailable, 60.0),
        (Script(403, b'{"message": "IP address is not permitted"}'), Unavailable, 300.0),
        (Script(502, b"<html>"), Unavailable, 5.0),
        (Script(200, b"<html>"), Unavailable, 5.0),
        (Script(301, b"{}", {"Location": "/elsewhere"}), Refused, None),
        (Script(422, b'{"message": "Validation Failed"}'), Refused, None),
        (Script(201, b'{"runner": {"id": "7"}, "encoded_jit_config": "x"}'), Refused, None),
        (Script(201, b'{"runner": {"id": 7}}'), Refused, None),
    ],
)
async def test_odd_answers_become_errors_that_say_how_long_to_wait(
    script: Script, kind: type[Exception], wait_s: float | None
) -> None:
    async with open_scripted(script) as client:
        with pytest.raises(kind) as caught:
            await client.mint_runner(SCOPE, "nimbus-1-1", ("nimbus",), 1)
    assert getattr(caught.value, "retry_after_s", None) == wait_s


@pytest.mark.parametrize("status", [409, 422])
async def test_either_refusal_to_delete_means_busy(status: int) -> None:
    async with open_scripted(Script(status)) as client:
        assert await client.delete_runner(SCOPE, 7) is Deletion.BUSY
