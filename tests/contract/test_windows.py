"""One process' windows and those in Redis grant the same, and exactly what a model that forgets nothing would."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from nimbus.runtime.postgres import open_bridge
from nimbus.runtime.windows import HOLD_S, Limit, LocalWindows, RedisWindows, Taken

LIMIT = Limit(3, 0.030)
KEY = "jobs:7"


@dataclass
class Model:
    """All that was ever taken: by ticket, units and the microsecond from which their interval runs."""

    taken: dict[str, tuple[int, int]] = field(default_factory=dict)

    def check(self, answer: Taken, wanted: int, *, hold: bool) -> None:
        now, interval = round(answer.at_s * 1e6), round(LIMIT.interval_s * 1e6)
        counted = sorted((at, units) for at, units in self.taken.values() if at > now - interval)
        free = LIMIT.most - sum(units for _, units in counted)
        assert answer.granted == max(0, min(wanted, free))
        if answer.granted:
            self.taken[answer.ticket] = (now + (round(HOLD_S * 1e6) if hold else 0), answer.granted)
        if answer.granted == wanted:
            assert answer.retry_after_s == 0
        else:
            oldest = min(at for at, _ in self.taken.values() if at > now - interval)
            assert round(answer.retry_after_s * 1e6) == min(oldest, now) + interval - now

    def settle(self, ticket: str, at_s: float, used: int) -> None:
        self.taken.pop(ticket, None)
        if used:
            self.taken[ticket] = (round(at_s * 1e6), used)


@dataclass(frozen=True)
class Step:
    """Wait, then take; what is held is settled after the next wait, where the step says with how much."""

    wait_ms: int
    wanted: int
    used: int | None  # None: taken at once for good


STEPS = st.lists(
    st.builds(
        Step,
        wait_ms=st.sampled_from([0, 0, 1, 10, 29, 30, 31]),
        wanted=st.integers(1, 5),
        used=st.none() | st.integers(0, 3),
    ),
    max_size=25,
)


@given(STEPS)
@settings(deadline=None, max_examples=300)
def test_one_process_grants_what_the_model_grants_at_the_border_too(steps: list[Step]) -> None:
    clock = [100.0]
    windows, model = LocalWindows(lambda: clock[0]), Model()
    for number, step in enumerate(steps):
        clock[0] = round(clock[0] + step.wait_ms / 1000, 6)
        hold = step.used is not None
        taken = windows.take(KEY, LIMIT, step.wanted, f"t{number}", hold=hold)
        model.check(taken, step.wanted, hold=hold)
        if step.used is not None:
            clock[0] = round(clock[0] + 0.003, 6)
            used = min(step.used, taken.granted)
            windows.settle(KEY, LIMIT, taken, used)
            model.settle(taken.ticket, clock[0], used)


@given(STEPS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_redis_grants_what_the_model_grants_by_redis_own_clock(redis_url: str, steps: list[Step]) -> None:
    async def play(windows: RedisWindows, scores: Callable[[], Awaitable[dict[str, int]]]) -> None:
        model = Model()
        for number, step in enumerate(steps):
            await trio.sleep(step.wait_ms / 1000)
            hold = step.used is not None
            taken = await windows.take(KEY, LIMIT, step.wanted, f"t{number}", hold=hold)
            model.check(taken, step.wanted, hold=hold)
            if step.used is not None:
                used = min(step.used, taken.granted)
                await windows.settle(KEY, LIMIT, taken, used)
                at = (await scores()).get(f"t{number}", 0)
                model.settle(taken.ticket, at / 1e6, used)

    trio.run(_with_redis, redis_url, play)


async def _with_redis(
    url: str, play: Callable[[RedisWindows, Callable[[], Awaitable[dict[str, int]]]], Awaitable[None]]
) -> None:
    prefix = f"test:{secrets.token_hex(8)}:"
    async with open_bridge() as bridge:
        client = Redis.from_url(url)

        async def scores() -> dict[str, int]:
            async def fetch() -> Any:
                return await client.zrange(prefix + KEY, 0, -1, withscores=True)

            return {member.decode().split(":")[0]: round(at) for member, at in await bridge.call(fetch)}

        with trio.fail_after(60):
            await play(RedisWindows(bridge, client, prefix), scores)
        await bridge.call(client.aclose)


@dataclass(frozen=True)
class Books:
    """Either kind of windows, spoken to in one way."""

    take: Callable[[str, Limit, int, bool], Awaitable[Taken]]
    settle: Callable[[str, Limit, Taken, int], Awaitable[None]]


async def _run(kind: str, url: str, story: Callable[[Books], Awaitable[None]]) -> None:
    if kind == "redis":

        async def play(windows: RedisWindows, _scores: object) -> None:
            async def take(key: str, limit: Limit, wanted: int, hold: bool) -> Taken:
                return await windows.take(key, limit, wanted, secrets.token_hex(8), hold=hold)

            await story(Books(take, windows.settle))

        await _with_redis(url, play)
        return
    local = LocalWindows()

    async def take(key: str, limit: Limit, wanted: int, hold: bool) -> Taken:
        await trio.lowlevel.checkpoint()
        return local.take(key, limit, wanted, secrets.token_hex(8), hold=hold)

    async def settle(key: str, limit: Limit, taken: Taken, used: int) -> None:
        await trio.lowlevel.checkpoint()
        local.settle(key, limit, taken, used)

    await story(Books(take, settle))


@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_who_is_told_to_come_again_is_served_then(kind: str, redis_url: str) -> None:
    limit = Limit(2, 0.2)

    async def story(books: Books) -> None:
        assert (await books.take(KEY, limit, 2, False)).granted == 2
        refused = await books.take(KEY, limit, 1, False)
        assert (refused.granted, refused.retry_after_s > 0) == (0, True)
        await trio.sleep(refused.retry_after_s + 0.001)
        assert (await books.take(KEY, limit, 1, False)).granted == 1

    await _run(kind, redis_url, story)


@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_more_than_is_free_is_granted_in_part(kind: str, redis_url: str) -> None:
    limit = Limit(5, 60)

    async def story(books: Books) -> None:
        assert (await books.take(KEY, limit, 3, False)).granted == 3
        part = await books.take(KEY, limit, 9, False)
        assert part.granted == 2
        assert 59 < part.retry_after_s <= 60

    await _run(kind, redis_url, story)


@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_what_was_not_used_is_free_again_at_once(kind: str, redis_url: str) -> None:
    limit = Limit(5, 60)

    async def story(books: Books) -> None:
        for hold in (True, False):
            taken = await books.take(KEY, limit, 5, hold)
            await books.settle(KEY, limit, taken, 0)
        taken = await books.take(KEY, limit, 5, True)
        await books.settle(KEY, limit, taken, 3)
        assert (await books.take(KEY, limit, 5, False)).granted == 2

    await _run(kind, redis_url, story)


@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_what_is_held_counts_until_an_interval_after_it_was_used(kind: str, redis_url: str) -> None:
    limit = Limit(1, 0.5)  # long enough that what follows the settling is still within it on a busy machine

    async def story(books: Books) -> None:
        taken = await books.take(KEY, limit, 1, True)
        await trio.sleep(0.6)
        assert (await books.take(KEY, limit, 1, False)).granted == 0
        await books.settle(KEY, limit, taken, 1)
        assert (await books.take(KEY, limit, 1, False)).granted == 0
        await trio.sleep(0.501)
        assert (await books.take(KEY, limit, 1, False)).granted == 1

    await _run(kind, redis_url, story)


@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_a_lower_limit_holds_at_once_and_keys_do_not_meet(kind: str, redis_url: str) -> None:
    async def story(books: Books) -> None:
        assert (await books.take(KEY, Limit(5, 60), 5, False)).granted == 5
        assert (await books.take(KEY, Limit(2, 60), 1, False)).granted == 0
        assert (await books.take("jobs:8", Limit(2, 60), 1, False)).granted == 1

    await _run(kind, redis_url, story)


def test_windows_in_which_nothing_is_left_take_no_memory() -> None:
    clock = [0.0]
    windows = LocalWindows(lambda: clock[0])
    for number in range(5000):
        clock[0] += 1.0
        windows.take(f"mint:{number}", Limit(1, 5), 1, "t", hold=False)
    assert len(windows._windows) < 1100
