"""The statement that searches output: the newest matches first, in an org, a repo or some machines. Pure.

Newest means by the key: the machines that came last first, and of each its last lines first. So the store reads from
the key's end and stops at the limit; by time it would have to read every match of a common word. Repetitions are
dropped from what was found, not among all matches, for the same reason. Called by the search route.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from nimbus.logging_pipeline.rows import Place
from nimbus.logging_pipeline.store.filters import RowFilter, Select, plan_filter

_KEY = "org_id, machine_id, fence, seq"
_NEWEST = "org_id DESC, machine_id DESC, fence DESC, seq DESC"
SHOWN_CHARS = 4096  # of a line among hits: a thousand of them fit into one answer; its permalink shows the whole
SPARE = 2  # how many rows are looked for with each hit: a row may be stored twice until parts are merged


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
    step: int
    stream: str
    level: str
    ts_ms: int
    shown: str
    chars: int
    copies: int  # of all the lines that were found, those that are stored twice twice

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
    """At most `limit` matches that are older than `after`, the newest first."""
    found = plan_matches(table, scope, wanted, after, limit * SPARE)
    return Select(
        "SELECT machine_id, fence, seq, step, stream, level, "  # noqa: S608 - checked names, typed parameters
        f"substringUTF8(message, 1, {SHOWN_CHARS}) AS shown, lengthUTF8(message) AS chars, "
        f"count() OVER () AS copies, toUnixTimestamp64Milli(ts) AS ts_ms FROM ({found.sql}) "
        f"ORDER BY {_NEWEST} LIMIT 1 BY {_KEY} LIMIT {{limit:UInt32}}",
        found.parameters | {"limit": limit},
    )


def plan_matches(table: str, scope: SearchScope, wanted: RowFilter, after: Place | None, count: int) -> Select:
    """The newest matches, those that are stored twice twice."""
    within, parameters = plan_scope(table, scope)
    conditions, more = plan_filter(wanted)
    parameters |= more | {"found": count}
    if after is not None:
        conditions.append(
            "(machine_id < {am:UInt64} OR (machine_id = {am:UInt64} AND "
            "(fence < {af:UInt64} OR (fence = {af:UInt64} AND seq < {aseq:UInt64}))))"
        )
        parameters |= {"am": after.machine_id, "af": after.fence, "aseq": after.seq}
    return Select(
        "SELECT org_id, machine_id, fence, seq, step, stream, level, message, ts "  # noqa: S608 - checked names, typed parameters
        f"FROM {table} WHERE {' AND '.join([*within, *conditions])} ORDER BY {_NEWEST} LIMIT {{found:UInt32}}",
        parameters,
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
