"""Leases that end because nobody speaks for them any more: expired ones, and those of an agent that starts anew.

Only Postgres' clock decides, and only while it and the database itself can be trusted (watch.py). Never grants.
Called by the sweeper in app.py and by agents_api.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from nimbus.control_plane.hosts.agents import judge_version
from nimbus.control_plane.queue.endings import Teller, describe_held, end_lease
from nimbus.control_plane.queue.outcome import judge_silence
from nimbus.control_plane.queue.watch import Watched, glance, tell, warn_if_blind, watch_database
from nimbus.control_plane.rounds import begin_round
from nimbus.control_plane.services import MACHINES, LeaseTerms, Services
from nimbus.model.errors import Unavailable
from nimbus.model.lease import LeaseKey, MachineState
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.leaseapi import EnrolRequest

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "endings.sql")
_AGENTS = load_queries("nimbus.control_plane", "queries", "agents.sql")

ROUND = "leases"
Ended = list[tuple[int, MachineState]]


async def expire_leases(services: Services, every_s: float = 0.0) -> int:
    """End the leases whose holder fell silent, unless granting pauses; how many.

    None where another process is at it, or did it within `every_s`.
    """
    watched, ended = await services.database.run(_expire, services.lease_terms, every_s)
    services.metrics.grants_paused.set(watched.paused)
    tell(watched, services.lease_terms.policy.ttl_s)
    await _after_silence(services, ended, "lease.expired")
    return len(ended)


async def _expire(transaction: Transaction, terms: LeaseTerms, every_s: float) -> tuple[Watched, Ended]:
    if not await begin_round(transaction, ROUND, every_s):
        return await glance(transaction, terms.watch), []
    watched = await watch_database(transaction, terms.watch)
    if watched.paused:
        return watched, []
    rows = await transaction.fetch(_SQL["lock_expired"])
    cause = "the host fell silent: its lease expired"
    return watched, await _end_silent(transaction, rows, terms.max_attempts, cause, Teller.CLOCK)


async def enrol_agent(services: Services, agent_id: str, asked: EnrolRequest) -> int:
    """Note who the agent is now, and end every lease of one that starts anew but those it still holds; how many.

    One transaction, and once for each start: a copy of the enrolment that arrives late, or is worked on late, must not
    end what was leased since (`LATE_ENROLMENT` of tests/model). Only an agent of the very life that was known knows
    what it holds: one of another boot or another ledger may be a second host of that name beside the first, whose VMs
    live on; the leases run out then.
    """
    terms = (services.lease_terms.max_attempts, services.host_terms.min_version)
    ended = await services.database.run(_enrol, agent_id, asked, *terms)
    await _after_silence(services, ended, "lease.given_up")
    return len(ended)


async def _enrol(
    transaction: Transaction, agent_id: str, asked: EnrolRequest, max_attempts: int, min_version: str | None
) -> Ended:
    known = await transaction.fetchval(_AGENTS["lock_life"], agent_id)
    who = (agent_id, asked.version, asked.boot_id, asked.cpus, asked.mem_mib)
    await transaction.execute(_AGENTS["enrol_agent"], *who, judge_version(asked.version, min_version))
    if asked.held is None:
        return []
    if asked.start is not None and not await transaction.fetchval(_AGENTS["note_start"], agent_id, asked.start):
        return []
    if known != asked.boot_id:
        return []
    return await _give_up(transaction, agent_id, asked.held, max_attempts)


async def _give_up(transaction: Transaction, agent_id: str, held: Sequence[LeaseKey], max_attempts: int) -> Ended:
    machines = [key.machine_id for key in held]
    leases = [key.lease_id for key in held]
    fences = [key.fence for key in held]
    rows = await transaction.fetch(_SQL["lock_given_up"], agent_id, machines, leases, fences)
    cause = f"agent {agent_id} was started anew and no longer had this machine"
    return await _end_silent(transaction, rows, max_attempts, cause, Teller.ENROLMENT)


async def _end_silent(
    transaction: Transaction, rows: Sequence[Row], max_attempts: int, cause: str, teller: Teller
) -> Ended:
    ended = []
    for row in rows:
        verdict = judge_silence(describe_held(row), max_attempts)
        ended.append((row["machine_id"], await end_lease(transaction, row, verdict, cause, teller)))
    return ended


async def _after_silence(services: Services, ended: Ended, event: str) -> None:
    for machine_id, state in ended:
        services.metrics.leases_expired.inc()
        log.warning(event, machine=machine_id, state=str(state))
    if any(state is MachineState.QUEUED for _, state in ended):
        await services.bell.ring(MACHINES)


async def sweep_leases(services: Services) -> None:
    """Expire leases until cancelled; a database that is away is tried again, anything else is a bug and escapes."""
    every_s = 0.0  # each process looks at the database's clock once at its start, as one of this host
    while True:
        try:
            if not every_s:
                await services.database.run(warn_if_blind)
            await expire_leases(services, every_s)
            every_s = services.lease_terms.sweep_s
        except Unavailable as error:
            log.warning("sweep.postponed", reason=str(error))
        await trio.sleep(services.lease_terms.sweep_s)
