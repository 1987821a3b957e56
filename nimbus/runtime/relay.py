"""Payloads between processes of one service, through Redis' channels: only to whoever listens, and never kept.

A payload may be lost whenever Redis is; whoever takes payloads is told when it was out of hearing, and looks at the
truth itself. Only channels that somebody here wants are subscribed. Called by rooms whose replicas have something to
tell each other at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
import trio
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Bridge
from nimbus.runtime.retry import Backoff

log = structlog.get_logger()

CALL_S = 2.0
CLOSE_S = 2.0
SOCKET_S = 5.0
HEALTH_S = 5  # a Redis that hangs is noticed after this
LISTEN_S = 1.0  # between two looks at whether we were told to stop; a message comes at once all the same
_AWAY = (redis_errors.RedisError, OSError, TimeoutError)
_BACKOFF = Backoff(base_s=0.2, max_s=5.0)


class Listener(Protocol):
    """Who takes what comes. Each is called from the hearing task, and must not wait."""

    def heard(self, channel: str, payload: bytes) -> None: ...
    def subscribed(self, channel: str) -> None:
        """From now on what is published there is heard; what was before was not."""

    def connected(self) -> None: ...
    def lost(self) -> None: ...


class Relay:
    """Channels of payloads. Get one by `open_relay`."""

    def __init__(self, bridge: Bridge, client: Redis, prefix: str, common: str) -> None:
        self._bridge = bridge
        self._client = client
        self._prefix = prefix
        self._common = common  # the channel that is always listened to
        self._wanted: set[str] = set()
        self._applied: set[str] = set()
        self._changed = trio.Event()
        self._pubsub: PubSub | None = None  # while it is connected
        self._said = False  # that it was lost

    @property
    def is_connected(self) -> bool:
        return self._pubsub is not None

    def want(self, channel: str) -> None:
        """Listen to this channel too, soon."""
        self._wanted.add(channel)
        self._changed.set()

    def leave(self, channel: str) -> None:
        self._wanted.discard(channel)
        self._changed.set()

    async def find_listened(self, channels: Collection[str]) -> set[str]:
        """Those of the channels that somebody listens to, if there is any process but this one. Unavailable."""
        counted = await self._call(self._client.pubsub_numsub, *self._name({self._common, *channels}))
        counts = {bytes(name).decode().removeprefix(self._prefix): int(number) for name, number in counted}
        # a process listens to the common channel before any other: one alone there is this one
        return {channel for channel in channels if counts.get(channel, 0) > 0 and counts.get(self._common, 0) > 1}

    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Send payloads, in this order. Unavailable while Redis is away: some may have been sent."""
        await self._call(self._publish, messages)

    async def _publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for channel, payload in messages:
                pipeline.publish(self._prefix + channel, payload)
            await pipeline.execute()

    async def _call(self, function: Any, *args: Any) -> Any:
        try:
            with trio.move_on_after(CALL_S):
                return await self._bridge.call(function, *args)
        except _AWAY as error:
            raise Unavailable(f"Redis is away: {type(error).__name__}") from error
        raise Unavailable("Redis does not answer")

    async def run(self, listener: Listener) -> None:
        """Hear until cancelled, over as many connections as it takes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_wishes)
            await self._hear_for_ever(listener)

    async def _hear_for_ever(self, listener: Listener) -> None:
        delays = _BACKOFF.delays_s()
        while True:
            try:
                await self._bridge.call(self._hear, listener)
            except _AWAY as error:
                if self.is_connected:
                    delays = _BACKOFF.delays_s()
                if not self._said:
                    log.warning("relay.lost", reason=type(error).__name__)
                    self._said = True
                self._forget_connection()
                listener.lost()
            await trio.sleep(next(delays))

    def _forget_connection(self) -> None:
        self._pubsub = None
        self._applied.clear()

    async def _follow_wishes(self) -> None:
        """Subscribe and unsubscribe as wanted, beside the task that hears."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            pubsub = self._pubsub
            if pubsub is not None:
                try:
                    await self._bridge.call(self._apply, pubsub)
                except _AWAY:  # the hearing task finds out too, and subscribes to all anew
                    log.info("relay.not_subscribed")

    async def _apply(self, pubsub: PubSub) -> None:
        fresh, gone = self._wanted - self._applied, self._applied - self._wanted
        self._applied |= fresh
        self._applied -= gone
        if fresh:
            await pubsub.subscribe(*self._name(fresh))
        if gone:
            await pubsub.unsubscribe(*self._name(gone))

    def _name(self, channels: Collection[str]) -> list[str]:
        return [self._prefix + channel for channel in sorted(channels)]

    async def _hear(self, listener: Listener) -> None:
        task = asyncio.current_task()
        async with self._client.pubsub() as pubsub:
            self._forget_connection()
            await pubsub.subscribe(self._prefix + self._common)
            while True:
                # redis-py loses a cancellation that arrives while it connects; so does the Bell's loop (redis.py)
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError
                message = await pubsub.get_message(timeout=LISTEN_S)
                if message is not None:
                    self._take(message["type"], message["channel"], message["data"], pubsub, listener)

    def _take(self, kind: str, name: bytes, data: Any, pubsub: PubSub, listener: Listener) -> None:
        channel = name.decode().removeprefix(self._prefix)
        if kind == "message":
            listener.heard(channel, bytes(data))
        elif kind == "subscribe" and channel == self._common:
            self._pubsub = pubsub
            if self._said:
                log.info("relay.heard_again")
                self._said = False
            self._changed.set()  # all that is wanted
            listener.connected()
        elif kind == "subscribe":
            listener.subscribed(channel)


@asynccontextmanager
async def open_relay(url: str, bridge: Bridge, prefix: str, common: str = "all") -> AsyncIterator[Relay]:
    """A relay for as long as the body runs; opening it does not need Redis to be there. Its `run` is the caller's."""
    client = Redis.from_url(url, socket_connect_timeout=SOCKET_S, health_check_interval=HEALTH_S, retry=None)
    try:
        yield Relay(bridge, client, prefix, common)
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await bridge.call(client.aclose)
