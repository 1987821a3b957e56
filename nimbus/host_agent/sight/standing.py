"""Where each VM of this host's ledger stands: one word a record, as `nimbus vms` and `nimbus doctor` show it.

Judges and reads; tears nothing down. A record's lock is tried for a moment and given back at once. Called by the CLI.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass

from nimbus.host import process
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.reaper import is_untold
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.model.record import Record


class Standing(enum.StrEnum):
    """What an operator must know of a VM first."""

    RUNNING = "running"  # a live agent or `nimbus run` supervises it
    ADOPTABLE = "adoptable"  # it lives on under its keeper and waits for the next agent
    ORPHAN = "orphan"  # nobody supervises it and nobody will: `nimbus vms purge`
    ENDED_UNTOLD = "ended-untold"  # nothing of it is left but its end, which the control plane has not heard
    UNREADABLE = "unreadable"  # a newer release wrote the record, or a crash tore it


@dataclass(frozen=True)
class Sight:
    """One VM of the ledger; without a record it is unreadable, and `why` says how."""

    vm: VmId
    standing: Standing
    record: Record | None
    why: str = ""


@dataclass(frozen=True)
class Moment:
    """What must be known of the host to judge a record that nobody holds."""

    boot_id: str
    now_ns: int  # CLOCK_BOOTTIME
    keeper_alive: bool


def judge_standing(record: Record, *, supervised: bool, moment: Moment) -> Standing:
    """Pure: the word for this record."""
    if record.has_end and not record.claims:
        wanted = supervised or is_untold(record, boot_id=moment.boot_id, now_ns=moment.now_ns)
        return Standing.ENDED_UNTOLD if wanted else Standing.ORPHAN
    if supervised:
        return Standing.RUNNING
    if not record.is_adoptable or record.boot_id != moment.boot_id or not moment.keeper_alive:
        return Standing.ORPHAN
    alive = record.deadline_ns is not None and record.deadline_ns > moment.now_ns
    return Standing.ADOPTABLE if alive else Standing.ORPHAN


def look(ledger: Ledger) -> tuple[Sight, ...]:
    """Every VM of the ledger, oldest first."""
    seen = [sight for vm in ledger.vms() if (sight := look_at(ledger, vm)) is not None]
    return tuple(sorted(seen, key=lambda sight: sight.record.created_at if sight.record else 0.0))


def look_at(ledger: Ledger, vm: VmId) -> Sight | None:
    """One VM; None where there is no record of it (a lock file alone is a record being made, or just removed)."""
    try:
        if not ledger.holds(vm):
            return None
        with ledger.take(vm) as mine:
            supervised = mine is None
        record = ledger.read(vm)
    except HostFault as error:
        return Sight(vm, Standing.UNREADABLE, None, str(error))
    if record is None:
        return None
    return Sight(vm, judge_standing(record, supervised=supervised, moment=read_moment(record)), record)


def read_moment(record: Record) -> Moment:
    """The host as of now, as far as this record is concerned."""
    keeper_alive = record.keeper is not None and process.is_alive(record.keeper)
    return Moment(process.boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), keeper_alive)
