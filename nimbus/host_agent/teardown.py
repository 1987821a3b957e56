"""The only undo: release a record's claims from the newest to the oldest, then forget the record.

A normal end, a failed boot, a lost lease, a drain, a lease found dead after a restart and
`nimbus vms purge` all come here. Every release is idempotent (absent is success) and runs under its own
shield with a limit; a failure is noted in the record and the next claim is still released. What could
not be released stays in the record for the reaper.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from nimbus.host import cgroup, native, process, slots
from nimbus.host_agent.disks import release_disk
from nimbus.host_agent.jail import release_jail
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.network import release_network
from nimbus.host_agent.plan import HostLayout, VmPaths
from nimbus.model.errors import HostFault
from nimbus.model.ids import object_name
from nimbus.model.record import Record
from nimbus.model.vm import Claim

log = structlog.get_logger()

RELEASE_LIMIT_S = 10.0  # one release; a device stuck in the kernel must not hold the others back
EMPTY_LIMIT_S = 5.0  # from cgroup.kill to an empty cgroup; a process in uninterruptible sleep needs longer


@dataclass(frozen=True)
class Target:
    """What a release may know: names and paths recomputed from the layout and the record."""

    layout: HostLayout
    record: Record

    @property
    def object(self) -> str:
        return object_name(self.layout.root_id, self.record.vm)

    @property
    def paths(self) -> VmPaths:
        return VmPaths(self.layout.state / "vms" / str(self.record.vm))


async def teardown(layout: HostLayout, record: OpenRecord) -> bool:
    """Release all that `record` lists. True when nothing is left; then the record is gone too, unless it still
    holds an end that was not told.

    Runs to its end under shields with limits, whatever is cancelled around it.
    """
    with trio.CancelScope(shield=True):  # each step below carries its own limit
        for claim in reversed(record.value.claims):
            await _release(claim, Target(layout, record.value), record)
        clean = not record.value.claims
        if clean and record.value.report is None:
            await in_thread(partial(record.ledger.remove, record.value.vm))
        elif not clean:
            log.error("vm.teardown_incomplete", vm=str(record.value.vm), left=list(record.value.claims))
    return clean


async def end_vmm(layout: HostLayout, record: OpenRecord) -> None:
    """Release the VMM alone, ahead of the rest: from here on the guest does nothing more, whatever still waits."""
    with trio.CancelScope(shield=True):  # _release carries its own limit
        await _release(Claim.VMM, Target(layout, record.value), record)


async def _release(claim: Claim, target: Target, record: OpenRecord) -> None:
    started = time.monotonic()
    try:
        with trio.fail_after(RELEASE_LIMIT_S):
            # Abandoned on its limit: the thread may sit in the kernel for good; the claim stays and is tried again.
            await in_thread(partial(_release_once, claim, target), abandon=True)
    except (Exception, trio.TooSlowError) as error:  # noqa: BLE001 - the next claim is released whatever this one did
        log.warning("claim.release_failed", vm=str(record.value.vm), claim=str(claim), error=str(error))
        await _note(record, record.value.with_failure(f"{claim}: {type(error).__name__}: {error}"))
        return
    await _note(record, record.value.strike(claim))
    log.debug("claim.released", vm=str(record.value.vm), claim=str(claim), ms=_ms_since(started))


def _release_once(claim: Claim, target: Target) -> None:
    with _alone(f"{target.object} {claim}"):
        RELEASES[claim](target)


_under_way: set[str] = set()
_under_way_lock = threading.Lock()


@contextmanager
def _alone(release: str) -> Iterator[None]:
    """HostFault while an earlier try still sits in the kernel: one more each round would use up all threads."""
    with _under_way_lock:
        if release in _under_way:
            raise HostFault("an earlier release of it still hangs in the kernel")
        _under_way.add(release)
    try:
        yield
    finally:
        with _under_way_lock:
            _under_way.discard(release)


async def _note(record: OpenRecord, value: Record) -> None:
    """Write the record; a disk that refuses must not end a teardown: releasing twice is harmless."""
    try:
        await in_thread(partial(record.write, value))
    except HostFault as error:
        record.value = value
        log.warning("ledger.write_failed", vm=str(value.vm), error=str(error))


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


def _release_vmm(target: Target) -> None:
    """Kill the VMM and its keeper and wait until the kernel has let go of both: the exit barrier."""
    record = target.record
    if record.boot_id != process.boot_id():
        return  # the host rebooted: no process of that record can live
    cgroup.kill_cgroup(target.object)
    if not cgroup.wait_empty(target.object, EMPTY_LIMIT_S):
        raise HostFault(f"the cgroup of VM {record.vm} is not empty {EMPTY_LIMIT_S:g} s after its kill")
    if record.keeper is not None and process.is_alive(record.keeper):
        _kill_process(record)


def _kill_process(record: Record) -> None:
    """A keeper outside its cgroup is a bug; it is killed all the same, by an identity that cannot be recycled."""
    assert record.keeper is not None  # noqa: S101 - narrowed by the caller
    try:
        fd = process.open_pidfd(record.keeper)
    except ProcessLookupError:
        return
    try:
        native.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


def _release_cgroup(target: Target) -> None:
    cgroup.remove_cgroup(target.object, EMPTY_LIMIT_S)


def _release_jail(target: Target) -> None:
    release_jail(target.paths)


def _release_disk(target: Target) -> None:
    release_disk(target.paths.disk)


def _release_network(target: Target) -> None:
    release_network(target.object)


def _release_slot(target: Target) -> None:
    """The slot of the record, and any that was claimed for it just before its supervisor died.

    Its uid and addresses go to the next tenant, so never before the exit barrier and the network's end.
    """
    held = {Claim.VMM, Claim.CGROUP, Claim.NETWORK} & set(target.record.claims)
    if held:
        raise HostFault(f"the slot is kept while {', '.join(sorted(held))} of VM {target.record.vm} is not released")
    slots.release_slots_of(target.layout.runtime, target.object)


RELEASES: dict[Claim, Callable[[Target], None]] = {
    Claim.VMM: _release_vmm,
    Claim.CGROUP: _release_cgroup,
    Claim.JAIL: _release_jail,
    Claim.DISK: _release_disk,
    Claim.NETWORK: _release_network,
    Claim.SLOT: _release_slot,
}
