"""What this host can still give: slots and CPUs that nobody holds, disk that nobody was promised.

`read_supply` asks the host, in a thread; counting what is left is pure. Never takes or reserves anything: a room that
is asked for twice at the same moment is refused to one of both by the claim itself. Called by poller.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from nimbus.host.cpus import list_cpus
from nimbus.host.disk import free_bytes
from nimbus.host.quarantine import list_quarantined
from nimbus.host.slots import list_slots
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.plan import HostLayout, VmPaths
from nimbus.model.errors import HostFault

_BLOCK_BYTES = 512  # of st_blocks, whatever the filesystem


@dataclass(frozen=True)
class DiskPolicy:
    """NIMBUS_DISK_RESERVE_MIB and NIMBUS_AGENT_DISK_OVERCOMMIT."""

    reserve_mib: int
    overcommit: float = 1.0


@dataclass(frozen=True)
class Supply:
    """What the host said of itself at one moment."""

    slots_held: int  # by VMs of this state root
    slots_elsewhere: int  # held by others, or kept apart in quarantine
    free_mib: int  # where the VMs' disks lie
    promised_mib: int  # what the VMs' disks may grow to
    written_mib: int  # what they hold by now: a part of what is not free any more
    cpus_elsewhere: int = 0  # that VMs of other state roots have as their own
    owners: frozenset[str] = frozenset()  # the VMs of this state root that hold a slot, by name


def watch_supply(layout: HostLayout) -> Callable[[], Awaitable[Supply]]:
    """How a room asks this host."""
    return partial(in_thread, partial(read_supply, layout))


def read_supply(layout: HostLayout) -> Supply:
    """Some files of /run and one stat for each VM. Raises HostFault where the disk cannot be asked."""
    elsewhere, held, mine = 0, set(), set()
    for slot in list_slots(layout.runtime):
        if slot.index < layout.slot_limit:
            held.add(slot.index)
            if _is_own(slot.owner, layout):
                mine.add(slot.owner)
            else:
                elsewhere += 1
    apart = {slot.index for slot in list_quarantined(layout.runtime) if slot.index < layout.slot_limit}
    promised, written = _read_overlays(layout)
    try:
        free = free_bytes(layout.state)
    except OSError as error:
        raise HostFault(f"the free space of {layout.state} cannot be read ({error.strerror})") from error
    cpus = sum(len(ticket.cpus) for ticket in list_cpus(layout.runtime) if not _is_own(ticket.owner, layout))
    slots_elsewhere = elsewhere + len(apart - held)
    return Supply(len(mine), slots_elsewhere, free >> 20, promised >> 20, written >> 20, cpus, frozenset(mine))


def count_slots(supply: Supply, limit: int, taken: int, idle: int = 0) -> int:
    """Pure: slots left, when `taken` machines were accepted: some of them hold their slot already, the rest will.

    `idle` of these wait in the pool: each is taken with its slot by a job, or gives it up to one.
    """
    return limit - supply.slots_elsewhere - max(taken, supply.slots_held - idle)


def count_cpus(supply: Supply, cpus: int, taken: int) -> int:
    """Pure: CPUs left of those that VMs get as their own, when accepted machines cost `taken` of them.

    What this agent's machines hold is not asked: one that waits in the pool gives its CPUs to a job, or is the job's.
    """
    return cpus - supply.cpus_elsewhere - taken


def count_disk_mib(supply: Supply, policy: DiskPolicy, taken_mib: int) -> int:
    """Pure: what may be promised to the next VM without touching the reserve, when `taken_mib` were accepted.

    A VM's disk is sparse, so what it may still grow by is not missing from the free space yet. All of it is counted,
    unless the operator bets (overcommit above 1) that not every VM fills its disk.
    """
    growth_mib = max(taken_mib, supply.promised_mib) - supply.written_mib
    return int(supply.free_mib - policy.reserve_mib - max(0, growth_mib) / policy.overcommit)


def _is_own(owner: str, layout: HostLayout) -> bool:
    return owner.startswith(f"nb{layout.root_id}-")


def _read_overlays(layout: HostLayout) -> tuple[int, int]:
    """(bytes promised, bytes written) of every VM's disk below this state root, a local run's too."""
    promised = written = 0
    try:
        folders = list((layout.state / "vms").iterdir())
    except FileNotFoundError:
        return 0, 0
    for folder in folders:
        try:
            found = VmPaths(folder).overlay.stat(follow_symlinks=False)
        except OSError:
            continue  # not made yet, or gone meanwhile
        promised += found.st_size
        written += min(found.st_blocks * _BLOCK_BYTES, found.st_size)
    return promised, written
