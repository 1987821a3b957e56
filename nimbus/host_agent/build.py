"""Builds what a VM needs on the host, in the order of its claims. Undoes nothing: teardown.py does.

The record that lists every claim is on disk before the first of these runs. Called by lifecycle.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nimbus.host import cgroup, slots
from nimbus.host_agent.disks import acquire_disk
from nimbus.host_agent.jail import acquire_jail
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.network import acquire_network
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import HostLayout, VmPlan, plan_vm
from nimbus.host_agent.vmm.choice import Choice
from nimbus.host_agent.vmm.machine import Boot
from nimbus.model.ids import object_name
from nimbus.model.vm import Claim, Shape
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image
from nimbus.storage.overlays import overlay_template

VMM_OVERHEAD_MIB = 512  # a VMM's own heap, stacks and TCG's translations, beside the guest's memory
CLAIMS = (Claim.SLOT, Claim.NETWORK, Claim.DISK, Claim.JAIL, Claim.CGROUP, Claim.VMM)


@dataclass(frozen=True)
class Host:
    """This host, as the agent found it at its start."""

    layout: HostLayout
    choice: Choice
    tsc_khz: int
    kernel_override: Path | None = None
    rootfs_override: Path | None = None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What every VM of this host will own, whatever its backend."""
        return CLAIMS


async def build_vm(
    host: Host, record: OpenRecord, shape: Shape, image: Image | None, phases: Phases
) -> tuple[VmPlan, Boot]:
    """Claim slot, network, disk, jail and cgroup. Raises HostFault; what was built by then is in the record."""
    layout, vm = host.layout, record.value.vm
    name = object_name(layout.root_id, vm)
    with phases.span("slot"):
        slot = await in_thread(
            partial(slots.claim_slot, layout.runtime, name, limit=layout.slot_limit, uid_base=layout.uid_base)
        )
        await in_thread(partial(record.change, slot=slot))
    plan = plan_vm(
        layout,
        vm,
        shape=shape,
        image=image.name if image else "none",
        backend=host.choice.vmm.name,
        accel=host.choice.accel,
        slot=slot,
    )
    with phases.span("network"):
        await in_thread(partial(acquire_network, plan.net))
    with phases.span("disk"):
        overlay = await in_thread(partial(overlay_template, ImageStore(layout.images), shape.disk_mib))
        await in_thread(partial(acquire_disk, plan, overlay))
    with phases.span("jail"):
        await in_thread(partial(acquire_jail, plan))
        await in_thread(partial(cgroup.ensure_leaf, name, plan_limits(shape)))
    return plan, Boot(image, overlay, host.choice.binary, host.tsc_khz)


def plan_limits(shape: Shape) -> cgroup.Limits:
    """Pure: the cgroup limits of a VM of this shape: its vCPUs, its memory and what the VMM itself needs."""
    return cgroup.Limits(cpus=shape.cpus, mem_mib=shape.mem_mib + VMM_OVERHEAD_MIB, pids=256)
