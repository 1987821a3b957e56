"""Builds what a VM needs on the host, in the order of its claims. Undoes nothing: teardown.py does.

The record that lists every claim is on disk before the first of these runs. Called by lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nimbus.host.slots import NoSlot
from nimbus.host_agent import claims
from nimbus.host_agent.attesting import attest_boot
from nimbus.host_agent.claims import CLAIMS, Target
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.page import Page
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.placing import Places
from nimbus.host_agent.plan import HostLayout, VmPlan, plan_vm, with_placement
from nimbus.host_agent.vmm.choice import Choice
from nimbus.host_agent.vmm.machine import Boot, Stage
from nimbus.model.errors import HostFault
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Claim, Shape, Slot
from nimbus.storage.images import Image

if TYPE_CHECKING:
    from nimbus.host_agent.snapshots.templates import Templates


SHARED = Places(why="nobody asked for CPUs of its own")


@dataclass(frozen=True)
class Ready:
    """A VM that has all it needs on this host. `stage` tells how far a pool has brought it up; None: not at all."""

    plan: VmPlan
    boot: Boot
    stage: Stage | None = None


class Claimed(Protocol):
    """A machine that waited and is one job's now."""

    @property
    def record(self) -> OpenRecord: ...
    @property
    def page(self) -> Page[OpenRecord]: ...
    @property
    def plan(self) -> VmPlan: ...
    @property
    def boot(self) -> Boot: ...
    @property
    def stage(self) -> Stage | None: ...

    async def enter(self, key: LeaseKey | None, deadline_ns: int | None) -> None:
        """Put its record under the job's lease. Raises HostFault where the disk refuses."""
        ...


class Waiting(Protocol):
    """The machines that wait for jobs, as those know them who make and begin machines: pool/reserve.py's Reserve."""

    @property
    def idle(self) -> frozenset[str]:
        """Object names of machines that hold a slot and have no job."""
        ...

    @property
    def waiting(self) -> Sequence[Claimed]:
        """The machines that a job could be given now."""
        ...

    def claim(self, image: Image | None, shape: Shape) -> Claimed | None:
        """The readiest machine of exactly this, the caller's from now on; None where there is none."""
        ...

    async def make_room(self) -> bool:
        """Give up the machine that waits longest. True once its slot is free, False where none waits."""
        ...

    async def run(self) -> None:
        """Keep it filled until cancelled; then all that waits is torn down."""
        ...


@dataclass(frozen=True)
class Host:
    """This host, as the agent found it at its start."""

    layout: HostLayout
    choice: Choice
    tsc_khz: int
    templates: Templates | None = None  # None: every boot is cold
    reserve: Waiting | None = None  # None: no machine waits for a job
    kernel_override: Path | None = None
    rootfs_override: Path | None = None
    places: Places = SHARED

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What every VM of this host will own, whatever its backend."""
        return tuple(CLAIMS)


async def build_vm(
    host: Host, record: OpenRecord, shape: Shape, image: Image | None, phases: Phases
) -> tuple[VmPlan, Boot]:
    """Claim slot, network, disk, jail and cgroup. Raises HostFault; what was built by then is in the record."""
    ready = None
    if host.templates is not None and image is not None:
        with phases.span("template"):
            ready = await host.templates.find(image, shape)
    with phases.span("slot"):
        slot = await _claim_slot(host, record)
        owner = Target(host.layout, record.value).object
        placement = await in_thread(partial(host.places.take, host.layout.runtime, owner, shape.cpus))
        stored = with_placement(record.value.plan, placement)
        await in_thread(partial(record.change, slot=slot, plan=stored))
    plan = plan_vm(
        host.layout,
        record.value.vm,
        shape=shape,
        image=image.name if image else "none",
        backend=host.choice.vmm.name,
        accel=host.choice.accel,
        slot=slot,
        placement=placement,
    )
    choice = host.choice
    boot = Boot(image, choice.binary, host.tsc_khz, choice.jailer, choice.seccomp_filter)
    boot = ready.boot(boot) if ready else boot
    with phases.span("attest"):
        await attest_boot(record, boot)
    target = Target(host.layout, record.value, plan, ready.template.overlay if ready else None, boot)
    with phases.span("network"):
        await claims.acquire(Claim.NETWORK, target)
    with phases.span("disk"):
        lost = await _acquire(host, Claim.DISK, target)
    with phases.span("jail"):
        lost = await _acquire(host, Claim.JAIL, target) or lost
        await claims.acquire(Claim.CGROUP, target)
    if lost or await _is_outdated(host, boot):
        boot = await start_over(host, plan, boot)  # built anew or set aside meanwhile: its parts may be of two makes
        await attest_boot(record, boot)
    return plan, boot


async def _claim_slot(host: Host, record: OpenRecord) -> Slot:
    """A job's slot; where none is left, that of a machine that waits for jobs."""
    while True:
        with suppress(NoSlot):
            return await _acquire_slot(host, record)
        if host.reserve is None or not await host.reserve.make_room():
            return await _acquire_slot(host, record)  # and say what it says


async def _acquire_slot(host: Host, record: OpenRecord) -> Slot:
    slot = await claims.acquire(Claim.SLOT, Target(host.layout, record.value))
    assert isinstance(slot, Slot)  # noqa: S101 - the one claim that has a value
    return slot


async def _acquire(host: Host, claim: Claim, target: Target) -> bool:
    """Take what is made of a template's files. True where they went away meanwhile, which is no fault of this job's."""
    failed: HostFault | None = None
    try:
        await claims.acquire(claim, target)
    except HostFault as error:
        failed = error
    if failed is not None and (target.boot is None or not await _is_outdated(host, target.boot)):
        raise failed
    return failed is not None


async def _is_outdated(host: Host, boot: Boot) -> bool:
    """Whether its template was replaced, removed or set aside since it was found."""
    if boot.template is None or host.templates is None:
        return False
    return not await host.templates.is_current(boot.template)


async def start_over(host: Host, plan: VmPlan, boot: Boot) -> Boot:
    """A cold boot in a VM that was built for a clone: its disk begins empty, and no jailer takes a used chroot."""
    cold = boot.without_template()
    await in_thread(partial(claims.renew_disk, host.layout, plan))
    await in_thread(partial(claims.renew_jail, plan, cold))
    return cold
