"""Takes up the machines that an earlier agent of this state root left: alive, ended, or ended and not told.

The record's lock makes them ours; the control plane says whether the lease still is, and where it is away the recorded
deadline decides. Called by main.py, once, before the first lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from nimbus.host import process
from nimbus.host_agent import metrics
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.lease import HeldLease, resume_lease
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.lifecycle import adopt_machine
from nimbus.host_agent.logs import LogShipping
from nimbus.host_agent.machines import Report, Workplace, note_lost, open_output
from nimbus.host_agent.plan import HostLayout, read_shape
from nimbus.host_agent.ties import Ties, tell_untold
from nimbus.model.errors import HostFault, NimbusError
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Shape

log = structlog.get_logger()


@dataclass(frozen=True)
class Foundling:
    """A machine whose agent is gone; its record is open and locked until `close`."""

    page: AbstractContextManager[OpenRecord | None]
    record: OpenRecord
    key: LeaseKey

    @property
    def shape(self) -> Shape:
        """What it takes of this host."""
        return read_shape(self.record.value.plan)

    def close(self) -> None:
        """Let go of the lock."""
        self.page.__exit__(None, None, None)


def find_machines(layout: HostLayout) -> list[Foundling]:
    """Every leased machine in the ledger that nobody supervises, locked. What cannot be read is the reaper's."""
    ledger = Ledger(layout.ledger)
    found = []
    for vm in ledger.vms():
        page = ledger.take(vm)
        try:
            record = page.__enter__()
        except HostFault as error:
            log.warning("agent.record_not_adopted", vm=str(vm), error=str(error))
            continue
        if record is not None and record.value.is_adoptable and record.value.lease is not None:
            found.append(Foundling(page, record, record.value.lease))
        else:
            page.__exit__(None, None, None)
    return found


async def run_adopted(workplace: Workplace, foundling: Foundling) -> None:
    """Serve what is left of a machine's life. Returns, whatever its end was."""
    structlog.contextvars.bind_contextvars(machine=foundling.key.machine_id, fence=foundling.key.fence)
    try:
        with metrics.RUNNING.track_inprogress():
            await _hold_and_serve(workplace, foundling)
    except NimbusError as error:
        log.warning("machine.not_adopted", error=str(error))
    finally:
        with trio.CancelScope(shield=True):  # closes one file descriptor
            await in_thread(foundling.close)


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
        async with open_output(workplace, opened, None) as shipping:  # to where its spool says
            yield shipping

    ties = Ties(open_sink, Report(workplace.control, lease), workplace.departure)
    if record.value.report is None:
        await adopt_machine(workplace.host, ties, lease, record)
    else:
        await tell_untold(workplace.host.layout, ties, record)
