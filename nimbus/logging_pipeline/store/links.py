"""Which job each machine ran, in the table: a row for a machine and fence, written when the control plane has told it.

Readers of a whole repo find its machines here. Numbers only; called by ingest's `links`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from nimbus.logging_pipeline.rows import JobLink, Source

AT_ONCE = 500  # they travel in the address of the question


class LinkTable(Protocol):
    """What the table of job output must do here."""

    name: str

    async def select(self, sql: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
        """The rows of a statement of ours."""

    async def command(self, sql: str) -> None:
        """One statement of ours."""


async def find_links(table: LinkTable, sources: Collection[Source]) -> dict[Source, JobLink]:
    """Those that are stored, of these machines."""
    found: dict[Source, JobLink] = {}
    for some in _in_parts(list(sources)):
        told = await table.select(
            "SELECT DISTINCT org_id, machine_id, fence, repo_id, job_id, attempt "  # noqa: S608 - checked name
            f"FROM {table.name}_links WHERE org_id IN {{orgs:Array(UInt64)}} "
            "AND (org_id, machine_id, fence) IN {sources:Array(Tuple(UInt64, UInt64, UInt64))}",
            {
                "orgs": sorted({source.org_id for source in some}),
                "sources": [(source.org_id, source.machine_id, source.fence) for source in some],
            },
        )
        for entry in told:
            source = Source(int(entry["org_id"]), int(entry["machine_id"]), int(entry["fence"]))
            found[source] = JobLink(int(entry["repo_id"]), int(entry["job_id"]), int(entry["attempt"]))
    return found


async def find_unlinked(table: LinkTable, age_s: float, limit: int) -> list[Source]:
    """Machines of which rows without a job came within `age_s`, and no link: what a service left open when it ended."""
    told = await table.select(
        f"SELECT DISTINCT org_id, machine_id, fence FROM {table.name} "  # noqa: S608 - checked name
        "WHERE job_id = 0 AND inserted_at >= now64(3) - toIntervalSecond({age:UInt32}) "
        # a guest's clock is at most a day off; partitions go by it
        "AND ts >= now64(3) - toIntervalSecond({age:UInt32}) - toIntervalDay(2) "
        f"AND (org_id, machine_id, fence) NOT IN (SELECT org_id, machine_id, fence FROM {table.name}_links "
        "WHERE linked_at >= now64(3) - toIntervalSecond({age:UInt32}) - toIntervalDay(1)) LIMIT {limit:UInt32}",
        {"age": math.ceil(age_s), "limit": limit},
    )
    return [Source(int(entry["org_id"]), int(entry["machine_id"]), int(entry["fence"])) for entry in told]


async def store_links(table: LinkTable, links: Mapping[Source, JobLink]) -> None:
    """Store links. The same ones again change nothing: the server drops the repeated block, merges the repeated row."""
    for some in _in_parts(sorted(map(_row_of, links.items()))):
        values = ", ".join(str(row) for row in some)
        token = hashlib.sha256(values.encode()).hexdigest()
        await table.command(
            f"INSERT INTO {table.name}_links (org_id, repo_id, job_id, attempt, machine_id, fence) "  # noqa: S608 - numbers
            f"SETTINGS async_insert = 0, insert_deduplication_token = '{token}' VALUES {values}"
        )


def _row_of(item: tuple[Source, JobLink]) -> tuple[int, ...]:
    source, link = item
    row = (source.org_id, link.repo_id, link.job_id, link.attempt, source.machine_id, source.fence)
    return tuple(map(int, row))  # what becomes part of a statement is a number, whoever calls


def _in_parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
