"""Is this still the database that the leases were written to, and did its clock only go on? Else granting pauses.

A promoted replica may lack the newest grants and renewals: a machine request that it shows as queued, or as overdue,
may have a holder. A clock that jumps forward makes every lease look overdue. Either way a holder believes in its
lease for one ttl at most, so nothing is granted and no lease expires for that long; whoever renews meanwhile
keeps its lease. A clock is judged by CLOCK_BOOTTIME since this host's own last look; where only others (or another
boot of it) looked before, time that passed and a step look alike, and count as a step once they are too much.
Never ends or grants a lease. Called inside the transactions of leases.py and silence.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import structlog

from nimbus.model.errors import Unavailable
from nimbus.model.lease import LeasePolicy
from nimbus.runtime.postgres import Row, Transaction, load_queries

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "watch.sql")
# Of a look by another host: sweepers look once a second, so a shorter time says nothing, however short the ttl.
A_MOMENT_S = 3.0
_BY_START = "started/"  # what database_identity() begins with where it may not see more


@dataclass(frozen=True)
class HostClock:
    """A reading of the clock that nobody sets, on the host that this process runs on."""

    boot_id: str
    boottime_s: float


@cache
def _boot_id() -> str:
    """One boot of one host, as this process counts its time: a time namespace has a boot-time clock of its own."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    namespace = Path("/proc/self/ns/time")
    return f"{boot_id} {namespace.readlink()}" if namespace.is_symlink() else boot_id


def read_host_clock() -> HostClock:
    return HostClock(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True)
class Sight:
    """One look: the database's identity and clock, read between two readings of the host's clock."""

    identity: str
    clock: datetime
    boot_id: str
    before_s: float
    after_s: float


@dataclass(frozen=True)
class Watched:
    """What a look came to."""

    paused: bool
    cause: str | None = None
    begins: bool = False  # this look saw the reason
    ends: bool = False  # this look saw the pause's end


@dataclass(frozen=True)
class WatchTerms:
    """How long granting pauses, and what step of the clock is too much."""

    policy: LeasePolicy
    host_clock: Callable[[], HostClock] = read_host_clock

    @property
    def tolerance_s(self) -> float:
        return self.policy.margin_of(self.policy.ttl_s) / 2


def judge_clock(seen: Sight, now: Sight, tolerance_s: float) -> str | None:
    """Pure: why the database's clock can't be trusted to have only gone on; None where it did."""
    moved_s = (now.clock - seen.clock).total_seconds()
    if seen.boot_id != now.boot_id:
        if -tolerance_s <= moved_s <= max(tolerance_s, A_MOMENT_S):
            return None
        return f"nobody watched the database's clock while it moved by {moved_s:.1f} s"
    least_s, most_s = now.before_s - seen.after_s, now.after_s - seen.before_s
    if least_s - tolerance_s <= moved_s <= most_s + tolerance_s:
        return None
    return f"the database's clock was stepped by {moved_s - least_s:.1f} s"


async def may_grant(transaction: Transaction, terms: WatchTerms) -> bool:
    """Whether a queued machine request is really free to be leased. Takes no lock where nothing has changed."""
    return not (await glance(transaction, terms)).paused


async def glance(transaction: Transaction, terms: WatchTerms) -> Watched:
    """What the last look came to, where this is still the same database; else a look of our own."""
    row = await transaction.fetchrow(_SQL["watched"])
    if row is not None and row["same"]:
        return Watched(row["paused"])
    return await watch_database(transaction, terms)


async def watch_database(transaction: Transaction, terms: WatchTerms) -> Watched:
    """Look, compare with the last look, and keep this one. Unavailable where the answer came too late to compare."""
    kept = await transaction.fetchrow(_SQL["lock_watch"])
    assert kept is not None  # noqa: S101 -- the migration wrote it, and nobody may delete it
    before = terms.host_clock()
    told = await transaction.fetchrow(_SQL["look"])
    assert told is not None  # noqa: S101 -- a SELECT without FROM
    after = terms.host_clock()
    now = Sight(told["identity"], told["clock"], after.boot_id, before.boottime_s, after.boottime_s)
    if now.after_s - now.before_s > terms.tolerance_s:
        raise Unavailable("the database took too long to tell its clock")
    cause = await _find_cause(transaction, kept, now, terms.tolerance_s)
    await transaction.execute(_SQL["keep_sight"], now.boot_id, now.clock, now.before_s, now.after_s)
    row = await transaction.fetchrow(_SQL["keep_watch"], now.identity, cause, terms.policy.ttl_s)
    assert row is not None  # noqa: S101 -- locked above
    ends = kept["grants_paused_until"] is not None and not row["paused"]
    return Watched(row["paused"], row["pause_cause"], begins=cause is not None, ends=ends)


async def _find_cause(transaction: Transaction, kept: Row, now: Sight, tolerance_s: float) -> str | None:
    if kept["identity"] is None:
        return None  # the first look of all
    if kept["identity"] != now.identity:
        return f"another database answers: {now.identity} instead of {kept['identity']}"
    last = await transaction.fetchrow(_SQL["last_sight"], now.boot_id)
    cause = None if last is None else judge_clock(Sight(identity=now.identity, **dict(last)), now, tolerance_s)
    if cause is not None and await transaction.fetchval(_SQL["leases_held"]):
        return cause
    return None  # a step hurts nobody while nobody holds a lease


def tell(watched: Watched, pause_s: float) -> None:
    """The look's events for the log; after the commit, because a transaction may be run again."""
    if watched.begins:
        log.warning("grants.paused", cause=watched.cause, pause_s=pause_s)
    elif watched.ends:
        log.info("grants.resumed")


async def warn_if_blind(transaction: Transaction) -> None:
    """Say once, at the start, that the server hides what tells a promoted replica."""
    told = await transaction.fetchrow(_SQL["look"])
    if told is not None and told["identity"].startswith(_BY_START):
        log.warning("database.identity_hidden", consequence="granting pauses after each restart of PostgreSQL")
