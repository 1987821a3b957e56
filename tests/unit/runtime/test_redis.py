"""The bell: heard across processes, never missed between two looks, and never in the way of an end."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from nimbus.runtime.postgres import open_bridge
from nimbus.runtime.redis import Bell, open_bell
from tests.services import RedisServer

pytestmark = pytest.mark.services


@asynccontextmanager
async def two_bells(url: str) -> AsyncIterator[tuple[Bell, Bell]]:
    prefix = f"test:{secrets.token_hex(6)}:"
    with trio.fail_after(30):
        async with (
            open_bridge() as bridge,
            open_bell(url, bridge, prefix) as one,
            open_bell(url, bridge, prefix) as two,
        ):
            yield one, two


async def test_a_ring_is_heard_by_another_connection_on_its_channel_only(redis_url: str) -> None:
    async with two_bells(redis_url) as (one, two):
        await one.wait_connected()
        await two.wait_connected()
        with two.listen("a") as right, two.listen("b") as wrong:
            await one.ring("a")
            await right.wait()
            with trio.move_on_after(0.2) as quiet:
                await wrong.wait()

    assert quiet.cancelled_caught


async def test_a_ring_between_two_waits_is_remembered(redis_url: str) -> None:
    async with two_bells(redis_url) as (one, _):
        with one.listen("a") as ear:
            await one.ring("a")
            await one.ring("a")
            with trio.fail_after(1):
                await ear.wait()


async def test_without_redis_rings_still_reach_this_process_and_it_comes_back(redis_server: RedisServer) -> None:
    async with two_bells(redis_server.url) as (one, two):
        await one.wait_connected()
        await two.wait_connected()
        await trio.to_thread.run_sync(redis_server.stop)
        with one.listen("a") as ear, two.listen("a") as far:
            await one.ring("a")
            with trio.fail_after(3):
                await ear.wait()
            await trio.to_thread.run_sync(redis_server.start)
            with trio.fail_after(15):
                await far.wait()  # each new connection rings once, for what was missed
                await one.wait_connected()
                await one.ring("a")
                await far.wait()


async def test_a_bell_that_is_closed_while_it_connects_ends_at_once(redis_url: str) -> None:
    with trio.fail_after(30):
        for tenth_ms in range(60):
            async with open_bridge() as bridge, open_bell(redis_url, bridge):
                await trio.sleep(tenth_ms / 10_000)
