"""What agents tell of themselves, and whether one is too old or called like another host.

A heartbeat never renews a lease and never ends one: an agent that falls silent loses its leases by their deadlines
alone. Those of a moment cost one statement (beats.py), and the mirror hears of one only where its ledger changed.
Called by agents_api.py, silence.py and app.py.
"""

from __future__ import annotations

import time

import structlog

from nimbus import __version__
from nimbus.control_plane.hosts.mirror import plan_report
from nimbus.control_plane.services import Services
from nimbus.model.errors import Unauthorized
from nimbus.model.release import is_before
from nimbus.runtime.postgres import Transaction, load_queries
from nimbus.wire.heartbeat import MAX_BARRED_CHARS, Heartbeat, HeartbeatReply, Wanted
from nimbus.wire.vmjson import Json

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "agents.sql")
RIVAL_BEATS = 4  # intervals within which a life must return to be that of a host that never went away


async def hear_heartbeat(services: Services, agent_id: str, beat: Heartbeat) -> HeartbeatReply:
    """Note what the host tells; what is wanted of it. Unauthorized where it was forgotten: it enrols anew then."""
    terms = services.host_terms
    barred = judge_version(beat.version, terms.min_version)
    told = _plan_row(agent_id, beat, barred)
    row = await services.beats.write(services.database, agent_id, told, RIVAL_BEATS * terms.interval_s)
    if row is None:
        raise Unauthorized(f"agent {agent_id} is not known here any more: enrol anew")
    if row["has_rival"]:
        log.warning("agent.two_hosts", agent=agent_id, boot_id=beat.boot_id, mend="give each host an id of its own")
    if beat.records is not None:
        report = plan_report(agent_id, beat, beat.records, time.time())
        if report.digest != row["mirrored"]:
            services.mirror.offer(report)
    interval_s = terms.resting_s if row["rests"] else terms.interval_s
    return HeartbeatReply(Wanted(row["wanted"]), interval_s, barred)


def _plan_row(agent_id: str, beat: Heartbeat, barred: str | None) -> Json:
    """Pure: what `hear_heartbeats` of agents.sql takes of one host."""
    total, free = beat.total, beat.free
    return {
        "agent_id": agent_id, "version": beat.version, "life": beat.boot_id, "doing": beat.doing, "vmm": beat.vmm,
        "arch": beat.arch.value, "labels": sorted({label.lower() for label in beat.labels}), "barred": barred,
        "cpus": total.cpus, "mem_mib": total.mem_mib, "slots": total.slots, "disk_mib": total.disk_mib,
        "free_cpus": free.cpus, "free_mem_mib": free.mem_mib, "free_slots": free.slots, "free_disk_mib": free.disk_mib,
        "pool": dict(beat.pool),
    }  # fmt: skip


def judge_version(version: str, min_version: str | None) -> str | None:
    """Pure: why an agent of this version is granted nothing, in words; None where it may be."""
    if min_version is None:
        return None
    too_old = is_before(version, min_version)
    if too_old is None:
        told = f"its version {version!r} cannot be compared with {min_version}, the oldest that is granted work here"
    elif too_old:
        told = f"its version {version} is older than {min_version}, the oldest that is granted work here"
    else:
        return None
    return f"{told}: upgrade Nimbus on that host (NIMBUS_AGENT_MIN_VERSION)"[:MAX_BARRED_CHARS]


def is_behind(version: str) -> bool | None:
    """Whether an agent is of an older release than this control plane; None where its version is none."""
    return is_before(version, __version__)


async def judge_agents(services: Services) -> None:
    """Judge every known agent by NIMBUS_AGENT_MIN_VERSION as it is now: one that sends no heartbeats enrols rarely."""
    await services.database.run(_judge_all, services.host_terms.min_version)


async def _judge_all(transaction: Transaction, min_version: str | None) -> None:
    for row in await transaction.fetch(_SQL["list_versions"]):
        barred = judge_version(row["version"], min_version)
        if barred != row["barred"]:
            await transaction.execute(_SQL["bar_agent"], row["agent_id"], barred)
