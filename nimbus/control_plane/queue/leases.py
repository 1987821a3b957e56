"""Leases of machine requests: grant, renew, finish. Steps 3 and 15 of the straight line.

Only Postgres' clock decides. A write by a holder carries machine, lease, fence and agent, and is Fenced where any
of them is not the current one or the deadline has passed. Never mints runners and never talks to an agent; a lease
that nobody speaks for ends in silence.py. Called by agents_api.py, waitroom.py and runners.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from nimbus.control_plane.keys.cachetokens import mint_cache_token
from nimbus.control_plane.keys.minting import mint_machine_token
from nimbus.control_plane.queue.endings import Teller, describe_held, end_lease
from nimbus.control_plane.queue.outcome import judge_finish
from nimbus.control_plane.queue.watch import may_grant, watch_database
from nimbus.control_plane.services import MACHINES, LeaseTerms, Services
from nimbus.model.errors import Fenced
from nimbus.model.forge import PASSING
from nimbus.model.labels import IMPLICIT
from nimbus.model.lease import LeaseKey, MachineState
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import Fields
from nimbus.wire.leaseapi import (
    FinishReply,
    FinishRequest,
    Grant,
    GrantTimes,
    HeldState,
    JobLink,
    LeaseRequest,
    MachineKind,
    RenewReply,
    RenewRequest,
)
from nimbus.wire.vmjson import parse_command, parse_shape, render_usage

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "leases.sql")
_PASSING_PROBLEMS = [str(kind) for kind in sorted(PASSING)]
_HELD = frozenset({MachineState.LEASED, MachineState.RUNNING})


# --- grant -------------------------------------------------------------------------------------------------------


async def grant_lease(services: Services, agent_id: str, request: LeaseRequest) -> Grant | None:
    """The machine request whose turn it is among those that fit, leased to this agent; None where there is none."""
    return (await look_for_work(services, agent_id, request)).grant


@dataclass(frozen=True)
class Look:
    """What came of one look into the queue. `whole`: no org was left out because somebody else was counting."""

    grant: Grant | None
    whole: bool


async def look_for_work(services: Services, agent_id: str, request: LeaseRequest) -> Look:
    """One look for this agent, and whether it saw everything; where it did not, a look a moment later may find more."""
    if request.free_slots < 1:
        return Look(None, whole=True)
    terms = services.lease_terms
    asked = _plan_look(agent_id, request, terms)
    [row] = await services.database.fetch(_SQL["grant_lease"], *asked.args(None))
    if not row["same"] or row["uncounted"]:
        with_care = await services.database.run(_grant_with_care, asked, terms)
        if with_care is None:
            return Look(None, whole=True)
        row = with_care
    if row["reserved"] is not None:
        services.metrics.hosts_reserved.inc()
        log.info("lease.reserved", machine=row["reserved"], agent=agent_id)
    if row["machine_id"] is None:
        return Look(None, whole=not row["left_out"])
    grant = _parse_granted(row, services)
    services.metrics.leases_granted.inc()
    log.info("lease.granted", machine=grant.key.machine_id, fence=grant.key.fence, agent=agent_id, org=grant.org_id)
    return Look(grant, whole=True)


@dataclass(frozen=True)
class _Asked:
    """Who asks with what room, as `grant_lease` of leases.sql takes it."""

    agent_id: str
    room: tuple[object, ...]
    arch: str
    starvation_s: float

    def args(self, counting: bool | None) -> tuple[object, ...]:
        return (self.agent_id, *self.room, self.arch, counting, _PASSING_PROBLEMS, self.starvation_s)


def _plan_look(agent_id: str, request: LeaseRequest, terms: LeaseTerms) -> _Asked:
    labels = sorted({label.lower() for label in request.labels})
    offered = [*labels, *IMPLICIT, request.arch] if labels else []
    answer_s = min(terms.answer_s, terms.policy.ttl_s)
    room = (request.free_cpus, request.free_mem_mib, offered, answer_s, request.free_disk_mib)
    return _Asked(agent_id, room, request.arch, terms.starvation_s)


async def _grant_with_care(transaction: Transaction, asked: _Asked, terms: LeaseTerms) -> Row | None:
    """The same look where the database may be another one, or where what capped orgs hold must be counted."""
    if not await may_grant(transaction, terms.watch):
        return None
    # a statement of its own: the next one then sees what whoever counted last has committed
    counting = await transaction.fetchval(_SQL["lock_caps"])
    return await transaction.fetchrow(_SQL["grant_lease"], *asked.args(counting))


def _parse_granted(row: Row, services: Services) -> Grant:
    key = LeaseKey(row["machine_id"], str(row["lease_id"]), row["fence"])
    command = None if row["command"] is None else parse_command(Fields(row["command"], "stored command"))
    # also for an agent's own NIMBUS_LOG_SINK_URL
    token = mint_machine_token(services.keys.current, key, row["org_id"], row["agent_id"])
    webhook = None if row["webhook_at"] is None else _unix_ms(row["webhook_at"])
    return Grant(
        key=key,
        ttl_s=services.lease_terms.policy.ttl_s,
        org_id=row["org_id"],
        kind=MachineKind(row["kind"]),
        shape=parse_shape(Fields(row["shape"], "stored shape")),
        image=row["image"],
        labels=tuple(row["labels"]),
        command=command,
        log_url=services.log_url,
        log_token=token,
        times_ms=GrantTimes(webhook, _unix_ms(row["created_at"]), _unix_ms(row["leased_at"])),
        cache_token=mint_cache_token(services.cache_terms, key, row["org_id"]),
    )


def _unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


# --- renew -------------------------------------------------------------------------------------------------------


async def renew_lease(services: Services, agent_id: str, request: RenewRequest) -> RenewReply:
    """A new deadline for a lease that is still held."""
    terms = services.lease_terms
    rows = await services.database.fetch(_SQL["renew"], *_plan_renewal(agent_id, request, terms))
    try:
        row = rows[0] if rows else await services.database.run(_renew_late, agent_id, request, terms)
    except Fenced:
        services.metrics.leases_fenced.inc()
        raise
    job = None if row["job_id"] is None else JobLink(row["job_id"], row["repo_id"])
    reply = RenewReply(ttl_s=row["ttl_s"], cancel=row["cancel_requested"], job=job)
    if not request.wants_cache_token:
        return reply
    return replace(reply, cache_token=mint_cache_token(services.cache_terms, request.key, row["org_id"]))


def _plan_renewal(agent_id: str, request: RenewRequest, terms: LeaseTerms) -> tuple[object, ...]:
    """What `renew` of leases.sql takes."""
    key = request.key
    usage = None if request.usage is None else render_usage(request.usage)
    runs = request.state is HeldState.RUNNING
    return (key.machine_id, key.lease_id, key.fence, agent_id, runs, terms.policy.ttl_s, terms.in_progress_ttl_s, usage)


async def _renew_late(transaction: Transaction, agent_id: str, request: RenewRequest, terms: LeaseTerms) -> Row:
    """The same where the lease seems to be over: Fenced, unless it is the clock that moved."""
    await check_lease(transaction, terms, agent_id, request.key)
    row = await transaction.fetchrow(_SQL["renew"], *_plan_renewal(agent_id, request, terms))
    if row is None:
        raise _fenced(request.key)
    return row


async def check_lease(transaction: Transaction, terms: LeaseTerms, agent_id: str, key: LeaseKey) -> Row:
    """The locked machine row of a lease that is held right now; Fenced otherwise. Also for runner registration."""
    row = await _lock_granted(transaction, agent_id, key)
    if not await _is_alive(transaction, terms, row):
        raise _fenced(key)
    return row


async def _lock_granted(transaction: Transaction, agent_id: str, key: LeaseKey) -> Row:
    row = await transaction.fetchrow(_SQL["lock_held"], key.machine_id, key.lease_id, key.fence, agent_id)
    if row is None:
        raise _fenced(key)
    return row


async def _is_alive(transaction: Transaction, terms: LeaseTerms, row: Row) -> bool:
    """Whether the lease is held. Before time alone ends it, the clock is looked at: it may be that which moved."""
    if row["alive"] or row["state"] not in _HELD:
        return bool(row["alive"])
    return (await watch_database(transaction, terms.watch)).paused


def _fenced(key: LeaseKey) -> Fenced:
    return Fenced(f"the lease of machine {key.machine_id} under fence {key.fence} has ended: stop it, write no more")


# --- the end -----------------------------------------------------------------------------------------------------


async def finish_lease(services: Services, agent_id: str, request: FinishRequest) -> FinishReply:
    """Record how the machine ended. The same lease may say it again and hears the same answer."""
    try:
        state = await services.database.run(_finish, agent_id, request, services.lease_terms)
    except Fenced:
        services.metrics.leases_fenced.inc()
        raise
    log.info("lease.finished", machine=request.key.machine_id, ending=str(request.ending), state=str(state))
    if state is MachineState.QUEUED:
        await services.bell.ring(MACHINES)
    return FinishReply(state)


async def _finish(transaction: Transaction, agent_id: str, request: FinishRequest, terms: LeaseTerms) -> MachineState:
    key = request.key
    row = await _lock_granted(transaction, agent_id, key)
    if row["state"] not in _HELD:
        return MachineState(await transaction.fetchval(_SQL["first_answer"], key.machine_id, key.fence))
    if not await _is_alive(transaction, terms, row):
        raise _fenced(key)
    held = replace(describe_held(row), refused=row["refused"])
    verdict = judge_finish(held, request.ending, terms.max_attempts)
    return await end_lease(transaction, row, verdict, request, Teller.AGENT)
