"""The VM's folder, its run directory and the mount point of its jail.

QEMU's jail is a mount namespace that the keeper pivots onto read-only binds and this folder; its mounts
live in that namespace alone, so removing the folder is all the undo there is.
"""

from __future__ import annotations

from nimbus.host.disk import chown_nofollow, remove_tree
from nimbus.host_agent.plan import VmPaths, VmPlan
from nimbus.model.errors import HostFault


def acquire_jail(plan: VmPlan) -> None:
    """Make the folders; only `run` belongs to the VM's uid. Raises HostFault where the disk refuses."""
    try:
        plan.paths.folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        plan.paths.jail.mkdir(exist_ok=True, mode=0o755)
        plan.paths.run.mkdir(exist_ok=True, mode=0o700)
        chown_nofollow(plan.paths.run, plan.slot.uid, plan.slot.gid)
    except OSError as error:
        raise HostFault(f"cannot make the jail of VM {plan.vm}: {error.strerror}") from error


def release_jail(paths: VmPaths) -> None:
    """Remove the VM's folder and all in it. Absent is success."""
    remove_tree(paths.folder)
