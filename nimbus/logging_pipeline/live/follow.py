"""One reader following output: what the table holds first, then what arrives, as server-sent events.

Every row has an id from which a reader that was cut off goes on. Rows are told in order, each once: `order` sees to
that. They come published, before they are stored; wherever that is not seamless (a slow reader, a hole, other
replicas out of hearing) the table is read, with pauses, until it is. Ends when all output is known to be told, or
with the reader's token. Called by the live routes, through `tails`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import trio
from quart.wrappers.response import ResponseBody

from nimbus.logging_pipeline.directory import JobEntry
from nimbus.logging_pipeline.live.events import HEARTBEAT, OPENING, render_event
from nimbus.logging_pipeline.live.hub import Hub, Seat, Subscription
from nimbus.logging_pipeline.live.jobwatch import JobWatch, Watched
from nimbus.logging_pipeline.live.order import Order
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.reading.cursor import render_cursor, render_row
from nimbus.logging_pipeline.rows import END_STREAM, Place, ReadRow, ReadScope
from nimbus.logging_pipeline.tickets import Reader
from nimbus.model.errors import Unavailable

PAGE_ROWS = 500
_CHUNK_BYTES = 256 * 1024  # of rows told at once
_LATE_LOOKS = 4
_PAUSES_S = (0.05, 1.0)  # between two looks at the table where the last one did not help: from, to


@dataclass(frozen=True)
class FollowTerms:
    """The patience of a stream."""

    heartbeat_s: float = 15.0
    gap_s: float = 10.0  # a row is missing for good when a later one has been there for so long
    quiet_s: float = 2.0  # without an end row (the agent died): so long after the job's end nothing more is expected
    look_s: float = 1.0  # between two looks at the table while other replicas cannot be heard
    late_s: float = 20.0  # what was published before we listened is stored after this at the latest
    held_rows: int = 2000


class PageTable(Protocol):
    """What a stream needs of the table."""

    async def page(self, scope: ReadScope, places: Sequence[Place], limit: int) -> list[ReadRow]:
        """The next rows beyond these places, in the order of machine, fence and number; Unavailable."""


@dataclass(frozen=True)
class FollowRequest:
    """What is followed, from where and by whom."""

    scope: ReadScope
    places: tuple[Place, ...]
    reader: Reader
    seat: Seat
    job: JobEntry | None  # None: a machine without a job; its end row ends it


@dataclass(frozen=True)
class Surroundings:
    """What all streams of this process share."""

    table: PageTable
    hub: Hub
    watch: JobWatch
    metrics: Metrics
    is_revoked: Callable[[str | None], bool]
    looks: trio.CapacityLimiter  # pages in memory at once: a row may hold 64 KiB
    terms: FollowTerms


class Follow(ResponseBody):
    """The body of one stream."""

    def __init__(self, around: Surroundings, wanted: FollowRequest) -> None:
        self._around = around
        self._terms = around.terms
        self.wanted = wanted
        self._scope = wanted.scope
        self._order = Order(wanted.places, around.terms.held_rows)
        self._places = {(place.machine_id, place.fence): place for place in wanted.places}  # of the last row told
        self._subscription: Subscription
        self._watched: Watched | None = None
        self._job = wanted.job
        self._ended: set[tuple[int, int]] = set()  # machines and fences whose end row was told
        self._opened = self._over = False
        self._catching_up = True  # the last page was full: the table has more for us than the hub can have kept
        self._last_sent = self._last_row = trio.current_time()
        self._looked_at = -math.inf  # when the last look began that went to the table's end
        self._look_at = self._last_row
        self._pause_s = _PAUSES_S[0]
        self._late: list[float] = []

    async def __aenter__(self) -> Follow:
        # subscribed before the first page is read: what is stored in between comes twice and is told once
        self._subscription = self._around.hub.subscribe(self._scope.org_id, self._scope.machines)
        if self._job is not None:
            self._watched = self._around.watch.watch(self._job, self._subscription)
        self._plan_late_looks()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._around.hub.unsubscribe(self._subscription)
        if self._job is not None:
            self._around.watch.leave(self._job, self._subscription)
        self.wanted.seat.leave()

    def __aiter__(self) -> Follow:
        return self

    async def __anext__(self) -> bytes:
        """The next events, or a heartbeat."""
        if self._over:
            raise StopAsyncIteration
        chunk = b"" if self._opened else OPENING
        self._opened = True
        while not chunk:
            chunk = await self._next()
        self._last_sent = trio.current_time()
        return chunk

    async def _next(self) -> bytes:
        """What there is to say now; nothing, after a wait, where there is nothing."""
        now = trio.current_time()
        if self._around.is_revoked(self.wanted.reader.token_id):
            return self._end("revoked")
        if time.time() >= self.wanted.reader.expires_at_s:
            return self._end("expired")
        self._follow_job(now)
        said = self._resync(now) or (b"" if self._catching_up else self._tell_published(now))
        if said:
            return said
        if now >= self._look_at:
            return await self._look()
        if self._is_complete(now):
            return self._end("complete")
        with trio.move_on_at(self._plan_wake(now)):
            await self._subscription.wait()
        return HEARTBEAT if trio.current_time() >= self._last_sent + self._terms.heartbeat_s else b""

    def _plan_wake(self, now: float) -> float:
        expires = now + self.wanted.reader.expires_at_s - time.time()
        return min(self._look_at, self._last_sent + self._terms.heartbeat_s, expires)

    # --- what is told --------------------------------------------------------------------------------------------

    def _tell_published(self, now: float) -> bytes:
        parts, size, had_holes = [], 0, self._order.has_holes
        while size < _CHUNK_BYTES and (batch := self._subscription.take()) is not None:
            if self._scope.fence not in (None, batch.source.fence):
                continue
            parts.append(self._render(self._order.take_published(batch.source, batch.rows, now)))
            size += batch.size
        if self._order.is_full:
            self._order.forget_held()
        if self._order.has_holes and not had_holes:
            self._look_at = now
        return b"".join(parts)

    def _resync(self, now: float) -> bytes:
        """After rows were thrown away, or where some may not have come: the table has them."""
        if self._subscription.take_look():
            self._plan_late_looks()
            self._look_at = now
        if not self._subscription.take_overflow():
            return b""
        self._order.forget_held()
        if self._catching_up:
            return b""  # it was not listening
        self._catching_up, self._look_at = True, now
        self._around.metrics.tail_resyncs.inc()
        return render_event("resync", {"why": "this reader fell behind and reads on from the store"})

    def _render(self, rows: Sequence[ReadRow]) -> bytes:
        parts = []
        for read in rows:
            key = (read.machine_id, read.fence)
            self._places[key] = read.place
            if read.row.stream == END_STREAM:
                self._ended.add(key)
            parts.append(render_event(None, render_row(read), render_cursor(self._places.values())))
        if rows:
            self._last_row = trio.current_time()
        return b"".join(parts)

    # --- the table -----------------------------------------------------------------------------------------------

    async def _look(self) -> bytes:
        """Read on from the table; plan the next look."""
        began = trio.current_time()
        try:
            async with self._around.looks:
                if self._looked_at == -math.inf:
                    await self._recall_ends()
                page = await self._around.table.page(self._scope, self._order.places, PAGE_ROWS)
        except Unavailable:  # the stream outlives a restart of the engine
            self._look_at = trio.current_time() + self._lengthen_pause()
            return b""
        whole = len(page) < PAGE_ROWS
        rows = self._order.take_stored(page, began, whole=whole)
        said = self._render(rows)
        if not rows or whole:
            for gap in self._order.give_up(began, self._terms.gap_s):
                self._around.metrics.tail_gaps.inc()
                told = {"machine_id": gap.machine_id, "fence": gap.fence, "missing": gap.missing}
                said += render_event("gap", told)
            said += self._render(self._order.release_held())
        # what was thrown away while we looked is no sign of a slow reader
        self._catching_up = not whole or self._subscription.take_overflow()
        if whole:
            self._looked_at = began
        self._plan_look(progress=bool(said))
        return said

    def _plan_look(self, *, progress: bool) -> None:
        now = trio.current_time()
        if progress:
            self._pause_s = _PAUSES_S[0]
        if self._catching_up and progress:
            self._look_at = now
        elif self._catching_up or self._order.has_holes:
            self._look_at = now + self._lengthen_pause()
        else:
            while self._late and self._late[0] <= now:
                self._late.pop(0)
            listening = self._late[0] if self._late else math.inf
            self._look_at = listening if self._around.hub.is_whole else now + self._terms.look_s

    def _plan_late_looks(self) -> None:
        """What was published before we listened may be stored after we looked: look again, ever less often."""
        self._late.clear()
        if not self._around.hub.may_be_on_its_way(self._scope.org_id, self._scope.machines, self._terms.late_s):
            return
        now = trio.current_time()
        delays = [self._terms.late_s / 4**n for n in range(_LATE_LOOKS)]
        self._late = [now + delay for delay in reversed(delays)]

    def _lengthen_pause(self) -> float:
        pause, self._pause_s = self._pause_s, min(self._pause_s * 2, _PAUSES_S[1])
        return pause

    async def _recall_ends(self) -> None:
        """A reader that comes back may have been told the end row already."""
        for place in self.wanted.places:
            scope = ReadScope(self._scope.org_id, (place.machine_id,), place.fence)
            before = [replace(place, seq=place.seq - 1)] if place.seq else []
            for read in await self._around.table.page(scope, before, 1):
                if read.row.stream == END_STREAM and read.row.seq == place.seq:
                    self._ended.add((read.machine_id, read.fence))

    # --- the job -------------------------------------------------------------------------------------------------

    def _follow_job(self, now: float) -> None:
        """How the job stands; machines that it got meanwhile are followed too."""
        if self._watched is None or self._watched.entry is self._job:
            return
        before, self._job = self._job, self._watched.entry
        if self._job.is_terminal and not (before and before.is_terminal):
            self._last_row = now  # the quiet counts from the end of the job
        fresh = {machine.machine_id for machine in self._job.machines} - set(self._scope.machines)
        if fresh:
            self._around.hub.watch(self._subscription, fresh)
            self._scope = replace(self._scope, machines=(*self._scope.machines, *sorted(fresh)))
            self._plan_late_looks()
            self._look_at = now

    def _is_complete(self, now: float) -> bool:
        """True once nothing more can come: end rows of all machines, or a job that is over and quiet."""
        if self._catching_up or self._order.has_holes:
            return False
        if self._job is None:
            fences = [place.fence for place in self._order.places]
            return bool(fences) and all((machine, max(fences)) in self._ended for machine in self._scope.machines)
        if not self._job.is_terminal:
            return False
        last_fences: dict[int, int] = {}
        for machine in self._job.machines:
            last_fences[machine.machine_id] = max(machine.fence, last_fences.get(machine.machine_id, 0))
        if all(entry in self._ended for entry in last_fences.items()):
            return True
        quiet_at = self._last_row + self._terms.quiet_s
        self._look_at = min(self._look_at, quiet_at) if self._looked_at < quiet_at else self._look_at
        return self._looked_at >= quiet_at

    def _end(self, why: str) -> bytes:
        self._over = True
        self._around.metrics.tail_ends.labels(why).inc()
        state = None if self._job is None else self._job.state
        return render_event("end", {"why": why, "state": state, "cursor": render_cursor(self._places.values())})
