"""A reader's place as one opaque word, and rows as JSON: what pages and streams have in common. Pure.

A job may print from several machines and fences at once, so the cursor holds a place for each of them.
Called by the read routes and `follow`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nimbus.logging_pipeline.rows import MAX_SEQ, Place, ReadRow
from nimbus.model.errors import Forbidden, Refused

MAX_PLACES = 64
_PLACE = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,19})")


def parse_cursor(text: str | None) -> tuple[Place, ...]:
    """The places in a cursor; none at all is the beginning."""
    if not text:
        return ()
    words = text.split("_") if len(text) <= MAX_PLACES * 60 and text.isascii() else []
    matches = [_PLACE.fullmatch(word) for word in words[: MAX_PLACES + 1]]
    places = [Place(int(found[1]), int(found[2]), int(found[3])) for found in matches if found]
    numbers = [number for place in places for number in (place.machine_id, place.fence, place.seq)]
    if not places or len(places) != len(words) or len(places) > MAX_PLACES or max(numbers) > MAX_SEQ:
        raise Refused("the cursor is none of ours: pass on what the last page or event gave, unchanged")
    return tuple(places)


def check_cursor(places: Iterable[Place], machines: Iterable[int]) -> None:
    """Forbidden where the cursor is that of other output."""
    known = set(machines)
    if any(place.machine_id not in known for place in places):
        raise Forbidden("the cursor belongs to other output: start without one")


def render_cursor(places: Iterable[Place]) -> str:
    return "_".join(f"{place.machine_id}.{place.fence}.{place.seq}" for place in places)


class Reading:
    """How far a reader has come, machine by machine and fence by fence."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._seqs = {(place.machine_id, place.fence): place.seq for place in places}

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(Place(machine, fence, seq) for (machine, fence), seq in self._seqs.items())

    @property
    def cursor(self) -> str:
        return render_cursor(self.places)

    def expected(self, row: ReadRow) -> int:
        """The number of the next row from the same machine and fence."""
        return self._seqs.get((row.machine_id, row.fence), -1) + 1

    def advance(self, row: ReadRow) -> None:
        self._seqs[row.machine_id, row.fence] = row.row.seq


def render_row(read: ReadRow) -> dict[str, object]:
    """A row as readers get it."""
    row = read.row
    return {
        "machine_id": read.machine_id,
        "fence": read.fence,
        "seq": row.seq,
        "ts_ms": row.ts_ms,
        "step": row.step,
        "stream": row.stream,
        "level": row.level,
        "message": row.message,
    }
