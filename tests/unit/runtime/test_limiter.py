"""Limits over all processes, and what becomes of them while Redis is away, slow, read-only or has forgotten."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from redis.asyncio import Redis
from structlog.testing import capture_logs

from nimbus.model.errors import Unavailable
from nimbus.runtime.limiter import AWAY_S, RateLimiter, WithoutRedis, open_limiter
from nimbus.runtime.postgres import Bridge, open_bridge
from nimbus.runtime.windows import Limit
from tests.services import RedisServer

LIMIT = Limit(5, 60)


@asynccontextmanager
async def open_two(
    url: str, without: WithoutRedis = WithoutRedis.LOCAL
) -> AsyncIterator[tuple[RateLimiter, RateLimiter]]:
    """Two processes' limiters, as far as Redis can tell."""
    prefix = f"test:{secrets.token_hex(8)}:"
    with trio.fail_after(60):
        async with (
            open_bridge() as bridge,
            open_limiter(url, bridge, without, prefix) as one,
            open_limiter(url, bridge, without, prefix) as other,
        ):
            yield one, other


async def ask(bridge: Bridge, url: str, *command: str) -> Any:
    async def call() -> Any:
        client = Redis.from_url(url)
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()

    return await bridge.call(call)


async def take(limiter: RateLimiter, wanted: int = 1) -> int:
    return (await limiter.take("jobs:7", LIMIT, wanted)).granted


async def test_two_processes_share_one_budget(redis_url: str) -> None:
    async with open_two(redis_url) as (one, other):
        assert [await take(one, 3), await take(other, 3), await take(one), await take(other)] == [3, 2, 0, 0]


async def test_many_at_once_are_granted_no_more_than_the_limit(redis_url: str) -> None:
    granted: list[int] = []

    async def one_of_many(limiter: RateLimiter) -> None:
        granted.append(await take(limiter))

    async with open_two(redis_url) as both, trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(one_of_many, both[number % 2])
    assert sum(granted) == LIMIT.most


async def test_each_process_counts_by_itself_while_redis_is_away(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url) as (one, other):
        assert await take(one, 2) == 2
        redis_server.stop()
        assert [await take(one, 9), await take(one), await take(other, 9), await take(other)] == [3, 0, 5, 0]
        assert one.away


async def test_all_is_granted_without_redis_where_that_was_chosen(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url, WithoutRedis.ALLOW) as (one, _):
        assert [await take(one, 9), await take(one)] == [5, 0]
        redis_server.stop()
        assert [await take(one, 9), await take(one)] == [9, 1]


async def test_nothing_is_granted_without_redis_where_that_was_chosen(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url, WithoutRedis.REFUSE) as (one, _):
        redis_server.stop()
        with pytest.raises(Unavailable) as caught:
            await take(one)
        assert caught.value.retry_after_s == AWAY_S
        kept = await one.take("mint:7", LIMIT, 9, without_redis=WithoutRedis.LOCAL)
        assert kept.granted == LIMIT.most


async def test_a_refusal_for_want_of_redis_costs_nothing_of_the_limit(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url, WithoutRedis.REFUSE) as (one, _):
        redis_server.stop()
        for _try in range(9):
            with pytest.raises(Unavailable):
                await take(one)
        redis_server.start()
        await trio.sleep(AWAY_S)
        assert await take(one, 9) == LIMIT.most


async def test_a_redis_that_forgot_grants_no_process_more_than_the_limit(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url) as (one, _):
        assert await take(one, 4) == 4
        redis_server.stop()
        redis_server.start()
        assert await take(one, 9) == 1


async def test_that_redis_is_away_and_back_is_said_once_each(redis_server: RedisServer) -> None:
    with capture_logs() as logs:
        async with open_two(redis_server.url) as (one, _):
            redis_server.stop()
            for _try in range(3):
                await take(one)
            redis_server.start()
            await trio.sleep(AWAY_S)
            await take(one)
            assert not one.away
    assert [entry["event"] for entry in logs] == ["limiter.without_redis", "limiter.with_redis"]


async def test_a_redis_that_does_not_answer_holds_nobody_up_twice(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url) as (one, _):
        await take(one)
        assert redis_server.process is not None
        os.kill(redis_server.process.pid, signal.SIGSTOP)
        try:
            assert await take(one) == 1
            with trio.move_on_after(AWAY_S / 2) as scope:
                assert [await take(one), await take(one), await take(one), await take(one)] == [1, 1, 1, 0]
            assert not scope.cancelled_caught
        finally:
            os.kill(redis_server.process.pid, signal.SIGCONT)


async def test_a_redis_that_only_reads_counts_as_away(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url) as (one, _), open_bridge() as bridge:
        assert await take(one, 2) == 2
        await ask(bridge, redis_server.url, "REPLICAOF", "127.0.0.1", "1")
        assert await take(one, 9) == 3
        assert one.away


async def test_scripts_that_redis_forgot_are_told_it_again(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url) as (one, _), open_bridge() as bridge:
        assert await take(one, 2) == 2
        await ask(bridge, redis_server.url, "SCRIPT", "FLUSH")
        assert await take(one, 9) == 3
        assert not one.away


async def test_what_redis_keeps_goes_by_itself(redis_server: RedisServer) -> None:
    async with open_bridge() as bridge, open_limiter(redis_server.url, bridge) as limiter:
        await limiter.take("jobs:7", Limit(5, 10), 2)
        left_ms = await ask(bridge, redis_server.url, "PTTL", "nimbus:limit:jobs:7")
        assert 10_000 < left_ms <= 42_000


async def test_a_clock_that_was_set_back_blocks_nobody_for_longer_than_an_interval(redis_server: RedisServer) -> None:
    async with open_two(redis_server.url) as (one, other), open_bridge() as bridge:
        limit = Limit(1, 0.3)
        assert (await one.take("jobs:7", limit)).granted == 1
        [key] = await ask(bridge, redis_server.url, "KEYS", "*")
        [member] = await ask(bridge, redis_server.url, "ZRANGE", key, "0", "-1")
        await ask(bridge, redis_server.url, "ZADD", key, "XX", str(8 * 10**15), member)  # as if written in a far year
        assert (await other.take("jobs:7", limit)).granted == 0
        await trio.sleep(0.35)
        assert (await other.take("jobs:7", limit)).granted == 1
