"""The table of claims: for each kind what takes it, and what gives it back.

One act is one synchronous call in a thread of its own, under a limit: `acquire` and `release` are the only doors.
A thread that sits in the kernel beyond its limit is left behind, and until it has ended no release of that claim is
tried: whatever it still makes is there to be found by the next. (A purge in another process cannot see the thread;
what it makes after that bears the VM's name, and the reaper's sweep finds it.) An act that cannot be done again and
again on one slot puts that slot into quarantine. Decides nothing of order. Called by build.py and teardown.py.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
import trio

from nimbus.host import cgroup, cpus, native, process, quarantine, slots
from nimbus.host_agent.disks import acquire_disk, release_disk
from nimbus.host_agent.jail import acquire_jail, release_jail
from nimbus.host_agent.lane import MAKE_LIMITER, UNDO_LIMITER, in_thread, in_thread_or_left
from nimbus.host_agent.metrics import QUARANTINES
from nimbus.host_agent.network import acquire_network, plan_uplink, release_network
from nimbus.host_agent.plan import HostLayout, VmPaths, VmPlan
from nimbus.host_agent.vmm.machine import Boot
from nimbus.model.errors import HostFault
from nimbus.model.ids import object_name
from nimbus.model.placement import Placement
from nimbus.model.record import ProcessId, Record
from nimbus.model.vm import Claim, Shape, Slot
from nimbus.storage.content import ImageStore
from nimbus.storage.overlays import overlay_template

log = structlog.get_logger()

VMM_OVERHEAD_MIB = 512  # a VMM's own heap, stacks and TCG's translations, beside the guest's memory
Verb = Literal["acquire", "release"]


@dataclass(frozen=True)
class Target:
    """One VM as an act may know it: names and paths recomputed from the layout and the record."""

    layout: HostLayout
    record: Record
    plan: VmPlan | None = None  # once a slot is held; a release does without
    overlay: Path | None = None  # what the VM's disk begins as; None: an empty filesystem
    boot: Boot | None = None  # what a jailer's chroot is filled with

    @property
    def object(self) -> str:
        return object_name(self.layout.root_id, self.record.vm)

    @property
    def paths(self) -> VmPaths:
        return VmPaths(self.layout.state / "vms" / str(self.record.vm))

    @property
    def planned(self) -> VmPlan:
        assert self.plan is not None  # noqa: S101 - whoever acquires more than a slot has a plan
        return self.plan


@dataclass(frozen=True)
class Pair:
    """What takes a claim and what gives it back. The VMM alone is started elsewhere: by its backend's `launch`."""

    acquire: Callable[[Target], Slot | None] | None
    release: Callable[[Target], None]
    of_slot: bool = False  # it stands or falls with the slot's addresses and uid


async def acquire(claim: Claim, target: Target) -> Slot | None:
    """Take it. HostFault where the host refuses or does not answer; what was made by then is teardown's to find."""
    limit_s = target.layout.limits.acquire_s
    with trio.move_on_after(limit_s), _Turn() as turn:
        return await in_thread_or_left(partial(_act, "acquire", claim, target, turn), MAKE_LIMITER)
    await in_thread(partial(_note_failure, "acquire", claim, target, f"no answer in {limit_s:g} s"))
    raise HostFault(f"the {claim} of VM {target.record.vm} was not there after {limit_s:g} s: it hangs in the kernel")


async def release(claim: Claim, target: Target) -> None:
    """Give it back; absent is success. HostFault or OSError where that failed, or an earlier act on it still hangs."""
    limit_s = target.layout.limits.release_s
    with trio.move_on_after(limit_s), _Turn() as turn:
        await in_thread_or_left(partial(_act, "release", claim, target, turn), UNDO_LIMITER)
        return
    await in_thread(partial(_note_failure, "release", claim, target, f"no answer in {limit_s:g} s"))
    raise HostFault(f"no answer in {limit_s:g} s: it hangs in the kernel")


async def settle(target: Target) -> None:
    """Wait, within a limit, for an acquisition that was cancelled: its thread may have been almost done."""
    wait = partial(_wait_acquired, target.object, target.layout.limits.settle_s)
    if _is_acquiring(target.object) and not await in_thread(wait):
        log.warning("claim.still_acquired", vm=str(target.record.vm))


def plan_limits(shape: Shape, placement: Placement | None = None, io: cgroup.IoLimit | None = None) -> cgroup.Limits:
    """Pure: the cgroup limits of a VM of this shape: its vCPUs and CPUs, its memory and what the VMM itself needs."""
    limits = cgroup.Limits(cpus=shape.cpus, mem_mib=shape.mem_mib + VMM_OVERHEAD_MIB, pids=256, io=io)
    return limits if placement is None else replace(limits, cpuset=placement.cpus, mems=placement.mems)


def _act(verb: Verb, claim: Claim, target: Target, turn: _Turn) -> Slot | None:
    pair = CLAIMS[claim]
    with _alone(target.object, claim, verb, turn):
        try:
            done = pair.acquire(target) if verb == "acquire" and pair.acquire else None
            if verb == "release":
                pair.release(target)
        except (HostFault, OSError) as error:
            _note_failure(verb, claim, target, str(error))
            raise
        if pair.of_slot and target.record.slot is not None:
            with suppress(OSError):  # it only counts
                quarantine.note_success(target.layout.runtime, target.record.slot.index, f"{verb} {claim}")
        return done


def _note_failure(verb: Verb, claim: Claim, target: Target, why: str) -> None:
    slot = target.record.slot
    if not CLAIMS[claim].of_slot or slot is None:
        return
    act = f"{verb} {claim}"
    with suppress(OSError):  # it only counts: the act's own error is the one to be told
        if quarantine.note_failure(target.layout.runtime, slot.index, act, why):
            QUARANTINES.inc()
            log.error("slot.quarantined", slot=slot.index, act=act, error=why)


_under_way: dict[tuple[str, Claim], Verb] = {}
_ended = threading.Condition()


class _Turn:
    """Whether an act may still begin: once nobody waits for it, a thread that comes to it late must not."""

    def __init__(self) -> None:
        self.is_over = False

    def __enter__(self) -> _Turn:
        return self

    def __exit__(self, *_: object) -> None:
        with _ended:
            self.is_over = True


@contextmanager
def _alone(name: str, claim: Claim, verb: Verb, turn: _Turn) -> Iterator[None]:
    """HostFault while an earlier act sits in the kernel: one more each round would use up all threads, and a release
    beside an acquisition would miss what that makes."""
    with _ended:
        if turn.is_over:
            raise HostFault("nobody waits for it any more")
        if (name, claim) in _under_way:
            raise HostFault("an earlier act on it still hangs in the kernel")
        _under_way[name, claim] = verb
    try:
        yield
    finally:
        with _ended:
            del _under_way[name, claim]
            _ended.notify_all()


def _is_acquiring(name: str) -> bool:
    with _ended:
        return any(owner == name and verb == "acquire" for (owner, _), verb in _under_way.items())


def _wait_acquired(name: str, limit_s: float) -> bool:
    with _ended:  # a Condition's lock may be taken twice by one thread
        return _ended.wait_for(lambda: not _is_acquiring(name), limit_s)


def _claim_slot(target: Target) -> Slot:
    layout = target.layout
    return slots.claim_slot(
        layout.runtime, target.object, limit=layout.slot_limit, uid_base=layout.uid_base, gid_base=layout.gid_base
    )


def _release_slot(target: Target) -> None:
    """The slot of the record, or the one that was claimed for it just before its supervisor died; and the VM's CPUs.

    Its uid, CPUs and addresses go to the next tenant, so never before the exit barrier and the network's end.
    """
    held = {Claim.VMM, Claim.CGROUP, Claim.NETWORK} & set(target.record.claims)
    if held:
        raise HostFault(f"the slot is kept while {', '.join(sorted(held))} of VM {target.record.vm} is not released")
    cpus.release_cpus(target.layout.runtime, target.object)
    if target.record.slot is None:
        slots.release_slots_of(target.layout.runtime, target.object)
    else:
        slots.release_slot(target.layout.runtime, target.record.slot.index, target.object)


def _acquire_network(target: Target) -> None:
    acquire_network(target.planned.net)


def _release_network(target: Target) -> None:
    slot, address = target.record.slot, None
    if slot is not None:
        address = plan_uplink(target.layout.subnet, slot.index)[1].ip
    release_network(target.object, address)


def _acquire_disk(target: Target) -> None:
    plan = target.planned
    acquire_disk(plan, target.overlay or _empty_overlay(target.layout, plan))


def _empty_overlay(layout: HostLayout, plan: VmPlan) -> Path:
    return overlay_template(ImageStore(layout.images), plan.shape.disk_mib)


def renew_disk(layout: HostLayout, plan: VmPlan) -> None:
    """An empty disk in place of the one that a boot has used: its claim stays as it is."""
    release_disk(plan.paths.disk)
    acquire_disk(plan, _empty_overlay(layout, plan))


def renew_jail(plan: VmPlan, boot: Boot) -> None:
    """The same for the jail: no jailer takes a chroot that another has used."""
    acquire_jail(plan, boot)


def _release_disk(target: Target) -> None:
    release_disk(target.paths.disk)


def _acquire_jail(target: Target) -> None:
    acquire_jail(target.planned, target.boot)


def _release_jail(target: Target) -> None:
    release_jail(target.layout.jails, target.object, target.paths)


def _acquire_cgroup(target: Target) -> None:
    plan, layout = target.planned, target.layout
    degraded = cgroup.ensure_leaf(target.object, plan_limits(plan.shape, plan.placement, layout.io))
    lacking = [degraded[controller] for controller in cgroup.CONTROLLERS if controller in degraded]
    if lacking and layout.require_limits:
        raise HostFault(f"{'; '.join(lacking)}, and NIMBUS_REQUIRE_LIMITS wants every VM limited")
    if "io" in degraded:
        raise HostFault(f"{degraded['io']}, and this host's VMs are to have a limit of it")
    if degraded:
        log.debug("vm.not_limited", vm=str(target.record.vm), why=list(degraded.values()))


def _release_cgroup(target: Target) -> None:
    cgroup.remove_cgroup(target.object, target.layout.limits.empty_s)


def _release_vmm(target: Target) -> None:
    """Kill the VMM and its keeper and wait until the kernel has let go of both: the exit barrier.

    Both live in the VM's cgroup. The keeper's own end is awaited by pidfd too: it decides over the VMM's life, so a
    keeper outside its cgroup, which would be a bug, must not live on either.
    """
    record, limit_s = target.record, target.layout.limits.empty_s
    if record.boot_id != process.boot_id():
        return  # the host rebooted: no process of that record can live
    with _holding(record.keeper) as keeper:  # opened before the kill: afterwards its pid may be another's
        cgroup.kill_cgroup(target.object)
        if not cgroup.wait_empty(target.object, limit_s):
            raise HostFault(f"the cgroup of VM {record.vm} is not empty {limit_s:g} s after its kill")
        if keeper is not None and not end_process(keeper, limit_s):
            raise HostFault(f"the keeper of VM {record.vm} lives on {limit_s:g} s after its kill")


def end_process(pidfd: int, limit_s: float) -> bool:
    """Kill it and wait. False when `limit_s` passed before its end.

    Not asked first whether it lives: a process leaves its cgroup before it is dead, and may be reaped after the answer.
    """
    with suppress(ProcessLookupError):
        native.pidfd_send_signal(pidfd, signal.SIGKILL)
    return process.wait_ended(pidfd, limit_s)


@contextmanager
def _holding(keeper: ProcessId | None) -> Iterator[int | None]:
    """A pidfd of that very process; None where it has gone."""
    if keeper is None:
        yield None
        return
    try:
        pidfd = process.open_pidfd(keeper)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


# In the order of acquisition; torn down in reverse.
CLAIMS: dict[Claim, Pair] = {
    Claim.SLOT: Pair(_claim_slot, _release_slot),
    Claim.NETWORK: Pair(_acquire_network, _release_network, of_slot=True),
    Claim.DISK: Pair(_acquire_disk, _release_disk),
    Claim.JAIL: Pair(_acquire_jail, _release_jail),
    Claim.CGROUP: Pair(_acquire_cgroup, _release_cgroup),
    Claim.VMM: Pair(None, _release_vmm, of_slot=True),
}
