"""What the table remembers of machines, for a service that does not: which rows it holds, under which fences and steps.

One question for many machines. Called by ingest after a start, after an insert of unknown outcome, and where another
replica may have stored rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nimbus.logging_pipeline.rows import Source

AT_ONCE = 500  # they travel in the address of the question
_OF_SOURCES = "(org_id, machine_id, fence) IN {sources:Array(Tuple(UInt64, UInt64, UInt64))}"


class Questions(Protocol):
    """What a table must answer."""

    name: str

    async def select(self, sql: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
        """The rows of a statement of ours."""


@dataclass(frozen=True)
class Kept:
    """What is stored of one machine under one fence: the ranges of its row numbers, and when the first row came."""

    islands: tuple[tuple[int, int], ...]
    since_ms: int


async def recall(table: Questions, machines: Collection[tuple[int, int]]) -> dict[Source, Kept]:
    """All that is stored of these machines (each an org and its machine), under whichever fence."""
    found: dict[Source, Kept] = {}
    for some in _in_parts(sorted(machines)):
        told = await table.select(
            "SELECT org_id, machine_id, fence, min(seq) AS low, max(seq) AS high, uniqExact(seq) AS n, "  # noqa: S608 - checked name
            f"toUnixTimestamp64Milli(min(inserted_at)) AS since FROM {table.name} "
            "WHERE (org_id, machine_id) IN {machines:Array(Tuple(UInt64, UInt64))} GROUP BY org_id, machine_id, fence",
            {"machines": some},
        )
        for entry in told:
            found[_source_of(entry)] = Kept(((int(entry["low"]), int(entry["high"])),), int(entry["since"]))
        holed = [_source_of(entry) for entry in told if int(entry["n"]) <= int(entry["high"]) - int(entry["low"])]
        for source, islands in (await _recall_islands(table, holed)).items():
            found[source] = Kept(tuple(sorted(islands)), found[source].since_ms)
    return found


async def _recall_islands(table: Questions, sources: Sequence[Source]) -> dict[Source, list[tuple[int, int]]]:
    found: dict[Source, list[tuple[int, int]]] = {}
    for some in _in_parts(sources):
        told = await table.select(
            "SELECT org_id, machine_id, fence, min(seq) AS low, max(seq) AS high FROM ("  # noqa: S608 - checked name
            "SELECT org_id, machine_id, fence, seq, "
            "seq - row_number() OVER (PARTITION BY org_id, machine_id, fence ORDER BY seq) AS island "
            f"FROM (SELECT DISTINCT org_id, machine_id, fence, seq FROM {table.name} WHERE {_OF_SOURCES})"
            ") GROUP BY org_id, machine_id, fence, island",
            {"sources": [_key(source) for source in some]},
        )
        for entry in told:
            found.setdefault(_source_of(entry), []).append((int(entry["low"]), int(entry["high"])))
    return found


async def recall_steps(table: Questions, firsts: Mapping[Source, int]) -> dict[Source, int]:
    """The greatest step of each source's stored rows before the given number; none for a source without such rows."""
    found: dict[Source, int] = {}
    for some in _in_parts(list(firsts)):
        told = await table.select(
            f"SELECT org_id, machine_id, fence, max(step) AS last FROM {table.name} WHERE {_OF_SOURCES} "  # noqa: S608 - checked name
            "AND seq < {firsts:Array(UInt64)}[indexOf({sources:Array(Tuple(UInt64, UInt64, UInt64))}, "
            "(org_id, machine_id, fence))] GROUP BY org_id, machine_id, fence",
            {"sources": [_key(source) for source in some], "firsts": [firsts[source] for source in some]},
        )
        found |= {_source_of(entry): int(entry["last"]) for entry in told}
    return found


def _key(source: Source) -> tuple[int, int, int]:
    return source.org_id, source.machine_id, source.fence


def _source_of(entry: Mapping[str, Any]) -> Source:
    return Source(int(entry["org_id"]), int(entry["machine_id"]), int(entry["fence"]))


def _in_parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
