"""The bell: "look again", told between processes through Redis. Never truth and never data.

A ring may be lost; whoever waits also looks by itself every few seconds. While Redis is away, rings still reach
the listeners of this process, and the connection is tried again for ever. Called by the control plane.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import structlog
import trio
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from nimbus.runtime.postgres import Bridge
from nimbus.runtime.retry import Backoff

log = structlog.get_logger()

PUBLISH_S = 1.0  # a bell that takes longer is not worth the wait
CLOSE_S = 2.0
SOCKET_S = 5.0
LISTEN_S = 1.0  # between two looks at whether we were told to stop; a message comes at once all the same
_AWAY = (redis_errors.RedisError, OSError, TimeoutError)
_BACKOFF = Backoff(base_s=0.2, max_s=5.0)


class Ringing:
    """One listener's ear: remembers a ring that came while it was not waiting."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        """Return at the next ring, or at once where one came since the last wait."""
        await self._rung.wait()
        self.forget()

    def forget(self) -> None:
        """Whoever looks now needs no ring that came before."""
        self._rung = trio.Event()


class Bell:
    """Channels of rings. Get one by `open_bell`."""

    def __init__(self, bridge: Bridge, client: Redis, prefix: str) -> None:
        self._bridge = bridge
        self._client = client
        self._prefix = prefix
        self._ears: dict[str, set[Ringing]] = {}
        self._rings: Counter[str] = Counter()
        self._up = trio.Event()
        self._lost = False  # and it was said

    @property
    def connected(self) -> bool:
        """True while rings travel between processes."""
        return self._up.is_set()

    @property
    def state(self) -> Literal["redis", "polling"]:
        """As operators read it."""
        return "redis" if self.connected else "polling"

    async def wait_connected(self) -> None:
        await self._up.wait()

    def rings(self, channel: str) -> int:
        """How many rings were heard here so far: the same number as before means that there was none since."""
        return self._rings[channel]

    @contextmanager
    def listen(self, channel: str, ear: Ringing | None = None) -> Iterator[Ringing]:
        """An ear for the channel. Listen first, look at the truth second, then wait: so no ring is missed."""
        ear = ear or Ringing()
        self._ears.setdefault(channel, set()).add(ear)
        try:
            yield ear
        finally:
            self._ears[channel].discard(ear)

    async def ring(self, channel: str) -> None:
        """Wake whoever listens, in any process. Never fails: without Redis the others find out by looking."""
        self.ring_nowait(channel)
        if not self.connected:
            return
        try:
            with trio.move_on_after(PUBLISH_S):
                await self._bridge.call(self._publish, channel)
        except _AWAY as error:
            log.warning("bell.unheard", channel=channel, reason=type(error).__name__)

    async def _publish(self, channel: str) -> None:
        await self._client.publish(self._prefix + channel, b"")

    def ring_nowait(self, channel: str) -> None:
        """Wake the listeners of this process, and nobody else."""
        self._rings[channel] += 1
        for ear in self._ears.get(channel, ()):
            ear.ring()

    async def run(self) -> None:
        """Hear the other processes' rings until cancelled, over as many connections as it takes."""
        delays = _BACKOFF.delays_s()
        while True:
            try:
                await self._bridge.call(self._hear)
            except _AWAY as error:
                if self.connected:
                    delays = _BACKOFF.delays_s()
                    self._up = trio.Event()
                    self._lost = False
                if not self._lost:
                    log.warning("bell.lost", reason=type(error).__name__)
                    self._lost = True
            await trio.sleep(next(delays))

    async def _hear(self) -> None:
        task = asyncio.current_task()
        async with self._client.pubsub() as pubsub:
            await pubsub.psubscribe(self._prefix + "*")
            while True:
                # redis-py loses a cancellation that arrives while it connects (seen by running it); asked for
                # here, or the stop would wait for a message that never comes
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError
                message = await pubsub.get_message(timeout=LISTEN_S)
                if message is not None:
                    self._hear_message(message["type"], message["channel"])

    def _hear_message(self, kind: str, channel: bytes) -> None:
        if kind == "psubscribe":
            self._up.set()
            if self._lost:
                log.info("bell.heard_again")
                self._lost = False
            self._ring_everywhere_here()  # what was rung while we were away
        elif kind == "pmessage":
            self.ring_nowait(channel.decode().removeprefix(self._prefix))

    def _ring_everywhere_here(self) -> None:
        for channel in self._ears:
            self.ring_nowait(channel)


@asynccontextmanager
async def open_bell(url: str, bridge: Bridge, prefix: str = "nimbus:bell:") -> AsyncIterator[Bell]:
    """A bell for as long as the body runs; opening it does not need Redis to be there."""
    client = Redis.from_url(url, socket_connect_timeout=SOCKET_S, health_check_interval=30, retry=None)
    bell = Bell(bridge, client, prefix)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.run)
            yield bell
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await bridge.call(client.aclose)
