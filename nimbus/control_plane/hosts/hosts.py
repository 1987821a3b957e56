"""Hosts as their operator sees and steers them: list, show, cordon, drain, forget.

Hosts belong to the operator: no tenant's token comes this far. Never talks to a host; what is wanted of one is a row,
which granting obeys at once and the host hears with its next heartbeat. Called by hosts_api.py and for /api/status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from nimbus.control_plane.hosts.agents import is_behind
from nimbus.control_plane.services import MACHINES, HostTerms, Services
from nimbus.model.errors import Conflict, NotFound, Unavailable
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import parse_object
from nimbus.wire.heartbeat import Doing, Wanted
from nimbus.wire.vmjson import Json

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "hosts.sql")
PAGE = 1000
RIVAL_BEATS = 20  # intervals for which two hosts of one name are told of after they were last seen to be two
_SAID = frozenset({Doing.DRAINING, Doing.DRAINED, Doing.LEAVING})
SILENT, OUTDATED = "silent", "outdated"
STATES = (Doing.WORKING, Doing.CORDONED, *sorted(_SAID), OUTDATED, SILENT)


def name_state(row: Row, terms: HostTerms) -> str:
    """Pure: one word for where a host stands; what is most in the way of its work first."""
    if row["silent_s"] > terms.silent_s:
        return SILENT
    if row["barred"] is not None:
        return OUTDATED
    if row["doing"] in _SAID:
        return str(row["doing"])
    if row["wanted"] == Wanted.DRAINED:
        return Doing.DRAINING.value
    return Doing.CORDONED.value if row["wanted"] == Wanted.CORDONED else Doing.WORKING.value


def list_problems(row: Row, terms: HostTerms) -> list[str]:
    """Pure: what somebody must know or do about this host, in words."""
    problems = []
    if row["rival_s"] is not None and row["rival_s"] <= RIVAL_BEATS * terms.interval_s:
        problems.append("two hosts report under this id: give each an id (NIMBUS_AGENT_ID) and a token of its own")
    if row["barred"] is not None:
        problems.append(row["barred"])
    if row["silent_s"] > terms.silent_s and row["machines"]:
        problems.append(f"silent, and {_count(row['machines'])} of its own end by their leases' deadlines")
    return problems


def _count(machines: int) -> str:
    return "one machine" if machines == 1 else f"{machines} machines"


def describe_host(row: Row, terms: HostTerms) -> Json:
    """Pure: one host for lists and pages."""
    same = ("agent_id", "version", "vmm", "arch", "doing", "wanted", "wanted_by")
    room = ("cpus", "mem_mib", "slots", "disk_mib", "free_cpus", "free_mem_mib", "free_slots", "free_disk_mib")
    moments = ("wanted_at", "last_seen", "heartbeat_at", "enrolled_at")
    return {
        **{name: row[name] for name in (*same, *room, "machines", "held_cpus", "silent_s")},
        **{name: _moment(row[name]) for name in moments},
        "state": name_state(row, terms),
        "behind": is_behind(row["version"]),
        "labels": row["labels"] or [],
        "pool": row["pool"] or {},
        "problems": list_problems(row, terms),
        "drained": is_drained(row, terms),
    }


def is_drained(row: Row, terms: HostTerms) -> bool:
    """Pure: whether nothing of ours is left on a host that was to be drained. One that is silent can't say so itself:
    then it is enough that no lease is left, since it stops each machine before its lease ends.
    """
    if row["wanted"] != Wanted.DRAINED or row["machines"]:
        return False
    return row["doing"] in {None, Doing.DRAINED, Doing.LEAVING} or row["silent_s"] > terms.silent_s


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


# --- looking -----------------------------------------------------------------------------------------------------


async def list_hosts(services: Services, after: str = "") -> Sequence[Json]:
    """The hosts after this name, at most `PAGE`, in the order of their names."""
    rows = await services.database.fetch(_SQL["list_hosts"], after, PAGE, None)
    return [describe_host(row, services.host_terms) for row in rows]


async def list_seen(services: Services) -> list[Json]:
    """The first page of them, short: for the status of the whole service."""
    names = ("agent_id", "state", "version", "cpus", "mem_mib", "last_seen", "silent_s")
    return [{name: host[name] for name in names} for host in await list_hosts(services)]


async def show_host(services: Services, agent_id: str) -> Json:
    """One host with the machines that are leased to it, and the records that it told of."""
    row = await services.database.run(_find, agent_id)
    machines = await services.database.fetch(_SQL["machines_of_host"], agent_id)
    try:
        records = [_plain(record) for record in await services.mirror.read(agent_id)]
    except Unavailable:
        records = None
    shown = describe_host(row, services.host_terms)
    return {**shown, "leased": [_plain(machine) for machine in machines], "records": records}


async def _find(transaction: Transaction, agent_id: str) -> Row:
    row = await transaction.fetchrow(_SQL["list_hosts"], "", 1, agent_id)
    if row is None:
        raise NotFound(f"there is no host {agent_id}")
    return row


def _plain(row: Row) -> Json:
    return {name: _moment(value) if isinstance(value, datetime) else value for name, value in row.items()}


async def count_states(services: Services) -> Mapping[str, int]:
    """How many hosts stand in each state, for the metric."""
    rows = await services.database.fetch(_SQL["standings"])
    counted = Counter(name_state(row, services.host_terms) for row in rows)
    return {state: counted[state] for state in STATES}


# --- steering ----------------------------------------------------------------------------------------------------


def parse_wanted(body: bytes) -> Wanted:
    """What an operator wants of a host, from the request's body."""
    fields = parse_object(body, "wish")
    fields.refuse_unknown({"wanted"})
    return fields.choice("wanted", Wanted)


async def want(services: Services, agent_id: str, wanted: Wanted, subject: str) -> Json:
    """Have a host work, take no new job, or empty itself; holds until somebody wants something else."""
    row = await services.database.run(_want, agent_id, wanted, subject)
    log.info("host.wanted", agent=agent_id, wanted=str(wanted), by=subject)
    if wanted is Wanted.WORKING:
        await services.bell.ring(MACHINES)
    return describe_host(row, services.host_terms)


async def _want(transaction: Transaction, agent_id: str, wanted: Wanted, subject: str) -> Row:
    await transaction.execute(_SQL["want"], agent_id, wanted, subject)
    return await _find(transaction, agent_id)


async def forget_host(services: Services, agent_id: str) -> None:
    """Drop a host that is gone for good. Conflict where it still speaks, or a lease of it has not ended."""
    await services.database.run(_forget, agent_id, services.host_terms)
    services.mirror.forget(agent_id)
    log.info("host.forgotten", agent=agent_id)


async def _forget(transaction: Transaction, agent_id: str, terms: HostTerms) -> None:
    row = await transaction.fetchrow(_SQL["lock_host"], agent_id)
    if row is None:
        raise NotFound(f"there is no host {agent_id}")
    if row["silent_s"] <= terms.silent_s:
        raise Conflict(f"host {agent_id} was heard of {row['silent_s']:.0f} s ago: stop its agent first")
    if row["machines"]:
        raise Conflict(f"host {agent_id} still holds {_count(row['machines'])}: wait until the leases have ended")
    await transaction.execute(_SQL["forget_host"], agent_id)
