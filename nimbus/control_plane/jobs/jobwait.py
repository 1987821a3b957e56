"""When a job's turn comes: an estimate from what ended lately on hosts that fit, and the page that tells it.

An estimate is a guess and says what it is based on; where nothing is known it is None, with the reason. Pure but for
two reads: why it waits (waiting.py) and what the hosts do. Called by jobs_api.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nimbus.control_plane.jobs.jobs import require_job
from nimbus.control_plane.jobs.waiting import (
    KNOWN_S,
    Wait,
    WaitCode,
    find_facts,
    judge_wait,
    parse_host,
    select_fitting,
)
from nimbus.control_plane.services import JobRules, Services
from nimbus.model.job import JobState
from nimbus.model.vm import Shape
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import Fields
from nimbus.wire.vmjson import Json, parse_shape

_SQL = load_queries("nimbus.control_plane", "queries", "waiting.sql")
MEASURED_S = 900.0  # what ended longer ago tells little of now
MOST_ENDS = 500  # the newest: a busy service has that many within minutes, and more would only cost
_ENDED_BY_ENDS = frozenset({WaitCode.TURN, WaitCode.CAP, WaitCode.MAKING_ROOM})
_RUNNING = {"code": "running", "reason": "nobody: it runs"}
_NO_PLACE = dict.fromkeys(("place", "length", "ahead", "estimate_s", "basis"))


@dataclass(frozen=True)
class Pace:
    """How fast machines end where this one may go."""

    whose: str  # "hosts that fit", or the org whose cap it is
    ends: int  # within the span
    span_s: float
    lengths_s: float  # of those that ended, together
    holds: int  # machines held there now
    room: bool = False  # a host has room for it now


@dataclass(frozen=True)
class Estimate:
    """Seconds until a machine is free for it, and what that is based on."""

    seconds: float | None
    basis: str


def estimate_wait(ahead: int, pace: Pace) -> Estimate:
    """Pure: when so many have gone before. The longer the queue before it the later, and never in the past."""
    if pace.room and ahead == 0:
        return Estimate(0.0, "a host has room for it now")
    if pace.ends == 0 or pace.span_s <= 0:
        return Estimate(None, f"no machine of {pace.whose} ended within the last {MEASURED_S / 60:g} minutes")
    # hosts may have stood idle for most of the span: what they hold now, at the usual length, ends at least so fast
    rates = [pace.ends / pace.span_s]
    if pace.lengths_s > 0:
        rates.append(pace.holds * pace.ends / pace.lengths_s)
    every_s = 1 / max(rates)
    basis = (
        f"of {pace.whose} a machine ends every {every_s:.3g} s, measured over the last {pace.span_s / 60:.2g} minutes"
    )
    return Estimate((ahead + 1) * every_s, basis)


async def explain_job(services: Services, job_id: int, caller_org: int | None) -> Json:
    """Whether the job waits, what for, its place and an estimate; NotFound where the caller's org has none."""
    return await services.database.run(_explain, job_id, caller_org, services.job_rules)


async def _explain(transaction: Transaction, job_id: int, caller_org: int | None, rules: JobRules) -> Json:
    job = await require_job(transaction, job_id, caller_org)
    found = await find_facts(transaction, [job["job_id"]])
    if not found:  # it has begun, maybe since it was found a moment ago
        ended = JobState(job["state"]) in {JobState.COMPLETED, JobState.LOST}
        told = {"code": "ended", "reason": "nobody: it has ended"} if ended else _RUNNING
        return {"job_id": job["job_id"], "waits": False, **told, **_NO_PLACE}
    [facts] = found
    hosts = await transaction.fetch(_SQL["pace"], KNOWN_S, facts["org_id"], MEASURED_S, MOST_ENDS)
    wait = judge_wait(facts, map(parse_host, hosts), rules)
    estimate = plan_estimate(wait, facts, hosts)
    return {
        "job_id": job["job_id"],
        "waits": True,
        "code": str(wait.code),
        "reason": wait.words,
        "place": wait.place,
        "length": wait.length,
        "ahead": wait.ahead,
        "estimate_s": None if estimate.seconds is None else round(estimate.seconds, 1),
        "basis": estimate.basis,
    }


def plan_estimate(wait: Wait, facts: Row, hosts: Iterable[Row]) -> Estimate:
    """Pure: by what this wait is estimated; None where no machine's end would help."""
    if wait.place is None or wait.ahead is None or wait.code not in _ENDED_BY_ENDS:
        return Estimate(None, "nobody can tell: what it waits for is no machine's end")
    shape = parse_shape(Fields(facts["shape"], "stored shape"))
    fitting = [row for row in hosts if select_fitting(facts, shape, [parse_host(row)])]
    span_s = min((row["span_s"] for row in fitting), default=MEASURED_S)
    if wait.code is WaitCode.CAP:
        counted = (_sum(fitting, "org_ends"), span_s, _sum(fitting, "org_lengths_s"), _sum(fitting, "org_holds"))
        return estimate_wait(wait.place - 1, Pace(facts["login"], *counted))
    counted = (_sum(fitting, "ends"), span_s, _sum(fitting, "lengths_s"), _sum(fitting, "holds"))
    room = any(_has_room(row, shape) for row in fitting)
    return estimate_wait(wait.ahead, Pace("hosts that fit", *counted, room))


def _sum(rows: Iterable[Row], name: str) -> Any:
    return sum(row[name] for row in rows)


def _has_room(row: Row, shape: Shape) -> bool:
    """As the host last told; one that has told nothing yet has none that we know of."""
    if row["held"] or row["barred"] or row["free_slots"] is None:
        return False
    return bool(row["free_slots"] >= 1 and row["free_cpus"] >= shape.cpus and row["free_mem_mib"] >= shape.mem_mib)
