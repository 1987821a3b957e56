"""Takes up the machines that an earlier agent of this state root left: alive, ended, or ended and not told.

The record's lock makes them ours; the control plane says whether the lease still is, and where it is away the recorded
deadline decides. Called by main.py, once, before the first lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from nimbus.host import process
from nimbus.host_agent import metrics
from nimbus.host_agent.causes import first_error
from nimbus.host_agent.lane import Hung, look
from nimbus.host_agent.lease import HeldLease, resume_lease
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.lifecycle import adopt_machine
from nimbus.host_agent.logs import LogShipping, LogTarget
from nimbus.host_agent.machines import Report, Workplace, note_lost, open_output
from nimbus.host_agent.page import Page
from nimbus.host_agent.plan import HostLayout, read_shape
from nimbus.host_agent.ties import Ties, tell_untold
from nimbus.model.errors import HostFault, NimbusError, Refused
from nimbus.model.ids import VmId
from nimbus.model.lease import LeaseKey
from nimbus.model.record import Record
from nimbus.model.vm import Shape

log = structlog.get_logger()

LOOKER_S = 2.0


@dataclass(frozen=True)
class Foundling:
    """A machine whose agent is gone; its record is open and locked until `close`."""

    page: Page[OpenRecord | None]
    record: OpenRecord
    key: LeaseKey
    shape: Shape  # what it takes of this host

    async def close(self) -> None:
        """Let go of the lock."""
        await self.page.close()


@dataclass(frozen=True)
class Estate:
    """All that earlier agents left in the ledger."""

    machines: tuple[Foundling, ...] = ()
    out_of_reach: tuple[LeaseKey, ...] = ()  # not ours to serve: their leases run out, nobody may have them before
    unreadable: tuple[VmId, ...] = ()  # a newer release's, or torn: whose lease each of these VMs has is not known

    @property
    def held(self) -> tuple[LeaseKey, ...] | None:
        """Leases that the control plane must not give to anybody else now; None: any of this agent's may be one."""
        if self.unreadable:
            return None
        return (*(machine.key for machine in self.machines), *self.out_of_reach)


async def find_machines(layout: HostLayout) -> Estate:
    """Every leased machine in the ledger, locked where nobody supervises it. What cannot be read is the reaper's.

    Somebody who only looks (`nimbus vms list`) has a record locked for a moment: it is waited for. A record that hangs
    keeps no other from being adopted. Raises HostFault where not even the ledger's folder can be read.
    """
    ledger = Ledger(layout.ledger)
    machines: list[Foundling] = []
    out_of_reach: list[LeaseKey] = []
    unreadable: list[VmId] = []

    async def find(vm: VmId) -> None:
        try:
            value = await look(partial(ledger.read, vm), layout.limits.look_s)
        except (HostFault, OSError) as error:
            log.warning("agent.record_not_adopted", vm=str(vm), error=str(error))
            unreadable.append(vm)
            return
        if value is not None and value.lease is not None:
            await take(value, value.lease)

    async def take(value: Record, key: LeaseKey) -> None:
        try:
            found = await _take(ledger, value.vm, key, layout.limits.look_s) if value.is_adoptable else None
            if found is not None:
                machines.append(found)
            elif await look(partial(ledger.holds, value.vm), layout.limits.look_s):
                out_of_reach.append(key)
        except Hung as error:
            log.warning("agent.record_not_adopted", vm=str(value.vm), error=str(error))
            out_of_reach.append(key)
        except (HostFault, OSError) as error:
            log.warning("agent.record_not_adopted", vm=str(value.vm), error=str(error))
            unreadable.append(value.vm)

    listed = await look(ledger.vms, layout.limits.look_s)
    async with trio.open_nursery() as finding:
        for vm in listed:
            finding.start_soon(find, vm)
    return Estate(tuple(machines), tuple(out_of_reach), tuple(unreadable))


async def _take(ledger: Ledger, vm: VmId, key: LeaseKey, limit_s: float) -> Foundling | None:
    deadline = trio.current_time() + LOOKER_S
    while True:
        page = Page(ledger.take(vm))
        record = await page.open(limit_s)
        is_kept = False
        try:
            if record is not None:
                found = Foundling(page, record, key, _read_shape(record.value))
                is_kept = True
                return found
        finally:
            if not is_kept:
                await page.close()  # noqa: ASYNC102 - its shield and its limit are inside
        if not await look(partial(ledger.holds, vm), limit_s) or trio.current_time() >= deadline:
            return None
        await trio.sleep(0.01)  # flock has no wait with a limit


def _read_shape(value: Record) -> Shape:
    try:
        return read_shape(value.plan)
    except (LookupError, TypeError, Refused) as error:
        raise HostFault(f"the plan of VM {value.vm} cannot be read: {error!r}") from error


async def run_adopted(workplace: Workplace, foundling: Foundling) -> None:
    """Serve what is left of a machine's life. Returns, whatever its end was."""
    structlog.contextvars.bind_contextvars(machine=foundling.key.machine_id, fence=foundling.key.fence)
    try:
        with metrics.RUNNING.track_inprogress():
            await _hold_and_serve(workplace, foundling)
    except* NimbusError as group:  # a lease is a nursery: what leaves it is a group
        log.warning("machine.not_adopted", error=str(first_error(group)))
    finally:
        await foundling.close()  # noqa: ASYNC102 - its shield and its limit are inside


async def _hold_and_serve(workplace: Workplace, foundling: Foundling) -> None:
    value = foundling.record.value
    deadline_ns = value.deadline_ns if value.boot_id == process.boot_id() else None
    outcome = "left"
    try:
        async with resume_lease(workplace.control, foundling.key, workplace.policy.lease, deadline_ns) as lease:
            await _serve(workplace, foundling.record, lease)
        note_lost(lease)
        outcome = "lost" if lease.lost else "served"
    finally:
        metrics.count_adoption(outcome)


async def _serve(workplace: Workplace, record: OpenRecord, lease: HeldLease) -> None:
    @asynccontextmanager
    async def open_sink(opened: OpenRecord) -> AsyncIterator[LogShipping]:
        target = LogTarget(workplace.policy.log_sink_url, None)  # its token, and where it goes, stand in its spool
        async with open_output(workplace, opened, target) as shipping:
            yield shipping

    ties = Ties(open_sink, Report(workplace.control, lease), workplace.departure)
    if record.value.report is None:
        await adopt_machine(workplace.host, ties, lease, record)
    else:
        await tell_untold(workplace.host.layout, ties, record)
