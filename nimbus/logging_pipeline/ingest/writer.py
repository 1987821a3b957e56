"""The one task that stores rows: group commit, exactly once by (org, machine, fence, seq), then to the hub.

Requests queue up (bounded: beyond it they are told to come again) and are stored together, so that a hundred
chatty machines make a few inserts a second. An insert whose outcome is unknown makes the writer forget what it
knew of those machines and ask the table before it stores more. Called by the ingest route.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from nimbus.logging_pipeline.ingest.body import RefusedRow
from nimbus.logging_pipeline.ingest.marks import SeqSet
from nimbus.logging_pipeline.live.hub import Publisher
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.rows import Row, Source, StoredRow
from nimbus.model.errors import Unavailable

WINDOW_S = 0.05  # between two inserts: at most 20 new parts a second, which the server merges with ease
FULL_BYTES = 128 * 1024
MAX_QUEUED_BYTES = 32 * 2**20
MAX_INSERT_BYTES = 8 * 2**20
MAX_SOURCES = 20_000  # machines remembered at once; a forgotten one is asked of the table
log = structlog.get_logger()


class RowTable(Protocol):
    """What the writer needs of a table."""

    async def insert(self, rows: Sequence[StoredRow]) -> None:
        """Store all rows, or raise Unavailable where that is not certain."""

    async def islands(self, source: Source) -> list[tuple[int, int]]:
        """The ranges of row numbers that are stored."""


@dataclass
class _Request:
    source: Source
    agent_id: str
    rows: Sequence[Row]
    bytes: int
    acked: int = -1
    refused: list[RefusedRow] = field(default_factory=list)
    failure: Unavailable | None = None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Stored:
    """The answer to one request."""

    acked_seq: int  # everything up to here is stored; -1 while row 0 is missing
    refused: tuple[RefusedRow, ...]


class Writer:
    """Queue, memory and the task that empties the one into the table by means of the other."""

    def __init__(self, table: RowTable, publisher: Publisher, metrics: Metrics) -> None:
        self._table = table
        self._publisher = publisher
        self._metrics = metrics
        self._queue: deque[_Request] = deque()
        self._queued_bytes = 0
        self._wake = trio.Event()
        self._known: OrderedDict[Source, SeqSet] = OrderedDict()

    async def store(self, source: Source, agent_id: str, rows: Sequence[Row], size: int) -> Stored:
        """Return once the rows are in the table; Unavailable where that is not certain or the queue is full."""
        if self._queue and self._queued_bytes + size > MAX_QUEUED_BYTES:
            raise Unavailable("too much output is waiting to be stored: retry", retry_after_s=1.0)
        request = _Request(source, agent_id, rows, size)
        self._queue.append(request)
        self._queued_bytes += size
        self._wake.set()
        await request.done.wait()  # a client that leaves does not take its rows with it
        if request.failure is not None:
            raise request.failure
        return Stored(request.acked, tuple(request.refused))

    async def run(self) -> None:
        """Store until cancelled."""
        next_insert = trio.current_time()
        while True:
            if not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            if self._queued_bytes < FULL_BYTES:  # a large batch has nothing to wait for
                await trio.sleep_until(next_insert)
            await trio.lowlevel.checkpoint()
            next_insert = trio.current_time() + WINDOW_S
            await self._store(self._take())

    def _take(self) -> list[_Request]:
        taken = [self._queue.popleft()]
        size = taken[0].bytes
        while self._queue and size + self._queue[0].bytes <= MAX_INSERT_BYTES:
            size += self._queue[0].bytes
            taken.append(self._queue.popleft())
        self._queued_bytes -= size
        return taken

    async def _store(self, requests: list[_Request]) -> None:
        failure = Unavailable("the service is stopping: retry")
        try:
            await self._recall({request.source for request in requests})
            fresh = [stored for request in requests for stored in self._select_fresh(request)]
            if fresh:
                self._publish(fresh)
                with self._metrics.insert_seconds.time():
                    await self._table.insert(fresh)
        except Unavailable as error:
            failure = error
            self._metrics.failures.inc()
        else:
            for request in requests:
                request.acked = self._known[request.source].acked
                request.done.set()
            self._metrics.stored.inc(len(fresh))
        finally:  # cancelled, or the outcome is unknown: what is known of these machines may be wrong
            for request in requests:
                if not request.done.is_set():
                    self._known.pop(request.source, None)
                    request.failure = failure
                    request.done.set()

    async def _recall(self, sources: set[Source]) -> None:
        for source in sources:
            if source not in self._known:
                self._known[source] = SeqSet(await self._table.islands(source))
            self._known.move_to_end(source)
        while len(self._known) > max(MAX_SOURCES, len(sources)):
            self._known.popitem(last=False)

    def _select_fresh(self, request: _Request) -> list[StoredRow]:
        """The rows that are not stored yet; from here on they count as stored, until the insert fails."""
        known = self._known[request.source]
        fresh = []
        for row in request.rows:
            if row.seq in known:
                self._metrics.repeated.inc()
            elif not known.would_fit(row.seq):
                request.refused.append(RefusedRow(row.seq, "too many rows before this one are missing"))
                self._metrics.refused.inc()
            else:
                known.add(row.seq)
                fresh.append(StoredRow(request.source, request.agent_id, row))
        return fresh

    def _publish(self, fresh: list[StoredRow]) -> None:
        """Told before they are stored: a reader drops what comes again after an insert that failed."""
        by_source: dict[Source, list[Row]] = defaultdict(list)
        for stored in fresh:
            by_source[stored.source].append(stored.row)
        for source, rows in by_source.items():
            self._publisher.publish(source, rows)
