"""One reader following output: what the table holds first, then what arrives, as server-sent events.

Every row has an id from which a reader that was cut off goes on. Rows come from the hub; whenever that is not
seamless (a slow reader, a gap) the table is read again, so that nothing stored is skipped. Ends when all output
is known to be told, or when the reader's token expires. Called by the read routes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType

import trio
from quart.wrappers.response import ResponseBody

from nimbus.logging_pipeline.directory import JobEntry
from nimbus.logging_pipeline.live.hub import Hub, Subscription
from nimbus.logging_pipeline.reading.cursor import Reading, render_row
from nimbus.logging_pipeline.rows import END_STREAM, Place, ReadRow, ReadScope
from nimbus.logging_pipeline.store.table import LogTable
from nimbus.model.errors import NotFound, Unavailable

HEARTBEAT_S = 15.0
CHECK_S = 1.0  # how often the control plane is asked whether the job ended or got another machine
QUIET_S = 2.0  # without an end row (the agent died): so long after the job's end nothing more is expected
_PAGE_ROWS = 500
_RETRY_S = 0.5


@dataclass(frozen=True)
class FollowRequest:
    """What is followed, from where, for how long, and whom to ask whether it ended."""

    scope: ReadScope
    places: tuple[Place, ...]
    expires_at_s: float
    ask: Callable[[], Awaitable[JobEntry]] | None  # None: a machine without a job; its end row ends it


class Follow(ResponseBody):
    """The body of one stream."""

    def __init__(self, table: LogTable, hub: Hub, wanted: FollowRequest) -> None:
        self._table = table
        self._hub = hub
        self._wanted = wanted
        self._scope = wanted.scope
        self._reading = Reading(wanted.places)
        self._subscription = Subscription(0, 0)
        self._replaying = True
        self._begun = False
        self._over = False
        self._ended: set[tuple[int, int]] = set()  # machines and fences whose end row was told
        self._job: JobEntry | None = None
        self._last_sent = self._last_row = trio.current_time()
        self._next_check = self._last_row

    async def __aenter__(self) -> Follow:
        # subscribed before the first page is read: what is stored in between comes twice and is told once
        self._subscription = self._hub.subscribe(self._scope.org_id, self._scope.machines)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.unsubscribe(self._subscription)

    def __aiter__(self) -> Follow:
        return self

    async def __anext__(self) -> bytes:
        """The next events, or a heartbeat."""
        if self._over:
            raise StopAsyncIteration
        chunk = b""
        while not chunk:
            chunk = await self._next()
        self._last_sent = trio.current_time()
        return chunk

    async def _next(self) -> bytes:
        """What there is to say now; nothing, after a wait, where there is nothing."""
        if time.time() >= self._wanted.expires_at_s:
            return self._end("expired")
        if self._replaying:
            return await self._replay()
        rows = self._subscription.take()
        if rows is None:
            self._replaying = True
            return render_event("resync", {"why": "this reader fell behind and reads on from the store"})
        if rows:
            return self._tell(rows, live=True)
        if trio.current_time() >= self._next_check:
            self._next_check = trio.current_time() + CHECK_S
            await self._check()
            if not self._replaying and self._is_complete():
                return self._end("complete")
        with trio.move_on_at(self._next_check):
            await self._subscription.wait()
        return self._heartbeat()

    def _heartbeat(self) -> bytes:
        return b": alive\n\n" if trio.current_time() - self._last_sent >= HEARTBEAT_S else b""

    async def _replay(self) -> bytes:
        try:
            if not self._begun:
                await self._recall_ends()
                self._begun = True
            page = await self._table.page(self._scope, self._reading.places, _PAGE_ROWS)
        except Unavailable:  # the stream outlives a restart of the engine
            await trio.sleep(_RETRY_S)
            return self._heartbeat()
        self._replaying = len(page) == _PAGE_ROWS
        return self._tell(page, live=False)

    async def _recall_ends(self) -> None:
        """A reader that comes back may have been told the end row already."""
        for place in self._wanted.places:
            scope = ReadScope(self._scope.org_id, (place.machine_id,), place.fence)
            before = [replace(place, seq=place.seq - 1)] if place.seq else []
            self._note_ends(await self._table.page(scope, before, 1))

    def _note_ends(self, rows: list[ReadRow]) -> None:
        self._ended |= {(read.machine_id, read.fence) for read in rows if read.row.stream == END_STREAM}

    def _tell(self, rows: list[ReadRow], *, live: bool) -> bytes:
        """Events for the rows that are new to this reader. A gap among live rows sends it to the store first."""
        parts = []
        for read in rows:
            expected = self._reading.expected(read)
            if read.row.seq < expected or self._scope.fence not in (None, read.fence):
                continue
            if read.row.seq > expected:
                if live:
                    self._replaying = True
                    break
                gap = {"machine_id": read.machine_id, "fence": read.fence, "missing": read.row.seq - expected}
                parts.append(render_event("gap", gap))
            self._reading.advance(read)
            self._note_ends([read])
            self._last_row = trio.current_time()
            parts.append(render_event(None, render_row(read), self._reading.cursor))
        return b"".join(parts)

    async def _check(self) -> None:
        """Ask how the job stands; machines that it got meanwhile are followed too."""
        if self._wanted.ask is None:
            return
        try:
            job = await self._wanted.ask()
        except (Unavailable, NotFound):  # what is known goes on being true; the next check asks again
            return
        if job.is_terminal and not (self._job and self._job.is_terminal):
            self._last_row = trio.current_time()  # the quiet counts from the end of the job
        self._job = job
        fresh = {machine.machine_id for machine in job.machines} - set(self._scope.machines)
        if fresh:
            self._hub.watch(self._subscription, fresh)
            self._scope = replace(self._scope, machines=(*self._scope.machines, *sorted(fresh)))
            self._replaying = True

    def _is_complete(self) -> bool:
        """True once nothing more can come: end rows of all machines, or a job that is over and quiet."""
        if self._wanted.ask is None:
            fences = [place.fence for place in self._reading.places]
            return bool(fences) and all((machine, max(fences)) in self._ended for machine in self._scope.machines)
        if self._job is None or not self._job.is_terminal:
            return False
        last_fences: dict[int, int] = {}
        for machine in self._job.machines:
            last_fences[machine.machine_id] = max(machine.fence, last_fences.get(machine.machine_id, 0))
        all_ended = all(entry in self._ended for entry in last_fences.items())
        return all_ended or trio.current_time() - self._last_row >= QUIET_S

    def _end(self, why: str) -> bytes:
        self._over = True
        state = None if self._job is None else self._job.state
        return render_event("end", {"why": why, "state": state, "cursor": self._reading.cursor})


def render_event(kind: str | None, data: Mapping[str, object], event_id: str | None = None) -> bytes:
    """One server-sent event. JSON has no newline of its own, so one data line holds it."""
    lines = [] if kind is None else [f"event: {kind}"]
    if event_id is not None:
        lines.append(f"id: {event_id}")
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()
