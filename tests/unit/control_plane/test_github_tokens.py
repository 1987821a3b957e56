"""Credentials are made once, renewed early, shared by all who wait, and seen by nobody else."""

from __future__ import annotations

import jwt
import pytest
import trio
import trio.testing

from nimbus.control_plane.github.tokens import REFRESH_EARLY_S, AppCredentials, AppJwt, TokenShelf
from nimbus.model.forge import ForgeTrouble, Problem, ProblemKind
from nimbus.wire.githubrest import TokenReply
from tests.forge import APP_ID, app_key

NOW_S = 1_800_000_000.0


class Clock:
    """Time as a test sets it."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Shop:
    """Gives tokens out, one after the other, or refuses."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.given = 0
        self.asked = 0
        self.closed: Problem | None = None
        self.open = trio.Event()

    async def give(self, key: str) -> TokenReply:
        self.asked += 1
        await self.open.wait()
        if self.closed is not None:
            raise ForgeTrouble(self.closed)
        self.given += 1
        return TokenReply(f"{key}-{self.given}", self.clock.now_s + 3600)


def signed_at(token: str) -> float:
    claims = jwt.decode(
        token, app_key().public_pem, algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert claims["iss"] == APP_ID
    assert claims["exp"] - claims["iat"] <= 600
    return float(claims["iat"]) + 60


def test_the_apps_jwt_is_kept_for_its_life_and_signed_anew_before_its_end() -> None:
    clock = Clock()
    app_jwt = AppJwt(AppCredentials(APP_ID, app_key().private_pem), clock, 300.0)
    first = app_jwt.read()
    assert signed_at(first) == NOW_S
    clock.now_s += 400
    assert app_jwt.read() == first
    clock.now_s += 100
    assert signed_at(app_jwt.read()) == NOW_S + 500
    clock.now_s = NOW_S  # the clock was set back: a token from the future would be refused
    assert signed_at(app_jwt.read()) == NOW_S


def test_a_jwt_that_github_did_not_take_is_signed_anew() -> None:
    clock = Clock()
    app_jwt = AppJwt(AppCredentials(APP_ID, app_key().private_pem), clock, 300.0)
    first = app_jwt.read()
    clock.now_s += 5
    app_jwt.forget("another")
    assert app_jwt.read() == first
    app_jwt.forget(first)
    assert signed_at(app_jwt.read()) == NOW_S + 5


async def test_a_token_is_fetched_once_however_many_wait_and_each_key_has_its_own() -> None:
    clock = Clock()
    shop = Shop(clock)
    shelf: TokenShelf[str] = TokenShelf(shop.give, clock)
    got: list[str] = []

    async def read(key: str) -> None:
        got.append((await shelf.read(key)).token)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(read, "a")
        nursery.start_soon(read, "b")
        await trio.testing.wait_all_tasks_blocked()
        assert shop.asked == 2
        shop.open.set()
    assert sorted(set(got)) in (["a-1", "b-2"], ["a-2", "b-1"])


async def test_a_token_is_renewed_early_but_no_sooner() -> None:
    clock = Clock()
    shop = Shop(clock)
    shop.open.set()
    shelf: TokenShelf[str] = TokenShelf(shop.give, clock)
    assert (await shelf.read("a")).token == "a-1"
    clock.now_s += 3600 - REFRESH_EARLY_S - 1
    assert (await shelf.read("a")).token == "a-1"
    clock.now_s += 1
    assert (await shelf.read("a")).token == "a-2"


async def test_only_the_token_that_was_refused_is_forgotten() -> None:
    clock = Clock()
    shop = Shop(clock)
    shop.open.set()
    shelf: TokenShelf[str] = TokenShelf(shop.give, clock)
    first = (await shelf.read("a")).token
    shelf.forget("a", first)
    second = (await shelf.read("a")).token
    shelf.forget("a", first)  # a slow caller's: the new one stays
    assert (await shelf.read("a")).token == second != first


async def test_who_waited_shares_the_failure_and_who_comes_later_asks_anew() -> None:
    clock = Clock()
    shop = Shop(clock)
    shop.closed = Problem(ProblemKind.SUSPENDED, "suspended", 300.0)
    shelf: TokenShelf[str] = TokenShelf(shop.give, clock)

    async def read() -> None:
        with pytest.raises(ForgeTrouble) as caught:
            await shelf.read("a")
        assert caught.value.problem is shop.closed

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        shop.open.set()
    assert shop.asked == 1
    shop.closed = None
    assert (await shelf.read("a")).token == "a-1"


async def test_when_the_fetching_caller_is_cancelled_the_next_one_fetches() -> None:
    clock = Clock()
    shop = Shop(clock)
    shelf: TokenShelf[str] = TokenShelf(shop.give, clock)
    got: list[str] = []

    async def read() -> None:
        got.append((await shelf.read("a")).token)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        shop.open.set()
    assert (got, shop.asked) == (["a-1"], 2)


def test_no_credential_shows_itself() -> None:
    assert app_key().private_pem not in repr(AppCredentials(APP_ID, app_key().private_pem))
    assert "ghs_x" not in repr(TokenReply("ghs_x", 1.0))
