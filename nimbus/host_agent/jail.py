"""The VM's folder, and its jail: the mount point of the keeper's, or the chroot that Firecracker's jailer takes over.

QEMU's jail is a mount namespace that the keeper pivots onto read-only binds and this folder; its mounts live in that
namespace alone, so removing the folder is all the undo there is. Firecracker's is a folder on the host: what all VMs
share is linked into it and never changes hands, the VM's own disk gets a second name in it, and it is purged by name
before and after. Synchronous; called in threads by claims.py.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from nimbus.host.chroots import new_chroot, remove_chroots
from nimbus.host.disk import chown_nofollow, remove_tree
from nimbus.host.hardlink import lend_file, share_file
from nimbus.host_agent.jailer import OVERLAY, plan_shared
from nimbus.host_agent.metrics import count_jail_copy
from nimbus.host_agent.plan import VmPaths, VmPlan
from nimbus.host_agent.vmm.machine import Boot
from nimbus.model.errors import HostFault

log = structlog.get_logger()


def acquire_jail(plan: VmPlan, boot: Boot | None = None) -> None:
    """Make the folders, and the chroot where `boot` has a jailer. Raises HostFault where the disk refuses."""
    try:
        plan.paths.folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        plan.paths.jail.mkdir(exist_ok=True, mode=0o755)
        plan.paths.run.mkdir(exist_ok=True, mode=0o700)
        chown_nofollow(plan.paths.run, plan.slot.uid, plan.slot.gid)
        if boot is not None and boot.jailer is not None:
            _fill_chroot(plan, boot)
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        raise HostFault(f"cannot make the jail of VM {plan.vm}: {error.strerror}{what}") from error


def release_jail(jails: Path, name: str, paths: VmPaths) -> None:
    """Remove the chroot and the VM's folder, and all in them. Absent is success."""
    remove_chroots(jails, name)
    remove_tree(paths.folder)


def _fill_chroot(plan: VmPlan, boot: Boot) -> None:
    copied = []
    with new_chroot(plan.jails, boot.binary.name, plan.object) as root:
        for name, source in plan_shared(boot).items():
            if not share_file(source, root, name):
                copied.append(name)
        if not lend_file(plan.paths.overlay, root, OVERLAY):
            plan.paths.overlay.unlink()  # the copy is the VM's disk now: this one would only grow old
            copied.append(OVERLAY)
    for name in copied:
        count_jail_copy(name)
        log.warning("jail.copied", vm=str(plan.vm), file=name, base=str(plan.jails))
