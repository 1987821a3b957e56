"""What one reader is told next, out of rows that come twice, too early, or not at all. Pure.

Rows come published (before they are stored) and stored (read from the table); a row is told when all before it were.
What was published ahead of a missing row waits here, within bounds; what is stored ahead of one is read again.
A row is missing for good only where a later one was there for long enough and the table still has none. Called by
`follow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nimbus.logging_pipeline.rows import Place, ReadRow, Row, Source

Key = tuple[int, int]  # machine, fence


@dataclass(frozen=True)
class Gap:
    """Rows of one machine and fence that will not come."""

    machine_id: int
    fence: int
    missing: int


@dataclass
class _Ahead:
    """What lies behind a hole in one source's numbers."""

    since_s: float  # when a row up to `high` was first seen
    high: int
    stored: int | None = None  # the first row behind the hole that the table showed, and the last
    stored_high: int = -1
    looked: bool = False  # the last page went as far as this source


class Order:
    """How far a reader has come, machine by machine and fence by fence, and what waits for its turn."""

    def __init__(self, places: Iterable[Place], held_rows: int) -> None:
        self._told = {(place.machine_id, place.fence): place.seq for place in places}
        self._held: dict[Key, dict[int, Row]] = {}
        self._ahead: dict[Key, _Ahead] = {}
        self._held_rows = held_rows
        self._count = 0

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(Place(machine, fence, seq) for (machine, fence), seq in self._told.items())

    @property
    def has_holes(self) -> bool:
        """Whether something later than a missing row was seen."""
        return bool(self._ahead)

    @property
    def is_full(self) -> bool:
        """More waits than may wait: forget it, the table has it too, or will."""
        return self._count > self._held_rows

    def take_published(self, source: Source, rows: Sequence[Row], now_s: float) -> list[ReadRow]:
        """The rows that are to be told now, because of these."""
        key = (source.machine_id, source.fence)
        last = self._told.get(key, -1)
        told: list[ReadRow] = []
        for row in rows:
            if row.seq == last + 1:
                told.append(ReadRow(*key, row))
                last = row.seq
            elif row.seq > last:
                self._hold(key, row, now_s)
        if told:
            self._told[key] = last
            if key in self._ahead:
                told += self._release(key)
        return told

    def take_stored(self, page: Sequence[ReadRow], now_s: float, *, whole: bool) -> list[ReadRow]:
        """The rows that are to be told now, because of a page of the table read from our places on.

        A page is in the order of machine, fence and number; one that is not `whole` ends somewhere.
        """
        told: list[ReadRow] = []
        for key, state in self._ahead.items():
            state.stored, state.stored_high = None, -1  # as the page says now
            state.looked = whole or key <= (page[-1].machine_id, page[-1].fence)
        for read in page:
            key, seq = (read.machine_id, read.fence), read.row.seq
            last = self._told.get(key, -1)
            if seq == last + 1:
                told.append(read)
                self._told[key] = seq
            elif seq > last:
                state = self._see(key, seq, now_s)
                state.stored = seq if state.stored is None else state.stored
                state.stored_high, state.looked = seq, True
        return told + self.release_held() if self._ahead else told

    def give_up(self, now_s: float, patience_s: float) -> list[Gap]:
        """The rows that are taken for missing from now on. Call it right after `take_stored`."""
        gaps = []
        for key, state in list(self._ahead.items()):
            if not state.looked:
                continue
            held = self._held.get(key, {})
            behind = min([*held, *([] if state.stored is None else [state.stored])], default=None)
            waited = now_s - state.since_s >= patience_s
            if behind is None:  # what was seen is neither held nor stored: it was never stored, or has gone
                if waited:
                    del self._ahead[key]
            elif behind > state.high:  # another hole than the one that was waited for
                state.since_s, state.high = now_s, max(*held, state.stored_high, behind)
            elif waited:
                missing = behind - self._told.get(key, -1) - 1
                gaps += [Gap(*key, missing)] if missing > 0 else []
                self._told[key] = behind - 1
        return gaps

    def release_held(self) -> list[ReadRow]:
        """What became due by giving up on what was before it."""
        told = []
        for key in list(self._ahead):
            told += self._release(key)
        return told

    def forget_held(self) -> None:
        """Rows that wait are read from the table instead."""
        self._held.clear()
        self._count = 0

    def _hold(self, key: Key, row: Row, now_s: float) -> None:
        held = self._held.setdefault(key, {})
        if row.seq not in held:
            held[row.seq] = row
            self._count += 1
        self._see(key, row.seq, now_s)

    def _see(self, key: Key, seq: int, now_s: float) -> _Ahead:
        state = self._ahead.get(key)
        if state is None:
            state = self._ahead[key] = _Ahead(now_s, seq)
        elif state.since_s == now_s:
            state.high = max(state.high, seq)
        return state

    def _release(self, key: Key) -> list[ReadRow]:
        """Held rows whose turn it is; what is behind us is forgotten."""
        last = self._told.get(key, -1)
        held = self._held.get(key, {})
        told = []
        while (row := held.pop(last + 1, None)) is not None:
            self._count -= 1
            last += 1
            told.append(ReadRow(*key, row))
        for seq in [seq for seq in held if seq <= last]:
            del held[seq]
            self._count -= 1
        if told:
            self._told[key] = last
        state = self._ahead.get(key)
        if not held:
            self._held.pop(key, None)
            if state is not None and state.high <= last:
                del self._ahead[key]
        return told
