"""The way into the inbox: deliveries that arrive together are stored by one statement and one commit.

Each caller returns only after the commit that holds its delivery, so an answer is never early; a commit costs a flush
of the disk, and under load one flush carries dozens. Never looks into a body and never processes one. webhooks.py
stores through it, forge.py runs it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
import trio

from nimbus.control_plane.services import DELIVERIES, Services
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Database, Transaction, load_queries

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "webhooks.sql")

MAX_GROUP = 64  # while one group is being flushed the next one fills
MAX_GROUP_BYTES = 4 * 1024 * 1024  # of bodies; one larger delivery is a group by itself


class DeliveryState(enum.StrEnum):
    """Where a delivery stands in the inbox."""

    RECEIVED = "received"
    PROCESSED = "processed"
    FAILED = "failed"
    IGNORED = "ignored"  # recorded, and nothing to do


SETTLED = frozenset({DeliveryState.PROCESSED, DeliveryState.IGNORED})


@dataclass(frozen=True)
class Arrival:
    """A delivery as it came in, verified."""

    guid: str
    event: str
    action: str | None
    body: bytes = field(repr=False)
    installation_id: int | None


@dataclass(frozen=True)
class Stored:
    """Where the delivery of this GUID stands. `again`: it was in the inbox before, and this one changed nothing."""

    state: DeliveryState
    again: bool


@dataclass
class _Waiting:
    """A delivery whose caller waits for its commit."""

    arrival: Arrival
    done: trio.Event = field(default_factory=trio.Event)
    stored: Stored | None = None
    problem: Exception | None = None

    def end(self, stored: Stored | None, problem: Exception | None = None) -> None:
        self.stored, self.problem = stored, problem
        self.done.set()


class Intake:
    """Where callers and groups meet. Nothing is stored before `run` runs."""

    def __init__(self) -> None:
        # size 0: a caller waits until a group takes its delivery, so nothing piles up here but requests
        self._send, self._receive = trio.open_memory_channel[_Waiting](0)

    async def store(self, arrival: Arrival) -> Stored:
        """Return once the delivery is committed; Unavailable where the database is away."""
        waiting = _Waiting(arrival)
        await self._send.send(waiting)
        await waiting.done.wait()
        if waiting.problem is not None:
            raise waiting.problem
        assert waiting.stored is not None  # noqa: S101 -- `end` sets one of the two
        return waiting.stored

    async def run(self, services: Services) -> None:
        """Store what comes until cancelled."""
        while True:
            group = [await self._receive.receive()]
            size = len(group[0].arrival.body)
            while len(group) < MAX_GROUP and size < MAX_GROUP_BYTES:
                try:
                    group.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
                size += len(group[-1].arrival.body)
            await _store_group(services, group)


async def _store_group(services: Services, group: Sequence[_Waiting]) -> None:
    """Store and tell each caller; whatever happens, none is left waiting."""
    try:
        stored = await store_arrivals(services.database, [waiting.arrival for waiting in group])
    except Exception as error:  # noqa: BLE001 -- each caller gets it, and answers its own request with it
        if len(group) > 1 and not isinstance(error, Unavailable):
            for waiting in group:  # it is one delivery's fault, and not its neighbours'
                await _store_group(services, [waiting])
            return
        for waiting in group:
            waiting.end(None, error)
        return
    for waiting, each in zip(group, stored, strict=True):
        waiting.end(each)
    services.bell.ring_nowait(DELIVERIES)


async def store_arrivals(database: Database, arrivals: Sequence[Arrival]) -> list[Stored]:
    """Put the deliveries into the inbox; what became of each, in the same order."""
    columns = zip(*((a.guid, a.event, a.action, a.body, a.installation_id) for a in arrivals), strict=True)
    # two processes' groups that hold the same GUIDs may wait for each other: then one of them is run again
    fresh = {row["guid"] for row in await database.fetch(_SQL["store"], *map(list, columns))}
    known: dict[str, DeliveryState] = {}
    seen = list({arrival.guid for arrival in arrivals} - fresh)
    if seen:
        revived, known = await database.run(_look_up, seen)
        fresh |= revived
    stored = []
    for arrival in arrivals:
        state = known.get(arrival.guid, DeliveryState.RECEIVED)
        stored.append(Stored(state, again=arrival.guid not in fresh))
        fresh.discard(arrival.guid)  # a second one in the same group came again
    return stored


async def _look_up(transaction: Transaction, seen: list[str]) -> tuple[set[str], dict[str, DeliveryState]]:
    """Those that are as good as new again, and where all of them stand."""
    revived = {row["guid"] for row in await transaction.fetch(_SQL["revive"], seen)}
    states = await transaction.fetch(_SQL["states"], seen)
    return revived, {row["guid"]: DeliveryState(row["state"]) for row in states}
