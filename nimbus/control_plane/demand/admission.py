"""Admission: jobs that GitHub told of ask for machines as fast as their org's budget allows, the oldest first.

demand.py records each job and keeps it (`limited_until`); here it is admitted at once, or else when the budget has
room: by a timer, which after a restart goes on with what the rows say. What was taken and not used goes back.
The budget is never asked inside a transaction, and no job is ever refused or lost for want of it. inbox.py and
polling.py call `announce` after each event; forge.py runs the sweepers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
import trio

from nimbus.control_plane.demand.demand import (
    DemandRules,
    LabelSet,
    Recorded,
    balance,
    level_of,
    lock_org,
    rejudge_org,
    waiting_orgs,
)
from nimbus.control_plane.orgs.budget import key_of, limit_of
from nimbus.control_plane.rounds import begin_round
from nimbus.control_plane.services import ADMISSION, MACHINES, RUNNERS, Services
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.runtime.windows import Limit, Taken

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "admission.sql")

ADMITTED_AT_ONCE = 100  # in one transaction
PACE_S = 0.2  # between two rounds while jobs pour in: one over 5,000 kept ones takes 30 ms
ROUND = "demand"
SETTLE_S = 2.0


@dataclass(frozen=True)
class Admitted:
    """The jobs that were admitted, and how many machines that queued."""

    jobs: frozenset[int]
    queued: int


async def announce(services: Services, recorded: Recorded, rules: DemandRules) -> Recorded:
    """After the commit: have the job admitted, wake whom it concerns, and count what only a repair told us."""
    if recorded.drift is not None:
        services.metrics.drift.labels(recorded.drift).inc()
        log.warning("demand.drift", job=recorded.job_id, state=str(recorded.state), learned=str(recorded.drift))
    if recorded.asks:
        recorded = await _ask(services, recorded, rules)
    if recorded.queued:
        await services.bell.ring(MACHINES)
    await services.bell.ring(RUNNERS)
    return recorded


async def _ask(services: Services, recorded: Recorded, rules: DemandRules) -> Recorded:
    """Admit the org's oldest job, this one as a rule; the timer sees to those that have to wait."""
    admitted = Admitted(frozenset(), 0)
    try:
        admitted = await admit(services, rules, recorded.org_id, 1, recorded) or admitted
    except Unavailable as error:
        log.warning("admission.postponed", org=recorded.org_id, reason=str(error))
    if not admitted.jobs:
        services.metrics.org_rate_limits_hit.inc()
        log.info("job.kept", job=recorded.job_id, org=recorded.org_id)
    if recorded.job_id not in admitted.jobs:
        services.bell.ring_nowait(ADMISSION)
    return replace(recorded, queued=recorded.queued + admitted.queued)


async def admit(
    services: Services, rules: DemandRules, org_id: int, wanted: int, asker: Recorded | None = None
) -> Admitted | None:
    """Admit so many of the org's oldest kept jobs, as far as its budget goes; None where it has no room.

    Only the timer's rounds (without `asker`) write when it will have room for the others: one round for a whole burst.
    """
    limit = limit_of(services.job_rules)
    taken = await services.limiter.take(key_of(org_id), limit, wanted, hold=True)
    if not taken.granted and asker is not None:
        return None
    used = taken.granted
    try:
        admitted = await services.database.run(_admit, org_id, taken, limit, rules, asker)
        used = len(admitted.jobs)
    finally:
        with trio.move_on_after(SETTLE_S, shield=True):
            await services.limiter.settle(key_of(org_id), limit, taken, used)
    return admitted


async def _admit(
    transaction: Transaction, org_id: int, taken: Taken, limit: Limit, rules: DemandRules, asker: Recorded | None
) -> Admitted:
    await lock_org(transaction, org_id)
    rows = await transaction.fetch(_SQL["admit"], org_id, taken.granted) if taken.granted else []
    if taken.retry_after_s > 0 and asker is None:
        await transaction.execute(_SQL["tell"], org_id, taken.retry_after_s, limit.interval_s / limit.most)
    queued = 0
    for label_set, row in _first_of_each_set(org_id, rows, rules).items():
        origin: tuple[int | None, datetime | None] = (row["installation_id"], None)
        if asker is not None and row["job_id"] == asker.job_id:
            origin = (asker.installation_id, asker.webhook_at)
        more, _ = await balance(transaction, label_set, rules, *origin)
        queued += more
    return Admitted(frozenset(row["job_id"] for row in rows), queued)


def _first_of_each_set(org_id: int, rows: Sequence[Row], rules: DemandRules) -> dict[LabelSet, Row]:
    """The oldest job of each label set, the oldest first: all of a set get their machines together."""
    sets: dict[LabelSet, Row] = {}
    for row in sorted(rows, key=lambda row: int(row["job_id"])):
        sets.setdefault(level_of(org_id, row["repo_id"], row["labels"], rules), row)
    return sets


# --- the timer -----------------------------------------------------------------------------------------------------


async def admit_due(services: Services, rules: DemandRules) -> int:
    """Admit the kept jobs whose time has come, of every org, as far as its budget goes; how many machines."""
    queued = 0
    # the first is never told a later time than one interval: a clock that ran ahead, or a longer interval, told it
    latest_s = limit_of(services.job_rules).interval_s
    for row in await services.database.run(_lines):
        if not 0 < row["due_s"] <= latest_s:
            admitted = await admit(services, rules, row["org_id"], min(row["length"], ADMITTED_AT_ONCE))
            queued += 0 if admitted is None else admitted.queued
    if queued:
        await services.bell.ring(MACHINES)
    return queued


async def _next_due_s(services: Services) -> float | None:
    """In how many seconds the next kept job's time comes; None where none is kept."""
    return min((float(row["due_s"]) for row in await services.database.run(_lines)), default=None)


async def _lines(transaction: Transaction) -> Sequence[Row]:
    return await transaction.fetch(_SQL["lines"])


async def serve_admission(services: Services, rules: DemandRules) -> None:
    """Admit jobs as their time comes until cancelled; a database or budget that is away is tried again."""
    with services.bell.listen(ADMISSION) as ear:
        while True:
            wait_s = rules.sweep_s  # another process may have kept jobs and died
            try:
                await admit_due(services, rules)
                due_s = await _next_due_s(services)
                wait_s = wait_s if due_s is None else min(wait_s, due_s)
            except Unavailable as error:
                log.warning("admission.postponed", reason=str(error))
                await trio.sleep(min(error.retry_after_s, rules.sweep_s))
                continue
            await trio.sleep(PACE_S)
            with trio.move_on_after(max(0.0, wait_s - PACE_S)):
                await ear.wait()


# --- what no event brings ------------------------------------------------------------------------------------------


async def meet_demand(services: Services, rules: DemandRules) -> int:
    """Queue machines for queued jobs that have none: one failed too often, or an event was lost. How many."""
    queued = 0
    for org_id in await services.database.run(waiting_orgs):
        queued += await services.database.run(rejudge_org, org_id, rules)
    if queued:
        log.info("demand.met_late", machines=queued)
        await services.bell.ring(MACHINES)
    return queued + await admit_due(services, rules)


async def sweep_demand(services: Services, rules: DemandRules) -> None:
    """Meet demand until cancelled; a database that is away is tried again, anything else is a bug and escapes."""
    while True:
        try:
            if await services.database.run(begin_round, ROUND, rules.sweep_s):
                await meet_demand(services, rules)
        except Unavailable as error:
            log.warning("demand.postponed", reason=str(error))
        await trio.sleep(rules.sweep_s)
