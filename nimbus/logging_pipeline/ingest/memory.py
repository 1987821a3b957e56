"""What this service knows of the machines that print: which of their rows are stored, and who has rows on the way.

Learned from the table, so it may be forgotten at any time, but not while rows of that machine are on their way: the
table does not know those yet. Called by `writer`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from nimbus.logging_pipeline.ingest.marks import SeqSet
from nimbus.logging_pipeline.rows import Row, Source

MAX_SOURCES = 20_000
_LOOK_AGAIN_S = 1.0  # between two looks into the table for rows that another replica may have stored


@dataclass
class Known:
    """One machine under one fence."""

    marks: SeqSet
    asked_at: float
    busy: int = 0  # requests of it that are on their way into the table


@dataclass
class Memory:
    """All of them, the one heard of last at the end."""

    _known: OrderedDict[Source, Known] = field(default_factory=OrderedDict)

    def __contains__(self, source: Source) -> bool:
        return source in self._known

    def __getitem__(self, source: Source) -> Known:
        return self._known[source]

    def is_busy(self, source: Source) -> bool:
        known = self._known.get(source)
        return known is not None and known.busy > 0

    def must_ask(self, source: Source, rows: list[Row]) -> bool:
        """True where the table must be asked first: nothing is known, or another replica may have stored rows."""
        known = self._known.get(source)
        if known is None:
            return True
        gap = bool(rows) and rows[0].seq > known.marks.last + 1
        return gap and not known.busy and trio.current_time() - known.asked_at >= _LOOK_AGAIN_S

    def learn(self, source: Source, islands: Iterable[tuple[int, int]]) -> None:
        self._known[source] = Known(SeqSet(islands), trio.current_time())
        if len(self._known) > MAX_SOURCES:
            self._forget_oldest()

    def heard(self, source: Source) -> None:
        self._known.move_to_end(source)

    def forget(self, source: Source) -> None:
        self._known.pop(source, None)

    def clear(self) -> None:
        self._known.clear()

    def _forget_oldest(self) -> None:
        oldest = next((source for source, known in self._known.items() if not known.busy), None)
        if oldest is not None:
            del self._known[oldest]
