"""What this host's VMs hold and use at one moment, counted from the ledger, the slots and the kernel itself.

Reads only, some 0.3 ms for each VM; a record or a file that cannot be read is left out, never an error: a count must
not hold anything up. Synchronous; called in a thread for each look at the metrics page.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nimbus.host.quarantine import list_quarantined
from nimbus.host.slots import list_slots
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout, replan
from nimbus.host_agent.usage import read_usage
from nimbus.model.errors import HostFault, NimbusError
from nimbus.model.record import Record
from nimbus.model.vm import Claim, Usage


@dataclass(frozen=True)
class SlotCount:
    """The host's slots, all agents' and local runs' together; the three make up the limit."""

    free: int
    held: int
    quarantined: int  # held or not


@dataclass(frozen=True)
class Census:
    """Everything that is counted by looking."""

    claims: Mapping[Claim, int]
    slots: SlotCount
    usage: Usage  # of all VMs together
    spool_bytes: int


def take_census(layout: HostLayout) -> Census:
    """Count it now."""
    records = tuple(_read_records(layout))
    claims = Counter(claim for record in records for claim in record.claims)
    return Census(
        claims={claim: claims[claim] for claim in Claim},
        slots=count_slots(layout),
        usage=sum_usage(_read_usages(layout, records)),
        spool_bytes=sum_sizes(layout.spools),
    )


def count_slots(layout: HostLayout) -> SlotCount:
    """Slots below this agent's own limit, by state."""
    apart = {slot.index for slot in list_quarantined(layout.runtime) if slot.index < layout.slot_limit}
    held = {slot.index for slot in list_slots(layout.runtime) if slot.index < layout.slot_limit} - apart
    return SlotCount(layout.slot_limit - len(held) - len(apart), len(held), len(apart))


def sum_usage(usages: Iterable[Usage]) -> Usage:
    """Pure: all together; what no VM's host can count stays None."""
    found = tuple(usages)

    def total(name: str) -> int | None:
        values = [value for usage in found if (value := getattr(usage, name)) is not None]
        return sum(values) if values else None

    return Usage(**{name: total(name) for name in Usage.__dataclass_fields__})


def sum_sizes(folder: Path) -> int:
    """Bytes of all files below a folder; what goes away meanwhile counts for nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name), follow_symlinks=False).st_size
    return total


def _read_records(layout: HostLayout) -> Iterable[Record]:
    ledger = Ledger(layout.ledger)
    for vm in ledger.vms():
        with suppress(HostFault):  # torn, or of a newer release: `nimbus vms` tells of it
            record = ledger.read(vm)
            if record is not None:
                yield record


def _read_usages(layout: HostLayout, records: Iterable[Record]) -> Iterable[Usage]:
    for record in records:
        if record.slot is None or Claim.VMM not in record.claims:
            continue
        with suppress(NimbusError, KeyError, TypeError):  # a record that a sweep made up has no plan
            plan = replan(layout, record.vm, backend=record.backend, stored=record.plan, slot=record.slot)
            yield read_usage(plan)
