"""What a heartbeat tells of this host: its room, its ledger, what it does. Read anew each time, in one thread.

Takes no record's lock: nothing is held up by being looked at, and a disk that hangs costs a heartbeat its records, not
its sending. Called by heartbeat.py.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from nimbus import __version__
from nimbus.host import process
from nimbus.host_agent.admission import Supply, read_supply
from nimbus.host_agent.lane import in_thread_or_left
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.poller import Capacity, Room, name_arch
from nimbus.host_agent.wish import Wish
from nimbus.model.errors import HostFault, NimbusError
from nimbus.model.record import Record
from nimbus.wire.heartbeat import Doing, Heartbeat, HostRoom, RecordLine, RecordState, Wanted

log = structlog.get_logger()

_LANE = trio.CapacityLimiter(1)  # its own: while one look hangs in the kernel no further thread is given to it


@dataclass(frozen=True)
class Sighted:
    """What one look found."""

    supply: Supply
    disk_mib: int
    records: tuple[RecordLine, ...]
    pool: dict[str, int]


@dataclass
class Survey:
    """Everything that is told of, and where it is found."""

    layout: HostLayout
    room: Room
    total: Capacity
    vmm: str
    labels: tuple[str, ...]
    start: int
    wish: Wish
    is_leasing: Callable[[], bool]  # False once this host's own operator has told the agent to empty it
    is_pooling: Callable[[], bool]  # whether machines wait here for a job, or are made for that
    _beats: int = field(default=0)

    async def take(self) -> Heartbeat:
        """The host as of now."""
        self._beats += 1
        try:
            found: Sighted | None = await self._look()
        except (NimbusError, OSError) as error:
            log.warning("heartbeat.host_not_read", error=str(error))
            found = None
        left = self.room.free() if found is None else self.room.judge(found.supply)
        return Heartbeat(
            version=__version__,
            boot_id=f"{process.boot_id()} {self.layout.root_id}",
            start=self.start,
            beat=self._beats,
            doing=self._name_doing(),
            vmm=self.vmm,
            arch=name_arch(platform.machine()),
            labels=self.labels,
            total=_as_room(self.total, None if found is None else found.disk_mib),
            free=_as_room(left, left.disk_mib),
            pool={} if found is None else found.pool,
            records=None if found is None else found.records,
        )

    async def _look(self) -> Sighted:
        limit_s = self.layout.limits.look_s
        with trio.move_on_after(limit_s):
            return await in_thread_or_left(partial(look_around, self.layout), _LANE)
        raise HostFault(f"no answer in {limit_s:g} s: a look at this host hangs in the kernel")

    def _name_doing(self) -> Doing:
        busy = self.room.is_taken or self.is_pooling()
        return name_doing(self.wish.wanted, leasing=self.is_leasing(), busy=busy)


def name_doing(wanted: Wanted, *, leasing: bool, busy: bool) -> Doing:
    """Pure: the one word for what the agent does."""
    if not leasing:
        return Doing.DRAINING
    if wanted is Wanted.DRAINED:
        return Doing.DRAINING if busy else Doing.DRAINED
    return Doing.CORDONED if wanted is Wanted.CORDONED else Doing.WORKING


def look_around(layout: HostLayout) -> Sighted:
    """Slots, disk and ledger, as they are now. Raises HostFault or OSError where they cannot be read."""
    ledger, boot_id, now_ns = Ledger(layout.ledger), process.boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    lines, pool = [], Counter[str]()
    for vm in ledger.vms():
        try:
            record = ledger.read(vm)
        except HostFault:  # torn, or of a newer release: `nimbus vms` tells of it
            lines.append(RecordLine(str(vm), RecordState.UNREADABLE))
            continue
        if record is not None:
            lines.append(describe_record(record, boot_id=boot_id, now_ns=now_ns))
            pool.update(_waiting([record]))
    disk = os.statvfs(layout.state)
    return Sighted(read_supply(layout), disk.f_blocks * disk.f_frsize >> 20, tuple(lines), dict(pool))


def _waiting(records: Iterable[Record]) -> Iterable[str]:
    return (record.waits_as for record in records if record.lease is None and record.waits_as)


def describe_record(record: Record, *, boot_id: str, now_ns: int) -> RecordLine:
    """Pure: one line of the ledger."""
    key, until_ns = record.lease, record.deadline_ns if record.boot_id == boot_id else None
    return RecordLine(
        vm=str(record.vm),
        state=name_state(record),
        machine_id=None if key is None else key.machine_id,
        fence=None if key is None else key.fence,
        claims=tuple(claim.value for claim in record.claims),
        left_s=None if until_ns is None else (until_ns - now_ns) / 1e9,
    )


def name_state(record: Record) -> RecordState:
    """Pure: how far this record's VM is."""
    if record.lease is None:
        return RecordState.WAITING if record.waits_as else RecordState.LOCAL
    if record.has_end:
        return RecordState.ENDED if record.claims else RecordState.UNTOLD
    return RecordState.BOOTING if record.session is None else RecordState.RUNNING


def _as_room(capacity: Capacity, disk_mib: int | None) -> HostRoom:
    """What is overdrawn (a host that was promised more than it has) is none."""
    disk = None if disk_mib is None else max(0, disk_mib)
    return HostRoom(max(0, capacity.cpus), max(0, capacity.mem_mib), max(0, capacity.slots), disk)
