"""The statements that count output: of some machines, or of an org by job. Pure.

FINAL: a row that is stored twice until parts are merged counts once. It merges in the order of the key while it reads,
so its memory does not grow with the rows. The end row is no line and counts nowhere. Called by the count routes.
"""

from __future__ import annotations

import msgspec

from nimbus.logging_pipeline.rows import ReadScope
from nimbus.logging_pipeline.store.filters import RowFilter, Select, plan_filter
from nimbus.logging_pipeline.store.search import SearchScope, plan_scope

_SUMS = (
    "count() AS lines, sum(length(message)) AS bytes, "
    "toUnixTimestamp64Milli(min(ts)) AS first_ms, toUnixTimestamp64Milli(max(ts)) AS last_ms"
)


class StepSum(msgspec.Struct, gc=False):
    """Lines of one level and stream in one step."""

    step: int
    level: str
    stream: str
    lines: int
    bytes: int
    first_ms: int
    last_ms: int


class MachineSum(msgspec.Struct, gc=False):
    """Lines of one level and stream that a machine printed under one fence, and the job it ran; 0 where not known."""

    machine_id: int
    fence: int
    job_id: int
    repo_id: int
    level: str
    stream: str
    lines: int
    bytes: int
    first_ms: int
    last_ms: int


def plan_step_sums(table: str, scope: ReadScope, wanted: RowFilter) -> Select:
    """The lines of some machines by step, level and stream."""
    within, parameters = plan_scope(table, SearchScope(scope.org_id, machines=scope.machines))
    conditions, more = plan_filter(wanted)
    if scope.fence is not None:
        conditions.append("fence = {only:UInt64}")
        parameters["only"] = scope.fence
    return Select(
        f"SELECT step, level, stream, {_SUMS} FROM {table} FINAL "  # noqa: S608 - checked names, typed parameters
        f"WHERE {' AND '.join([*within, *conditions])} AND stream != 'end' "
        "GROUP BY step, level, stream ORDER BY step",
        parameters | more,
    )


def plan_machine_sums(table: str, scope: SearchScope, wanted: RowFilter) -> Select:
    """The lines of an org, or of a repo, by machine, with the job that each machine ran."""
    within, parameters = plan_scope(table, scope)
    conditions, more = plan_filter(wanted)
    return Select(
        "SELECT machine_id, fence, linked.job_id AS job_id, linked.repo_id AS repo_id, level, stream, lines, bytes, "  # noqa: S608 - checked names, typed parameters
        "first_ms, last_ms FROM ("
        f"SELECT machine_id, fence, level, stream, {_SUMS} FROM {table} FINAL "
        f"WHERE {' AND '.join([*within, *conditions])} AND stream != 'end' "
        "GROUP BY machine_id, fence, level, stream) AS printed "
        "LEFT ANY JOIN (SELECT machine_id, fence, job_id, repo_id "
        f"FROM {table}_links WHERE org_id = {{org:UInt64}}) AS linked USING (machine_id, fence)",
        parameters | more,
    )
