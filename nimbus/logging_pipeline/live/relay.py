"""Rows between the replicas of this service: what one is about to store, those that are followed at another hear.

Nothing is sent where nobody else listens. What is lost on the way (Redis away, too much at once) is made up for by
telling every reader to look at the table. Channels are named by org and machine; only services know Redis' address, so
no tenant can listen or speak. Called by `tails`.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import structlog
import trio

from nimbus.logging_pipeline.live.hub import Hub, Machine
from nimbus.logging_pipeline.rows import Row, Source
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import open_bridge
from nimbus.runtime.relay import Relay, open_relay

PREFIX = "nimbus:tail:"
EVERYBODY = "all"
QUEUE_BYTES = 16 * 2**20  # of rows on their way to Redis; beyond it the others read the table
PAYLOAD_CHARS = 128 * 1024  # of messages in one payload: at worst a row more, and six bytes for each
_GATHER_S = 0.01  # rows wait for company: one question to Redis serves them all
_ORIGIN_BYTES = 16
_RETRY_S = 1.0
_ROW_CHARS = 120
log = structlog.get_logger()


class Payload(msgspec.Struct):
    """Rows of one machine and fence."""

    fence: int
    rows: list[Row]


_DECODER = msgspec.json.Decoder(Payload)


class LiveRelay:
    """The hub's way to the other replicas, and theirs to it."""

    def __init__(self, hub: Hub, relay: Relay) -> None:
        self._hub = hub
        self._relay = relay
        self._origin = secrets.token_hex(_ORIGIN_BYTES // 2).encode()
        self._waiting: deque[tuple[Source, Sequence[Row], int]] = deque()
        self._size = 0
        self._missed = False  # something was not sent: the others must look
        self._filled = trio.Event()

    # --- from here ------------------------------------------------------------------------------------------------

    def carry(self, source: Source, rows: Sequence[Row]) -> None:
        """Send rows to whoever follows elsewhere. Never waits."""
        size = sum(len(row.message) + _ROW_CHARS for row in rows)
        if not self._relay.is_connected or self._size + size > QUEUE_BYTES:
            self._waiting.clear()
            self._size, self._missed = 0, True
        else:
            self._waiting.append((source, rows, size))
            self._size += size
        self._filled.set()

    async def send(self) -> None:
        """Send what waits until cancelled."""
        while True:
            await self._filled.wait()
            await trio.sleep(_GATHER_S)
            self._filled = trio.Event()
            try:
                await self._send_waiting()
            except Unavailable as error:
                self._missed = True
                log.debug("relay.not_sent", reason=str(error))
            if self._missed:
                await trio.sleep(_RETRY_S)
                self._filled.set()

    async def _send_waiting(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        self._size = 0
        channels = {_channel(source) for source, _, _ in waiting}
        listened = await self._relay.find_listened(channels) if channels else set()
        messages = [
            (_channel(source), self._origin + payload)
            for source, rows, _ in waiting
            if _channel(source) in listened
            for payload in render_payloads(source.fence, rows)
        ]
        if messages:
            await self._relay.publish(messages)
        if self._missed and self._relay.is_connected:
            self._missed = False
            await self._relay.publish([(EVERYBODY, self._origin)])

    # --- from elsewhere -------------------------------------------------------------------------------------------

    def heard(self, channel: str, payload: bytes) -> None:
        if payload[:_ORIGIN_BYTES] == self._origin:
            return
        machine = parse_channel(channel)
        if machine is None:
            self._hub.ask_all_to_look()
            return
        try:
            told = _DECODER.decode(payload[_ORIGIN_BYTES:])
        except msgspec.MsgspecError:  # of another version: the table has the rows in ours
            log.warning("relay.not_understood", bytes=len(payload))
            self._hub.ask_to_look(machine)
            return
        self._hub.relayed(Source(*machine, told.fence), told.rows)

    def subscribed(self, channel: str) -> None:
        machine = parse_channel(channel)
        if machine is not None:
            self._hub.ask_to_look(machine)

    def connected(self) -> None:
        self._hub.is_whole = True
        self._hub.ask_all_to_look()
        self._filled.set()

    def lost(self) -> None:
        if self._hub.is_whole:
            self._hub.is_whole = False
            self._hub.ask_all_to_look()


def _channel(source: Source) -> str:
    return f"{source.org_id}:{source.machine_id}"


def parse_channel(channel: str) -> Machine | None:
    """Org and machine; None for the channel of all."""
    org, _, machine = channel.partition(":")
    return (int(org), int(machine)) if org.isdigit() and machine.isdigit() else None


def render_payloads(fence: int, rows: Sequence[Row]) -> list[bytes]:
    """The rows as payloads of bounded size."""
    payloads, part, size = [], list[Row](), 0
    for row in rows:
        part.append(row)
        size += len(row.message) + _ROW_CHARS
        if size >= PAYLOAD_CHARS:
            payloads.append(msgspec.json.encode(Payload(fence, part)))
            part, size = [], 0
    return [*payloads, msgspec.json.encode(Payload(fence, part))] if part else payloads


@asynccontextmanager
async def open_live_relay(url: str, hub: Hub) -> AsyncIterator[None]:
    """The hub hears other replicas, and is heard, for as long as the body runs. Redis may come and go."""
    async with (
        open_bridge() as bridge,
        open_relay(url, bridge, PREFIX, EVERYBODY) as relay,
        trio.open_nursery() as nursery,
    ):
        live = LiveRelay(hub, relay)
        hub.is_whole = False
        hub.carry = live.carry
        hub.followed = lambda machine: relay.want(f"{machine[0]}:{machine[1]}")
        hub.forsaken = lambda machine: relay.leave(f"{machine[0]}:{machine[1]}")
        nursery.start_soon(relay.run, live)
        nursery.start_soon(live.send)
        try:
            yield
        finally:
            hub.carry = hub.followed = hub.forsaken = None
        nursery.cancel_scope.cancel()
