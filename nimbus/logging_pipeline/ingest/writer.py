"""From requests to the table: exactly once by (org, machine, fence, seq), told to followers before they are stored.

Two tasks, so that rows are made ready while others are stored. One takes requests in turn, selects their fresh rows
and sends them through the stages; the other stores all that is ready in one insert, at most every few hundredths of a
second, and acknowledges. An insert whose outcome is unknown fails all that was ready too, and makes the writer forget
what it knew of those machines: it asks the table before it stores more. Where an insert that was given up arrives
after all, or another replica stored the same rows, a row can lie in the table twice; readers take one by its key, and
merges leave one. Called by the ingest route.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from nimbus.logging_pipeline.ingest.body import RefusedRow
from nimbus.logging_pipeline.ingest.fences import Fences
from nimbus.logging_pipeline.ingest.intake import Admission, Intake, IntakeLimits, Turns
from nimbus.logging_pipeline.ingest.marks import SeqSet
from nimbus.logging_pipeline.ingest.memory import Memory
from nimbus.logging_pipeline.ingest.stages import Stages
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.rows import Chunk, Row, Source
from nimbus.logging_pipeline.store.recall import Kept
from nimbus.model.errors import Fenced, NimbusError, Unavailable

WINDOW_S = 0.05  # between the beginnings of two inserts
BUSY_WINDOW_S = 0.1  # where an insert takes longer than half of that: fewer and larger parts
FULL_ROWS = 20_000  # so many have nothing to wait for, and one insert takes little more: its senders go on meanwhile
READY_ROWS = 2 * FULL_ROWS  # no more is made ready while inserts are under way: whoever comes next waits for these
_STOPPING = "the service is stopping: retry"
log = structlog.get_logger()


class RowTable(Protocol):
    """What the writer needs of a table."""

    async def insert(self, chunks: Sequence[Chunk]) -> None:
        """Store all rows, or raise Unavailable where that is not certain."""

    async def recall(self, machines: set[tuple[int, int]]) -> Mapping[Source, Kept]:
        """What is stored of these machines, under whichever fence."""


@dataclass
class _Request:
    source: Source
    agent_id: str
    rows: list[Row]
    admission: Admission
    chunk: Chunk | None = None  # its fresh rows
    acked: int = -1
    refused: list[RefusedRow] = field(default_factory=list)
    failure: NimbusError | None = None
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def count(self) -> int:
        """How many fresh rows it brings."""
        return 0 if self.chunk is None else len(self.chunk.rows)

    def end(self, failure: NimbusError | None = None) -> None:
        self.failure = failure
        self.admission.leave()
        self.done.set()


@dataclass(frozen=True)
class Stored:
    """The answer to one request."""

    acked_seq: int  # everything up to here is stored; -1 while row 0 is missing
    refused: tuple[RefusedRow, ...]


class Writer:
    """Everything between a parsed request and its acknowledgement."""

    def __init__(self, table: RowTable, stages: Stages, metrics: Metrics, limits: IntakeLimits | None = None) -> None:
        self._table = table
        self._stages = stages
        self._metrics = metrics
        self._turns: Turns[_Request] = Turns()
        self._ready: deque[_Request] = deque()
        self._ready_rows = 0
        self._called = trio.Event()  # there is a request
        self._filled = trio.Event()  # there is something ready
        self._emptied = trio.Event()  # what was ready was taken
        self.fences = Fences()
        self.memory = Memory()
        self.intake = Intake(limits or IntakeLimits())

    async def store(self, source: Source, agent_id: str, rows: list[Row], admission: Admission) -> Stored:
        """Return once the rows are in the table; Unavailable where that is not certain, Fenced where they are late.

        `rows` are in the order of their numbers, each number once, as `body` makes them.
        """
        request = _Request(source, agent_id, rows, admission.hand_over())
        self._turns.put(request)
        self._called.set()
        await request.done.wait()  # a client that leaves does not take its rows with it
        if request.failure is not None:
            raise request.failure
        return Stored(request.acked, tuple(request.refused))

    async def run(self) -> None:
        """Store until cancelled; whoever waits then is told to come again."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._make_ready_forever)
                nursery.start_soon(self._insert_forever)
        finally:
            self._fail(self._take_ready(), Unavailable(_STOPPING))
            while self._turns:
                self._turns.take().end(Unavailable(_STOPPING))

    async def _make_ready_forever(self) -> None:
        while True:
            while not self._turns:
                self._called = trio.Event()
                await self._called.wait()
            while self._ready_rows >= READY_ROWS:
                await self._emptied.wait()
            waiting = self._take_turns()
            try:
                await self._make_ready(waiting)
            except Unavailable as error:  # the table cannot be asked
                self._metrics.failures.inc()
                self._end_all(waiting, error)
            finally:
                self._end_all(waiting, Unavailable(_STOPPING))

    def _take_turns(self) -> deque[_Request]:
        taken: deque[_Request] = deque()
        rows = self._ready_rows
        while self._turns and (rows < READY_ROWS or not taken):
            taken.append(self._turns.take())
            rows += len(taken[-1].rows)
        return taken

    def _end_all(self, waiting: deque[_Request], failure: Unavailable) -> None:
        while waiting:
            waiting.popleft().end(failure)

    async def _make_ready(self, waiting: deque[_Request]) -> None:
        """Select, hide, mark and tell the fresh rows of these requests, one after the other."""
        while waiting:
            await self._recall(waiting)
            # a failed insert may have made us forget a machine while we waited
            while waiting and waiting[0].source in self.memory:
                request = waiting.popleft()
                try:
                    self._make_one_ready(request)
                except Fenced as error:
                    request.end(error)
                except BaseException:
                    request.end(Unavailable(_STOPPING))
                    raise
                await trio.lowlevel.checkpoint()

    async def _recall(self, requests: Iterable[_Request]) -> None:
        """Learn from the table what must be known of those who sent these."""
        unknown = {request.source for request in requests if self.memory.must_ask(request.source, request.rows)}
        if unknown:
            found = await self._table.recall({(source.org_id, source.machine_id) for source in unknown})
            for source, kept in found.items():
                self.fences.note(source, kept.since_ms)
            now_ms = time.time_ns() // 1_000_000
            for source in unknown:
                kept = found.get(source, Kept((), now_ms))
                self.fences.note(source, kept.since_ms)
                self.memory.learn(source, kept.islands)
        firsts: dict[Source, int] = {}
        for request in requests:
            source = request.source
            first = _find_first(self.memory[source].marks, request.rows) if source in self.memory else None
            if first is not None and source not in firsts and not self.memory.is_busy(source):
                firsts[source] = first
        await self._stages.marker.prepare(firsts)

    def _make_one_ready(self, request: _Request) -> None:
        source = request.source
        self.fences.check(source, request.rows)
        known = self.memory[source]
        self.memory.heard(source)
        fresh = self._select_fresh(known.marks, request)
        request.acked = known.marks.acked  # what came before is stored before, or this fails with it
        if fresh:
            fresh = self._stages.masks.hide(source, fresh)
            self._stages.marker.mark(source, fresh)
            self._stages.publisher.publish(source, fresh)
            request.chunk = Chunk(source, request.agent_id, fresh, self._stages.links.link_of(source))
        request.rows = []
        known.busy += 1
        self._ready.append(request)
        self._ready_rows += len(fresh)
        self._filled.set()

    def _select_fresh(self, marks: SeqSet, request: _Request) -> list[Row]:
        """The rows that are not stored yet; from here on they count as stored, until the insert fails."""
        rows = request.rows
        if not rows:
            return []
        low, high = rows[0].seq, rows[-1].seq
        if high - low + 1 == len(rows) and marks.is_free(low, high) and marks.would_fit(low):
            marks.add_range(low, high)
            return rows
        fresh = []
        for row in rows:
            if row.seq in marks:
                self._metrics.repeated.inc()
            elif not marks.would_fit(row.seq):
                request.refused.append(RefusedRow(row.seq, "too many rows before this one are missing"))
                self._metrics.refused.inc()
            else:
                marks.add(row.seq)
                fresh.append(row)
        return fresh

    def _take_ready(self, rows: float = math.inf) -> list[_Request]:
        """The requests that are ready, up to the one that brings them to so many rows."""
        taken: list[_Request] = []
        while self._ready and rows > 0:
            taken.append(self._ready.popleft())
            rows -= taken[-1].count
            self._ready_rows -= taken[-1].count
        self._emptied.set()
        self._emptied = trio.Event()
        return taken

    async def _insert_forever(self) -> None:
        window_s, began = WINDOW_S, trio.current_time() - WINDOW_S
        while True:
            while not self._ready:
                self._filled = trio.Event()
                await self._filled.wait()
            with trio.move_on_at(began + window_s):
                while self._ready_rows < FULL_ROWS:
                    self._filled = trio.Event()
                    await self._filled.wait()
            began = trio.current_time()
            await self._insert(self._take_ready(FULL_ROWS))
            window_s = BUSY_WINDOW_S if trio.current_time() - began > WINDOW_S / 2 else WINDOW_S

    async def _insert(self, requests: list[_Request]) -> None:
        chunks = [request.chunk for request in requests if request.chunk is not None]
        failure = Unavailable(_STOPPING)
        try:
            if chunks:
                with self._metrics.insert_seconds.time():
                    await self._table.insert(chunks)
            else:
                await trio.lowlevel.checkpoint()
        except Unavailable as error:
            failure = error
            self._metrics.failures.inc()
        else:
            self._metrics.stored.inc(sum(len(chunk.rows) for chunk in chunks))
            while requests:
                request = requests.pop()
                self.memory[request.source].busy -= 1
                request.end()
        finally:  # cancelled, or the outcome is unknown: what was made ready behind these rests on them
            if requests:
                self._fail([*requests, *self._take_ready()], failure)

    def _fail(self, requests: list[_Request], failure: Unavailable) -> None:
        for request in requests:
            self.memory.forget(request.source)
            request.end(failure)


def _find_first(marks: SeqSet, rows: Sequence[Row]) -> int | None:
    """The number of the first row that is not stored."""
    return next((row.seq for row in rows if row.seq not in marks), None)
