"""Finds what a dead supervisor left and tears it down by the same `teardown` as everything else.

Touches only records whose lock it can take without waiting. Of those, the careful round takes orphans
alone: a local run with a free lock, a lease past its deadline, a keeper that is gone, a record of an
earlier boot, or of a release before adoption. The thorough round (`nimbus vms purge --all`) takes every one it can
lock. Called by main.py and cli/vms.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from nimbus.host import cgroup, chroots, cpus, link, netns, nft, process, slots
from nimbus.host_agent.lane import in_thread, look
from nimbus.host_agent.ledger import Ledger, OpenRecord, TornRecord
from nimbus.host_agent.page import Page, open_page
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.teardown import teardown
from nimbus.model.errors import Conflict, HostFault, NimbusError
from nimbus.model.ids import VmId, object_name, parse_object_name
from nimbus.model.record import Record
from nimbus.model.vm import Claim

log = structlog.get_logger()

ROUND_S = 60.0
ALL_CLAIMS = tuple(Claim)


@dataclass
class ReapReport:
    """What one round did, by VM id."""

    reaped: list[str] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)  # supervised by another process, or its lease runs on
    untold: list[str] = field(default_factory=list)  # torn down; the next agent tells the control plane how it ended
    stuck: list[str] = field(default_factory=list)  # claims are left: the next round tries again
    unseen: list[str] = field(default_factory=list)  # kinds of objects that the host did not list: likewise


async def reap(layout: HostLayout, *, living: bool, only: VmId | None = None) -> ReapReport:
    """One round. `living` takes unsupervised VMs whose lease still runs too; `only` limits it to one VM."""
    report = ReapReport()
    ledger = Ledger(layout.ledger)
    nameless = await _ask_nameless(layout, report)  # before the records: a VM being made has its record
    recorded = await look(ledger.vms, layout.limits.look_s)
    for vm in [only] if only else recorded:
        await _reap_record(layout, ledger, vm, living, report)
    for vm in sorted(nameless - set(recorded)):
        if only in (None, vm):
            await _sweep(layout, vm, report)
    if report.reaped or report.stuck:
        log.info("reaper.round", reaped=report.reaped, stuck=report.stuck)
    return report


async def reap_forever(layout: HostLayout, on_round: Callable[[ReapReport], None]) -> None:
    """Until cancelled: a careful round at once and each minute, each told to `on_round`."""
    while True:
        try:
            on_round(await reap(layout, living=False))
        except (NimbusError, OSError) as error:
            log.warning("reaper.round_failed", error=str(error))  # the next round may find the host mended
        await trio.sleep(ROUND_S)


def is_untold(record: Record, *, boot_id: str, now_ns: int) -> bool:
    """Pure: whether the control plane still waits to hear how this machine ended."""
    if not record.has_end or record.boot_id != boot_id or record.deadline_ns is None:
        return False
    return record.deadline_ns > now_ns


def is_orphan(record: Record, *, boot_id: str, now_ns: int, keeper_alive: bool) -> bool:
    """Pure: whether a record with a free lock belongs to nobody."""
    if not record.is_adoptable or record.boot_id != boot_id or not keeper_alive:
        return True
    return record.deadline_ns is None or record.deadline_ns <= now_ns


async def _reap_record(layout: HostLayout, ledger: Ledger, vm: VmId, living: bool, report: ReapReport) -> None:
    limit_s = layout.limits.look_s
    try:
        async with open_page(Page(ledger.take(vm)), limit_s) as record:
            if record is None:
                if await look(partial(ledger.holds, vm), limit_s):
                    report.alive.append(str(vm))
            elif living or await look(partial(_find_orphan, record.value), limit_s):
                (await _tear_down(layout, record, report)).append(str(vm))
            else:
                report.alive.append(str(vm))
    except TornRecord:
        if await in_thread(partial(ledger.forget_torn, vm)):
            await _sweep(layout, vm, report)
    except (
        HostFault,
        OSError,
    ) as error:  # of a newer release, or the host fails: the other VMs are reaped
        log.error("reaper.record_failed", vm=str(vm), error=str(error))
        report.stuck.append(str(vm))


async def _tear_down(layout: HostLayout, record: OpenRecord, report: ReapReport) -> list[str]:
    """Release what it lists; the list of the report in which it then belongs."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    boot_id = await look(process.boot_id, layout.limits.look_s)
    untold = is_untold(record.value, boot_id=boot_id, now_ns=now_ns)
    if not untold and record.value.has_end:
        await in_thread(record.forget_report)
    clean = await teardown(layout, record)
    if not clean:
        return report.stuck
    return report.untold if untold else report.reaped


def _find_orphan(record: Record) -> bool:
    keeper_alive = record.keeper is not None and process.is_alive(record.keeper)
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return is_orphan(record, boot_id=process.boot_id(), now_ns=now_ns, keeper_alive=keeper_alive)


def find_nameless(layout: HostLayout) -> set[VmId]:
    """VMs of this state root that own something on the host, by name alone; most have a record."""
    return _parse_names(layout, (name for listed in _plan_lists(layout).values() for name in listed()))


async def _ask_nameless(layout: HostLayout, report: ReapReport) -> set[VmId]:
    """The same, where each kind is asked for by itself: one without an answer hides no other, and is reported."""
    names: list[str] = []

    async def ask(kind: str, listed: Callable[[], Iterable[str]]) -> None:
        try:
            names.extend(await look(listed, layout.limits.look_s))
        except (HostFault, OSError) as error:
            log.warning("reaper.not_listed", kind=kind, error=str(error))
            report.unseen.append(kind)

    async with trio.open_nursery() as asking:
        for kind, listed in _plan_lists(layout).items():
            asking.start_soon(ask, kind, listed)
    return _parse_names(layout, names)


def _parse_names(layout: HostLayout, names: Iterable[str]) -> set[VmId]:
    found = (parse_object_name(name) for name in names)
    return {parsed[1] for parsed in found if parsed is not None and parsed[0] == layout.root_id}


def _plan_lists(layout: HostLayout) -> dict[str, Callable[[], Iterable[str]]]:
    """Pure: for each kind of object the reading of all names that may be a VM's of this state root."""
    prefix = f"nb{layout.root_id}-"
    return {
        "namespaces": partial(netns.list_netns, prefix),
        "links": partial(link.list_links, prefix),
        "tables": partial(nft.list_tables, prefix),
        "cgroups": partial(cgroup.list_cgroups, prefix),
        "chroots": partial(chroots.list_chroots, layout.jails, prefix),
        "slots": lambda: [slot.owner for slot in slots.list_slots(layout.runtime)],
        "cpus": lambda: [ticket.owner for ticket in cpus.list_cpus(layout.runtime)],
        "folders": lambda: [f"{prefix}{folder.name}" for folder in (layout.state / "vms").glob("*")],
    }


async def _sweep(layout: HostLayout, vm: VmId, report: ReapReport) -> None:
    """Something bears the name of a VM that has no record: a record of its own is made, to be torn down."""
    value = Record(
        vm=vm, created_at=time.time(), boot_id=process.boot_id(), backend="unknown", plan={}, claims=ALL_CLAIMS
    )
    ledger = Ledger(layout.ledger)
    page = Page(ledger.create(value), partial(ledger.remove, vm))
    try:
        async with open_page(page, layout.limits.acquire_s) as record:
            log.warning("reaper.nameless", vm=str(vm), object=object_name(layout.root_id, vm))
            clean = await teardown(layout, record)
            (report.reaped if clean else report.stuck).append(str(vm))
    except Conflict:  # another reaper has just found it too
        report.alive.append(str(vm))
    except (HostFault, OSError) as error:
        log.error("reaper.nameless_stuck", vm=str(vm), error=str(error))
        report.stuck.append(str(vm))
