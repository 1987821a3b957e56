"""The statements behind a download: how many bytes of text each stretch of a job's output makes, and its rows. Pure.

The store adds the lengths up, so that a download knows its size, and where a byte is, before it has read a line. Called
by the download.
"""

from __future__ import annotations

import msgspec

from nimbus.logging_pipeline.rows import END_STREAM, ReadScope
from nimbus.logging_pipeline.store.filters import Select
from nimbus.logging_pipeline.store.pages import COLUMNS
from nimbus.logging_pipeline.store.search import SearchScope, plan_scope

BLOCK_ROWS = 512  # numbers in one stretch: at 64 KiB a line, what is in memory at once stays below 32 MiB


class Extent(msgspec.Struct, gc=False):
    """One stretch of the output of a machine under one fence."""

    machine_id: int
    fence: int
    block: int
    lines: int
    bytes: int
    last: int


def plan_extents(table: str, scope: ReadScope, line_bytes: int, console_bytes: int) -> Select:
    """All stretches in their order; each line has `line_bytes` of ours about it, each of the console's some more."""
    within, parameters = plan_scope(table, SearchScope(scope.org_id, machines=scope.machines))
    if scope.fence is not None:
        within.append("fence = {only:UInt64}")
        parameters["only"] = scope.fence
    return Select(
        f"SELECT machine_id, fence, intDiv(seq, {BLOCK_ROWS}) AS block, count() AS lines, max(seq) AS last, "  # noqa: S608 - checked names, typed parameters
        f"sum(length(message) + {line_bytes:d} + if(stream = 'console', {console_bytes:d}, 0)) AS bytes "
        f"FROM {table} FINAL WHERE {' AND '.join(within)} AND stream != '{END_STREAM}' "
        "GROUP BY machine_id, fence, block ORDER BY machine_id, fence, block",
        parameters,
    )


def plan_stretch(table: str, org_id: int, first: Extent, last: Extent) -> Select:
    """The rows from the first stretch to the last, both of one machine and fence."""
    return Select(
        f"SELECT {COLUMNS} FROM {table} WHERE org_id = {{org:UInt64}} AND machine_id = {{machine:UInt64}} "  # noqa: S608 - checked names, typed parameters
        "AND fence = {fence:UInt64} AND seq >= {low:UInt64} AND seq <= {high:UInt64} "
        f"AND stream != '{END_STREAM}' "
        "ORDER BY org_id, machine_id, fence, seq LIMIT 1 BY org_id, machine_id, fence, seq",
        {
            "org": org_id,
            "machine": first.machine_id,
            "fence": first.fence,
            "low": first.block * BLOCK_ROWS,
            "high": last.last,
        },
    )
