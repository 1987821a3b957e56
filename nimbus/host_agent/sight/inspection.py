"""One VM of this host as an operator must see it: its record, its processes, its lease's rest and what it uses.

Reads only. Never tells the session's nonce, tokens, the command or its environment: what is shown is chosen field by
field, so that a new one in the record is not shown by itself. Called by `nimbus vms inspect`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nimbus.host import cgroup, netns, process
from nimbus.host_agent.keeper import KeeperGone, connect_keeper
from nimbus.host_agent.plan import HostLayout, VmPaths, VmPlan, replan
from nimbus.host_agent.sight.bounds import describe_cpus, describe_limits, find_degradations
from nimbus.host_agent.sight.standing import Sight
from nimbus.host_agent.usage import read_usage
from nimbus.model.errors import NimbusError
from nimbus.model.ids import object_name
from nimbus.model.record import ProcessId, Record

Facts = dict[str, Any]


async def inspect(layout: HostLayout, sight: Sight) -> Facts:
    """Everything about one VM, in the order in which it is shown. Absent parts are None or empty."""
    record = sight.record
    head: Facts = {"vm": str(sight.vm), "state": str(sight.standing), "object": object_name(layout.root_id, sight.vm)}
    if record is None:
        return {**head, "why": sight.why, "paths": _paths(layout, sight, None)}
    plan = _find_plan(layout, record)
    return {
        **head,
        "backend": record.backend,
        "created_at": record.created_at,
        "age_s": int(time.time() - record.created_at),
        "this_boot": record.boot_id == process.boot_id(),
        "record_version": record.version,
        "lease": asdict(record.lease) if record.lease else None,
        "deadline_left_s": _left_s(record, record.deadline_ns),
        "job_time_left_s": _left_s(record, record.latest_ns),
        "slot": asdict(record.slot) if record.slot else None,
        "shape": record.plan.get("shape"),
        "image": record.plan.get("image"),
        "accel": record.plan.get("accel"),
        "addresses": _addresses(plan),
        "claims": [str(claim) for claim in record.claims],
        "keeper": _describe_process(record.keeper),
        "vmm": await _ask_keeper(layout, record),
        "usage": asdict(read_usage(plan)) if plan else None,
        "cpus": describe_cpus(plan) if plan else None,
        "limits": describe_limits(layout, plan) if plan else None,
        "degradations": find_degradations(layout, plan) if plan else [],
        "exit": asdict(record.exit) if record.exit else None,
        "untold_ending": _untold(record.report),
        "failures": list(record.failures),
        "paths": _paths(layout, sight, plan),
    }


def _find_plan(layout: HostLayout, record: Record) -> VmPlan | None:
    """The plan again; None before the VM had a slot, and for a record that a sweep made up."""
    if record.slot is None:
        return None
    try:
        return replan(layout, record.vm, backend=record.backend, stored=record.plan, slot=record.slot)
    except (NimbusError, KeyError, TypeError):
        return None


def _left_s(record: Record, deadline_ns: int | None) -> float | None:
    """Seconds from now on; less than 0 once it has passed. A clock of another boot says nothing."""
    if deadline_ns is None or record.boot_id != process.boot_id():
        return None
    return round((deadline_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9, 1)


def _addresses(plan: VmPlan | None) -> Facts | None:
    if plan is None:
        return None
    net = plan.net
    return {
        "host": str(net.uplink_host),
        "netns": str(net.uplink_peer),
        "gateway": str(net.gateway),
        "guest": str(net.guest),
        "mac": net.mac,
        "link": net.name,
        "tap": net.tap,
    }


def _describe_process(who: ProcessId | None) -> Facts | None:
    if who is None:
        return None
    alive = process.is_alive(who)
    return {"pid": who.pid, "alive": alive, "since": process.started_at(who) if alive else None}


async def _ask_keeper(layout: HostLayout, record: Record) -> Facts | None:
    """The VMM as its keeper knows it; None where no keeper answers."""
    if record.keeper is None:
        return None
    try:
        async with await connect_keeper(VmPaths(layout.state / "vms" / str(record.vm)).folder, record.keeper) as keeper:
            status = await keeper.status()
            identity = await keeper.vmm_identity()
    except KeeperGone:
        return None
    except NimbusError as error:
        return {"why": str(error)}
    return {
        **(_describe_process(identity) or {}),
        "phase": status.phase,
        "killing": status.killing,
        "keepers_deadline_left_s": _left_s(record, status.deadline_ns),
        "console_bytes": status.console_total,
    }


def _untold(report: Mapping[str, object] | None) -> str | None:
    return None if report is None else str(report.get("ending"))


def _paths(layout: HostLayout, sight: Sight, plan: VmPlan | None) -> Facts:
    paths = VmPaths(layout.state / "vms" / str(sight.vm))
    name = object_name(layout.root_id, sight.vm)
    found = {
        "record": layout.ledger / f"{sight.vm}.json",
        "folder": paths.folder,
        "overlay": paths.overlay,
        "spool": layout.spools / str(sight.vm),
        "cgroup": cgroup.cgroup_dir(name),
        "netns": netns.netns_path(name),
    }
    return {kind: str(path) for kind, path in found.items() if path.exists()}
