"""Words that are good once, for all processes together, kept in Redis until they could not be said again anyway.

Fails closed: where Redis can't be asked, nobody knows whether a word was said before. A Redis that loses its data
(a restart without persistence, an eviction) forgets them too, which is why callers give such words short lives.
Opened by the control plane's app.py; called by access.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Bridge

log = structlog.get_logger()

ANSWER_S = 1.0  # a healthy Redis takes a millisecond; somebody waits for this answer
CLOSE_S = 2.0
_AWAY = (redis_errors.RedisError, OSError, TimeoutError)


class Nonces:
    """The words that were said. Get one by `open_nonces`."""

    def __init__(self, bridge: Bridge, client: Redis, prefix: str) -> None:
        self._bridge = bridge
        self._client = client
        self._prefix = prefix

    async def spend(self, word: str, ttl_s: float) -> bool:
        """Whether the word is said for the first time; remembered for `ttl_s`. Unavailable where nobody can tell.

        A word whose answer was lost on the way may count as said.
        """
        try:
            return await self._bridge.call(self._set, self._prefix + word, max(1, round(ttl_s * 1000)))
        except _AWAY as error:
            log.warning("nonce.not_asked", reason=type(error).__name__)
            raise Unavailable("a token that is good once can't be checked while Redis is away: retry") from error

    async def _set(self, key: str, ttl_ms: int) -> bool:
        return await self._client.set(key, b"", nx=True, px=ttl_ms) is not None


@asynccontextmanager
async def open_nonces(url: str, bridge: Bridge, prefix: str = "nimbus:nonce:") -> AsyncIterator[Nonces]:
    """Nonces for as long as the body runs; opening does not need Redis to be there."""
    client = Redis.from_url(url, socket_connect_timeout=ANSWER_S, socket_timeout=ANSWER_S, retry=None)
    try:
        yield Nonces(bridge, client, prefix)
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await bridge.call(client.aclose)
