"""Pages of a scope's output in either direction, as one reader filters it.

Rows come from the table in chunks, so that a page of long lines ends early instead of filling the memory. Called by
the page routes, the annotations and the download of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nimbus.logging_pipeline.reading.cursor import Reading
from nimbus.logging_pipeline.rows import Place, ReadRow, ReadScope
from nimbus.logging_pipeline.store.bounds import ReadBounds
from nimbus.logging_pipeline.store.filters import RowFilter
from nimbus.logging_pipeline.store.pages import PlaceRow, plan_ends_before
from nimbus.logging_pipeline.store.table import LogTable

MAX_PAGE_CHARS = 8 * 2**20  # a page ends early beyond it: rows may hold 64 Ki characters each
_CHUNK_ROWS = 1000


@dataclass(frozen=True)
class Page:
    """Rows in their order, the places of a reader who has read them, and whether there is more in that direction."""

    rows: list[ReadRow]
    places: tuple[Place, ...]
    more: bool


@dataclass(frozen=True)
class Pager:
    """One scope as one reader wants it."""

    table: LogTable
    scope: ReadScope
    wanted: RowFilter
    bounds: ReadBounds

    async def forward(self, places: Sequence[Place], limit: int) -> Page:
        """The next rows beyond these places."""
        reading, rows, chars, more = Reading(places), list[ReadRow](), 0, True
        while more and len(rows) < limit and chars < MAX_PAGE_CHARS:
            count = min(_CHUNK_ROWS, limit - len(rows))
            chunk = await self.table.page(self.scope, reading.places, count, self.wanted, self.bounds)
            for read in chunk:
                reading.advance(read)
                chars += len(read.row.message)
            rows += chunk
            more = len(chunk) == count
        return Page(rows, reading.places, more)

    async def backward(self, before: Place | None, limit: int) -> Page:
        """The last rows before this place, or the last of all; its places are as if all before had been read too."""
        rows: list[ReadRow] = []
        chars, more, first = 0, True, before
        while more and len(rows) < limit and chars < MAX_PAGE_CHARS:
            count = min(_CHUNK_ROWS, limit - len(rows))
            chunk = await self.table.page_before(self.scope, first, count, self.wanted, self.bounds)
            rows += chunk
            chars += sum(len(read.row.message) for read in chunk)
            more = len(chunk) == count
            first = rows[-1].place if rows else before
        rows.reverse()
        reading = Reading(() if first is None else await self._places_before(first))
        for read in rows:
            reading.advance(read)
        return Page(rows, reading.places, more)

    async def around(self, place: Place, limit: int) -> Page:
        """The rows about a place, with that place itself."""
        earlier = await self.backward(place, limit // 2)
        later = await self.forward(await self._places_before(place), limit - len(earlier.rows))
        return replace(later, rows=[*earlier.rows, *later.rows])

    async def _places_before(self, place: Place) -> tuple[Place, ...]:
        """The places of a reader who has read everything up to this one, without it."""
        told = await self.table.read(plan_ends_before(self.table.name, self.scope, place), PlaceRow, self.bounds)
        mine = [replace(place, seq=place.seq - 1)] if place.seq else []
        return (*(Place(each.machine_id, each.fence, each.last) for each in told), *mine)
