"""The statement that searches output: the newest matches first, in an org, a repo or some machines. Pure.

Newest means by the key: the machines that came last first, and of each its last lines first. So the store reads from
the key's end and stops at the limit; by time it would have to read every match of a common word. A line that is stored
twice until parts are merged is told twice, one after the other, and dropped by the caller: a statement that did it
would have to go on reading. Called by the search route.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from nimbus.logging_pipeline.rows import Place
from nimbus.logging_pipeline.store.filters import RowFilter, Select, plan_filter

_NEWEST = "org_id DESC, machine_id DESC, fence DESC, seq DESC"
_SOON = ("max_block_size = 8192",)  # one granule: the reading ends closer to the last match that is wanted
SHOWN_CHARS = 4096  # of a line among hits: a thousand of them fit into one answer; its permalink shows the whole


@dataclass(frozen=True, slots=True)
class SearchScope:
    """Where one org's output is searched: everywhere, in one repo, or in some machines."""

    org_id: int
    repo_id: int | None = None
    machines: tuple[int, ...] | None = None


class Hit(msgspec.Struct, gc=False):
    """A line that matches, as the store tells it."""

    machine_id: int
    fence: int
    seq: int
    job_id: int  # 0: not known yet when the line came; the machine's link tells it
    repo_id: int
    step: int
    stream: str
    level: str
    ts_ms: int
    shown: str
    chars: int

    @property
    def place(self) -> Place:
        return Place(self.machine_id, self.fence, self.seq)


class Link(msgspec.Struct, gc=False):
    """Which job a machine ran under one fence."""

    machine_id: int
    fence: int
    job_id: int
    repo_id: int


class Owner(msgspec.Struct, gc=False):
    """Whose something is."""

    org_id: int


def plan_search(table: str, scope: SearchScope, wanted: RowFilter, after: Place | None, limit: int) -> Select:
    """At most `limit` matches that are older than `after`, the newest first, one that is stored twice twice."""
    within, parameters = plan_scope(table, scope)
    conditions, more = plan_filter(wanted)
    parameters |= more | {"limit": limit}
    if after is not None:
        conditions.append(
            "(machine_id < {am:UInt64} OR (machine_id = {am:UInt64} AND "
            "(fence < {af:UInt64} OR (fence = {af:UInt64} AND seq < {aseq:UInt64}))))"
        )
        parameters |= {"am": after.machine_id, "af": after.fence, "aseq": after.seq}
    return Select(
        "SELECT machine_id, fence, seq, job_id, repo_id, step, stream, level, "  # noqa: S608 - checked names, typed parameters
        f"substringUTF8(message, 1, {SHOWN_CHARS}) AS shown, lengthUTF8(message) AS chars, "
        f"toUnixTimestamp64Milli(ts) AS ts_ms FROM {table} WHERE {' AND '.join([*within, *conditions])} "
        f"ORDER BY {_NEWEST} LIMIT {{limit:UInt32}}",
        parameters,
        _SOON,
    )


def plan_scope(table: str, scope: SearchScope) -> tuple[list[str], dict[str, object]]:
    """The conditions that keep a statement within one org and what is named of it."""
    conditions, parameters = ["org_id = {org:UInt64}"], dict[str, object](org=scope.org_id)
    if scope.machines is not None:
        conditions.append("machine_id IN {machines:Array(UInt64)}")
        parameters["machines"] = list(scope.machines)
    if scope.repo_id is not None:
        conditions.append(
            f"(machine_id, fence) IN (SELECT machine_id, fence FROM {table}_links "  # noqa: S608 - checked names, typed parameters
            "WHERE org_id = {org:UInt64} AND repo_id = {repo:UInt64})"
        )
        parameters["repo"] = scope.repo_id
    return conditions, parameters


def plan_links(table: str, org_id: int, machines: list[int]) -> Select:
    """Which jobs these machines of an org ran."""
    return Select(
        f"SELECT DISTINCT machine_id, fence, job_id, repo_id FROM {table}_links "  # noqa: S608 - checked names, typed parameters
        "WHERE org_id = {org:UInt64} AND machine_id IN {machines:Array(UInt64)}",
        {"org": org_id, "machines": machines},
    )


def plan_repo_owner(table: str, repo_id: int) -> Select:
    """Whose repo it is, for operators whose token names no org."""
    return Select(
        f"SELECT org_id FROM {table}_links WHERE repo_id = {{repo:UInt64}} LIMIT 1",  # noqa: S608 - checked names
        {"repo": repo_id},
    )
