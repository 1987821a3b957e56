"""The VM's own disk: a sparse clone of an empty filesystem, laid over the shared read-only root.

Whatever a job writes goes there and dies with the VM. Synchronous; called in threads by claims.py and serve.py.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from nimbus.host.disk import chown_nofollow, clone_file, free_bytes, remove_tree
from nimbus.host_agent.plan import VmPlan
from nimbus.model.errors import HostFault

RESERVE_BYTES = 256 << 20  # what stays free for the host's own ledger, logs and spool

FULL_BYTES = 1 << 20  # below this a VMM's write of some blocks may already be refused


def acquire_disk(plan: VmPlan, template: Path) -> None:
    """Make the overlay, owned by the VM's uid. Raises HostFault where the disk is full or refuses."""
    try:
        plan.paths.disk.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = free_bytes(plan.paths.folder)
        if free < RESERVE_BYTES:
            raise HostFault(f"disk full: {free >> 20} MiB free at {plan.paths.folder}, {RESERVE_BYTES >> 20} are kept")
        clone_file(template, plan.paths.overlay)
        chown_nofollow(plan.paths.overlay, plan.slot.uid, plan.slot.gid)
        chown_nofollow(plan.paths.disk, plan.slot.uid, plan.slot.gid)
    except OSError as error:
        raise HostFault(f"cannot make the disk of VM {plan.vm}: {error.strerror}") from error


def is_full(plan: VmPlan) -> bool:
    """Whether the host would refuse the VM's next write."""
    return free_bytes(plan.paths.folder) < FULL_BYTES


def release_disk(folder: Path) -> None:
    """Remove the VM's disk folder, and the VM's own where nothing else is in it. Absent is success."""
    remove_tree(folder)
    with suppress(OSError):  # most often the jail's parts are in it, or took it away; an acquisition may have come late
        folder.parent.rmdir()
