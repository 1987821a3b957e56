"""How often something may happen, counted for all processes together by Redis.

A process counts what it takes itself, too: where Redis is away, or has forgotten, it still keeps to the limit for its
part. Never waits for a turn and never says what becomes of whom it refuses. Called by the control plane, outside of
transactions: they may be run twice, and hold locks.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog
import trio
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Bridge
from nimbus.runtime.windows import ANSWER_S, Limit, LocalWindows, RedisWindows, Taken

log = structlog.get_logger()
T = TypeVar("T")

AWAY_S = 2.0  # so long is Redis left alone that did not answer: each call would wait as long as the one before
CLOSE_S = 2.0
PREFIX = "nimbus:limit:"
_AWAY = (redis_errors.RedisError, OSError, TimeoutError, trio.TooSlowError)


class WithoutRedis(enum.StrEnum):
    """What becomes of a wish while Redis is away."""

    LOCAL = "local"  # each process counts by itself: together they may take the limit once each
    ALLOW = "allow"  # all is granted
    REFUSE = "refuse"  # Unavailable


class RateLimiter:
    """Limits of any number of keys. Get one by `open_limiter`."""

    def __init__(self, own: LocalWindows, shared: RedisWindows, without_redis: WithoutRedis) -> None:
        self._own = own
        self._shared = shared
        self._without_redis = without_redis
        self._away = False
        self._ask_again_at = 0.0

    @property
    def away(self) -> bool:
        """True while Redis does not answer."""
        return self._away

    async def take(
        self, key: str, limit: Limit, wanted: int = 1, *, hold: bool = False, without_redis: WithoutRedis | None = None
    ) -> Taken:
        """As many of the wanted units as the limit leaves; Unavailable where Redis is away and that is to refuse.

        With `hold`, they count until `settle` tells when and how many were used, so that what is late in using them
        does not meet the next interval's; for HOLD_S at most, in case that it never comes.
        """
        ticket, without = secrets.token_hex(8), without_redis or self._without_redis
        if without is WithoutRedis.ALLOW:
            return await self._take_shared(key, limit, wanted, ticket, hold=hold) or Taken(wanted, 0.0, 0.0)
        own = self._own.take(key, limit, wanted, ticket, hold=hold)
        if not own.granted:
            return own
        shared = await self._take_shared(key, limit, own.granted, ticket, hold=hold)
        if shared is None and without is WithoutRedis.REFUSE:
            self._own.lower(key, ticket, 0)
            raise Unavailable("it is counted by Redis how often this is asked for, and Redis is away", AWAY_S)
        if shared is None:
            return own
        self._own.lower(key, ticket, shared.granted)
        least = shared if shared.granted < own.granted else own
        return replace(least, own=True, shared=True)

    async def settle(self, key: str, limit: Limit, taken: Taken, used: int) -> None:
        """So many of the units were used, by now; the others are free again. Never fails."""
        if taken.own:
            self._own.settle(key, limit, taken, used)
        if taken.shared:
            await self._call(partial(self._shared.settle, key, limit, taken, used))

    async def _take_shared(self, key: str, limit: Limit, wanted: int, ticket: str, *, hold: bool) -> Taken | None:
        return await self._call(partial(self._shared.take, key, limit, wanted, ticket, hold=hold))

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """None where Redis is away; while it is, one call tries it every AWAY_S and the others go on without."""
        if self._away and trio.current_time() < self._ask_again_at:
            return None
        self._ask_again_at = trio.current_time() + AWAY_S
        try:
            answer = await call()
        except _AWAY as error:
            if not self._away:
                log.warning("limiter.without_redis", reason=type(error).__name__, mode=str(self._without_redis))
            self._away, self._ask_again_at = True, trio.current_time() + AWAY_S
            return None
        if self._away:
            log.info("limiter.with_redis")
        self._away = False
        return answer


@asynccontextmanager
async def open_limiter(
    url: str, bridge: Bridge, without_redis: WithoutRedis = WithoutRedis.LOCAL, prefix: str = PREFIX
) -> AsyncIterator[RateLimiter]:
    """A limiter for as long as the body runs; opening it does not need Redis to be there."""
    once = Retry(NoBackoff(), 0)  # a second try would take as long again
    client = Redis.from_url(url, socket_connect_timeout=ANSWER_S, socket_timeout=ANSWER_S, retry=once)
    try:
        yield RateLimiter(LocalWindows(), RedisWindows(bridge, client, prefix), without_redis)
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await bridge.call(client.aclose)
