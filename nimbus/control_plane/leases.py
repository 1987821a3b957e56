"""Leases of machine requests: grant, renew, finish, expire. Steps 3 and 15 of the straight line.

Only Postgres' clock decides. A write by a holder carries machine, lease, fence and agent, and is Fenced where any
of them is not the current one or the deadline has passed. Never mints runners and never talks to an agent.
Called by agents_api.py, jobs.py and the sweeper in app.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import structlog
import trio

from nimbus.control_plane.outcome import Held, Verdict, judge_finish, judge_silence
from nimbus.control_plane.services import MACHINES, LeaseTerms, Services
from nimbus.control_plane.tokens import KeyRing, mint_machine_token
from nimbus.model.errors import Fenced, Unavailable
from nimbus.model.job import JobState
from nimbus.model.lease import TERMINAL, LeaseKey, MachineEvent, MachineState, advance
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
from nimbus.wire.vmjson import parse_command, parse_shape

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "leases.sql")
# What GitHub gives every self-hosted runner besides its own labels: each of our hosts serves them unasked.
IMPLICIT_LABELS = ("self-hosted", "linux", "x64")
SWEEP_S = 1.0


# --- grant -------------------------------------------------------------------------------------------------------


async def wait_grant(services: Services, agent_id: str, request: LeaseRequest) -> Grant | None:
    """A lease for this agent, waited for up to `request.wait_s`; None where nothing came.

    A caller that goes away while a lease is being granted leaves it to its ttl: the grant is one transaction.
    """
    with services.bell.listen(MACHINES) as ear:
        grant = await grant_lease(services, agent_id, request)
        with trio.move_on_after(request.wait_s):
            while grant is None and not services.stopping.is_set():
                with trio.move_on_after(services.lease_terms.poll_s):
                    await ear.wait()
                grant = await grant_lease(services, agent_id, request)
    return grant


async def grant_lease(services: Services, agent_id: str, request: LeaseRequest) -> Grant | None:
    """The oldest machine request that fits, leased to this agent; None where there is none."""
    if request.free_slots < 1:
        return None
    row = await services.database.run(_grant, agent_id, request, services.lease_terms.policy.ttl_s)
    if row is None:
        return None
    grant = _parse_granted(row, services.lease_terms, services.keys, services.log_url)
    services.metrics.leases_granted.inc()
    log.info("lease.granted", machine=grant.key.machine_id, fence=grant.key.fence, agent=agent_id, org=grant.org_id)
    return grant


async def _grant(transaction: Transaction, agent_id: str, request: LeaseRequest, ttl_s: float) -> Row | None:
    await transaction.execute(_SQL["seen_agent"], agent_id)
    labels = [label.lower() for label in request.labels]
    offered = [*labels, *IMPLICIT_LABELS] if labels else []
    return await transaction.fetchrow(
        _SQL["grant_lease"], agent_id, request.free_cpus, request.free_mem_mib, offered, ttl_s, request.free_disk_mib
    )


def _parse_granted(row: Row, terms: LeaseTerms, keys: KeyRing, log_url: str | None) -> Grant:
    key = LeaseKey(row["machine_id"], str(row["lease_id"]), row["fence"])
    command = None if row["command"] is None else parse_command(Fields(row["command"], "stored command"))
    token = mint_machine_token(keys, key, row["org_id"], row["agent_id"])  # also for an agent's own NIMBUS_LOG_SINK_URL
    webhook = None if row["webhook_at"] is None else _unix_ms(row["webhook_at"])
    return Grant(
        key=key,
        ttl_s=terms.policy.ttl_s,
        org_id=row["org_id"],
        kind=MachineKind(row["kind"]),
        shape=parse_shape(Fields(row["shape"], "stored shape")),
        image=row["image"],
        labels=tuple(row["labels"]),
        command=command,
        log_url=log_url,
        log_token=token,
        times_ms=GrantTimes(webhook, _unix_ms(row["created_at"]), _unix_ms(row["leased_at"])),
    )


def _unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


# --- renew -------------------------------------------------------------------------------------------------------


async def renew_lease(services: Services, agent_id: str, request: RenewRequest) -> RenewReply:
    """A new deadline for a lease that is still held."""
    try:
        return await services.database.run(_renew, agent_id, request, services.lease_terms)
    except Fenced:
        services.metrics.leases_fenced.inc()
        raise


async def _renew(transaction: Transaction, agent_id: str, request: RenewRequest, terms: LeaseTerms) -> RenewReply:
    row = await _lock_held(transaction, agent_id, request.key)
    if not row["alive"]:
        raise _fenced(request.key)
    await transaction.execute(_SQL["seen_agent"], agent_id)
    state = MachineState(row["state"])
    starts = request.state is HeldState.RUNNING and state is MachineState.LEASED
    target = advance(state, MachineEvent.START) if starts else state
    ttl_s = terms.in_progress_ttl_s if _is_in_progress(row) else terms.policy.ttl_s
    key = request.key
    renewed = await transaction.fetchrow(
        _SQL["renew"], key.machine_id, key.lease_id, key.fence, agent_id, target, ttl_s
    )
    if renewed is None:
        raise _fenced(key)
    if starts:
        await _note(transaction, row, target, MachineEvent.START, None)
        if row["kind"] == MachineKind.COMMAND:
            await transaction.execute(_SQL["start_command_job"], row["job_id"])
    job = None if row["job_id"] is None else JobLink(row["job_id"], row["repo_id"])
    return RenewReply(ttl_s=ttl_s, cancel=renewed["cancel_requested"], job=job)


async def check_lease(transaction: Transaction, agent_id: str, key: LeaseKey) -> Row:
    """The locked machine row of a lease that is held right now; Fenced otherwise. For runner registration."""
    row = await _lock_held(transaction, agent_id, key)
    if not row["alive"]:
        raise _fenced(key)
    return row


async def _lock_held(transaction: Transaction, agent_id: str, key: LeaseKey) -> Row:
    row = await transaction.fetchrow(_SQL["lock_held"], key.machine_id, key.lease_id, key.fence, agent_id)
    if row is None:
        raise _fenced(key)
    return row


def _fenced(key: LeaseKey) -> Fenced:
    return Fenced(f"the lease of machine {key.machine_id} under fence {key.fence} has ended: stop it, write no more")


def _is_in_progress(row: Row) -> bool:
    return bool(row["kind"] == MachineKind.RUNNER and row["job_state"] == JobState.IN_PROGRESS)


# --- the end -----------------------------------------------------------------------------------------------------


async def finish_lease(services: Services, agent_id: str, request: FinishRequest) -> FinishReply:
    """Record how the machine ended. The same lease may say it again and hears the same answer."""
    try:
        state = await services.database.run(_finish, agent_id, request, services.lease_terms.max_attempts)
    except Fenced:
        services.metrics.leases_fenced.inc()
        raise
    log.info("lease.finished", machine=request.key.machine_id, ending=str(request.ending), state=str(state))
    if state is MachineState.QUEUED:
        await services.bell.ring(MACHINES)
    return FinishReply(state)


async def _finish(transaction: Transaction, agent_id: str, request: FinishRequest, max_attempts: int) -> MachineState:
    row = await _lock_held(transaction, agent_id, request.key)
    state = MachineState(row["state"])
    if state in TERMINAL or state is MachineState.QUEUED:
        return state  # said before
    if not row["alive"]:
        raise _fenced(request.key)
    verdict = judge_finish(_held(row), request.ending, max_attempts)
    return await _end(transaction, row, verdict, request, silent=False)


async def expire_leases(services: Services) -> int:
    """End the leases whose holder fell silent; how many."""
    ended = await services.database.run(_expire, services.lease_terms.max_attempts)
    await _after_silence(services, ended, "lease.expired")
    return len(ended)


async def _expire(transaction: Transaction, max_attempts: int) -> list[tuple[int, MachineState]]:
    rows = await transaction.fetch(_SQL["lock_expired"])
    return await _end_silent(transaction, rows, max_attempts, "the host fell silent: its lease expired")


async def give_up_leases(services: Services, agent_id: str, held: Sequence[LeaseKey]) -> int:
    """End every lease of an agent that starts anew, but for those it says it still holds; how many."""
    lease_ids = [key.lease_id for key in held]
    ended = await services.database.run(_give_up, agent_id, lease_ids, services.lease_terms.max_attempts)
    await _after_silence(services, ended, "lease.given_up")
    return len(ended)


async def _give_up(
    transaction: Transaction, agent_id: str, lease_ids: list[str], max_attempts: int
) -> list[tuple[int, MachineState]]:
    rows = await transaction.fetch(_SQL["lock_given_up"], agent_id, lease_ids)
    cause = f"agent {agent_id} was started anew and no longer had this machine"
    return await _end_silent(transaction, rows, max_attempts, cause)


async def _end_silent(
    transaction: Transaction, rows: Sequence[Row], max_attempts: int, cause: str
) -> list[tuple[int, MachineState]]:
    ended = []
    for row in rows:
        verdict = judge_silence(_held(row), max_attempts)
        state = await _end(transaction, row, verdict, cause, silent=True)
        ended.append((row["machine_id"], state))
    return ended


async def _after_silence(services: Services, ended: Sequence[tuple[int, MachineState]], event: str) -> None:
    for machine_id, state in ended:
        services.metrics.leases_expired.inc()
        log.warning(event, machine=machine_id, state=str(state))
    if any(state is MachineState.QUEUED for _, state in ended):
        await services.bell.ring(MACHINES)


def _held(row: Row) -> Held:
    kind = MachineKind(row["kind"])
    linked = kind is MachineKind.RUNNER and row["job_id"] is not None
    return Held(kind, linked, _is_in_progress(row), row["attempts"], row["cancel_requested"])


async def _end(
    transaction: Transaction, row: Row, verdict: Verdict, told: FinishRequest | str, *, silent: bool
) -> MachineState:
    target = advance(MachineState(row["state"]), verdict.event)
    cause = told if isinstance(told, str) else told.cause or None
    report: tuple[object, ...] = (None, None, None, cause, None)
    if not isinstance(told, str):
        report = (told.ending, told.exit_code, told.signal, cause, dict(told.phases_ms))
    await transaction.execute(_SQL["end_lease"], row["machine_id"], target, *report, silent)
    await _note(transaction, row, target, verdict.event, cause)
    if verdict.job is not None and row["job_id"] is not None:
        job_cause = None if verdict.job.conclusion == "success" else cause
        await transaction.execute(_SQL["end_job"], row["job_id"], verdict.job.state, verdict.job.conclusion, job_cause)
    return target


async def _note(
    transaction: Transaction, row: Row, target: MachineState, event: MachineEvent, cause: str | None
) -> None:
    await transaction.execute(_SQL["note"], row["machine_id"], row["state"], target, event, cause, row["fence"])


# --- the sweeper -------------------------------------------------------------------------------------------------


async def sweep_leases(services: Services) -> None:
    """Expire leases until cancelled; a database that is away is tried again, anything else is a bug and escapes."""
    while True:
        try:
            await expire_leases(services)
        except Unavailable as error:
            log.warning("sweep.postponed", reason=str(error))
        await trio.sleep(SWEEP_S)
