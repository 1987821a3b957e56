"""The statements that read pages of output: beyond a reader's places, or before one, in the order of the table. Pure.

Every condition is one that the primary key can answer, however deep in the output the page lies. A row that is stored
twice until parts are merged comes twice, one after the other; it is dropped here and not by the statement, which stays
of one level and so half as long. Called by `table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import msgspec

from nimbus.logging_pipeline.rows import Place, ReadRow, ReadScope, Row
from nimbus.logging_pipeline.store.filters import EVERYTHING, RowFilter, Select, plan_filter

COLUMNS = "machine_id, fence, seq, step, stream, level, message, toUnixTimestamp64Milli(ts) AS ts_ms"
_ORDER = "org_id, machine_id, fence, seq"
_BACKWARDS = "org_id DESC, machine_id DESC, fence DESC, seq DESC"
_NOTHING = "0"
# a page is a few blocks: to share it out among threads takes longer than to read it
_NARROW = ("max_threads = 1", "max_block_size = 1024", "output_format_parallel_formatting = 0")


class Keyed(Protocol):
    """What is told of a row at least."""

    machine_id: int
    fence: int
    seq: int


K = TypeVar("K", bound=Keyed)


class PageRow(msgspec.Struct, gc=False):
    """A row as the store tells it."""

    machine_id: int
    fence: int
    seq: int
    step: int
    stream: str
    level: str
    message: str
    ts_ms: int


@dataclass(frozen=True, slots=True)
class PagePlan:
    """A page that is wanted, and how many rows are looked for to fill it: some may be stored several times."""

    sql: str
    parameters: dict[str, object]
    limit: int
    found: int

    @property
    def select(self) -> Select:
        return Select(self.sql, self.parameters | {"found": self.found}, _NARROW)

    def fill(self, told: Sequence[PageRow]) -> list[PageRow] | None:
        """The page that was told; None where repetitions have taken the places of rows that are there."""
        rows = drop_repeated(told)[: self.limit]
        return rows if len(rows) == self.limit or len(told) < self.found else None

    def look_further(self) -> PagePlan:
        """The same page, with more repetitions allowed for."""
        return replace(self, found=self.found * 8)


class PlaceRow(msgspec.Struct, gc=False):
    """The last number of a machine and fence."""

    machine_id: int
    fence: int
    last: int


def plan_page(
    table: str, scope: ReadScope, places: Sequence[Place], limit: int, wanted: RowFilter = EVERYTHING
) -> PagePlan:
    """The next rows in this scope beyond the places read so far."""
    return _plan(table, scope, _plan_beyond(scope.machines, places), limit, wanted, _ORDER)


def plan_page_before(
    table: str, scope: ReadScope, place: Place | None, limit: int, wanted: RowFilter = EVERYTHING
) -> PagePlan:
    """The last rows in this scope, or those before a place, the last of them first."""
    return _plan(table, scope, _plan_before(scope.machines, place), limit, wanted, _BACKWARDS)


def plan_ends_before(table: str, scope: ReadScope, place: Place) -> Select:
    """The last number of each machine and fence whose output comes before that of `place`."""
    where, parameters = _plan_before(scope.machines, Place(place.machine_id, place.fence, 0))
    if scope.fence is not None:
        where, parameters["only"] = f"({where}) AND fence = {{only:UInt64}}", scope.fence
    return Select(
        f"SELECT machine_id, fence, max(seq) AS last FROM {table} WHERE org_id = {{org:UInt64}} AND ({where}) "  # noqa: S608 - checked names, typed parameters
        "GROUP BY machine_id, fence ORDER BY machine_id, fence",
        {**parameters, "org": scope.org_id},
    )


def _plan(
    table: str, scope: ReadScope, where: tuple[str, dict[str, object]], limit: int, wanted: RowFilter, order: str
) -> PagePlan:
    conditions, parameters = plan_filter(wanted)
    parameters |= {**where[1], "org": scope.org_id}
    if scope.fence is not None:
        conditions.append("fence = {only:UInt64}")
        parameters["only"] = scope.fence
    every = " AND ".join(["org_id = {org:UInt64}", f"({where[0]})", *conditions])
    return PagePlan(
        f"SELECT {COLUMNS} FROM {table} WHERE {every} ORDER BY {order} LIMIT {{found:UInt64}}",  # noqa: S608 - checked names, typed parameters
        parameters,
        limit,
        limit,
    )


def _plan_beyond(machines: Sequence[int], places: Sequence[Place]) -> tuple[str, dict[str, object]]:
    """One range for each place, and one for each stretch of fences of which nothing was read."""
    untouched = sorted(set(machines) - {place.machine_id for place in places})
    parts: list[str] = []
    parameters: dict[str, object] = {}
    if untouched:
        parts.append(
            "has({untouched:Array(UInt64)}, machine_id)" if len(untouched) > 1 else "machine_id = {one:UInt64}"
        )
        parameters |= {"untouched": untouched} if len(untouched) > 1 else {"one": untouched[0]}
    for index, machine in enumerate(sorted(set(machines) - set(untouched))):
        parameters[f"m{index}"] = machine
        mine = sorted((place for place in places if place.machine_id == machine), key=lambda place: place.fence)
        ranges: list[str] = []
        for number, place in enumerate(mine):
            fence = f"f{index}_{number}"
            above = f"fence > {{f{index}_{number - 1}:UInt64}} AND " if number else ""
            ranges.append(f"({above}fence < {{{fence}:UInt64}})")
            ranges.append(f"(fence = {{{fence}:UInt64}} AND seq > {{s{index}_{number}:UInt64}})")
            parameters |= {fence: place.fence, f"s{index}_{number}": place.seq}
        ranges.append(f"(fence > {{f{index}_{len(mine) - 1}:UInt64}})")
        parts += [f"(machine_id = {{m{index}:UInt64}} AND {each})" for each in ranges]
    return " OR ".join(parts) or _NOTHING, parameters


def _plan_before(machines: Sequence[int], place: Place | None) -> tuple[str, dict[str, object]]:
    if place is None:
        return _plan_beyond(machines, ())
    earlier, parameters = _plan_beyond([machine for machine in machines if machine < place.machine_id], ())
    parameters |= {"m": place.machine_id, "f": place.fence, "s": place.seq}
    mine = (
        "(machine_id = {m:UInt64} AND fence < {f:UInt64})",
        ("(machine_id = {m:UInt64} AND fence = {f:UInt64} AND seq < {s:UInt64})"),
    )
    return " OR ".join([earlier, *mine]), parameters


def drop_repeated(told: Iterable[K]) -> list[K]:
    """Rows in the order of the key, each once."""
    rows: list[K] = []
    last: tuple[int, int, int] | None = None
    for row in told:
        key = (row.machine_id, row.fence, row.seq)
        if key != last:
            rows.append(row)
        last = key
    return rows


def read_row(told: PageRow) -> ReadRow:
    """A row as readers get it."""
    row = Row(told.seq, told.ts_ms, told.stream, told.level, told.message, told.step)
    return ReadRow(told.machine_id, told.fence, row)
