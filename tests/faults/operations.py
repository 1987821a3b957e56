"""What an operation of the agent is: a function that asks the kernel, a disk, a keeper, a guest or a service.

Every public function of the modules below is one, but for those that only compute; of the private ones those that are
named. Each may fail in the way that its callers must expect of it. Called by strike.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import trio

from nimbus.host.cgroup import cgroup_dir
from nimbus.host_agent.guesttalk import Talk
from nimbus.host_agent.jailer import SecurityAlarm
from nimbus.host_agent.keeper import Keeper
from nimbus.host_agent.pinning import PinFailed
from nimbus.host_agent.vmm.fcapi import ApiClient
from nimbus.host_agent.vmm.machine import Machine
from nimbus.model.errors import HostFault, Unavailable
from nimbus.model.ids import VmId, object_name, parse_object_name, state_root_id
from nimbus.storage.attest import AlteredImage
from nimbus.storage.templates import DamagedTemplate

ROOT = Path(__file__).parents[2] / "nimbus"


def _refused(number: int) -> Callable[[], Exception]:
    return lambda: OSError(number, os.strerror(number))


def _sick() -> Exception:
    return HostFault("struck: this host refused")


def _damaged() -> Exception:
    return DamagedTemplate("0" * 64, "struck")


# Module -> how its operations fail where nothing below says otherwise.
MODULES: dict[str, Callable[[], Exception]] = {
    "host.native": _refused(errno.EPERM),
    "host.process": _refused(errno.EMFILE),
    "host.disk": _refused(errno.ENOSPC),
    "host.netns": _sick,
    "host.link": _sick,
    "host.nft": _sick,
    "host.conntrack": _sick,
    "host.cgroup": _sick,
    "host.slots": _sick,
    "host.cpus": _sick,
    "host.roots": _sick,
    "host.quarantine": _refused(errno.EIO),
    "host.chroots": _refused(errno.EIO),
    "host.hardlink": _refused(errno.ENOSPC),
    "host.sealed": _refused(errno.ENOSPC),
    "host.topology": _sick,
    "storage.attest": lambda: AlteredImage("struck: it is another file"),
    "storage.images": _sick,
    "storage.overlays": _sick,
    "storage.sparse": _refused(errno.EIO),
    "storage.templatefolder": _damaged,
    "storage.templates": _sick,
    "storage.verified": _damaged,
    "host_agent.ledger": _sick,
    "host_agent.output.spool": _sick,
    "host_agent.output.logspool": _sick,
    "host_agent.adopt": _sick,
    "host_agent.network": _sick,
    "host_agent.disks": _sick,
    "host_agent.jail": _sick,
    "host_agent.keeper": _sick,
    "host_agent.control": lambda: Unavailable("struck: no answer"),
    "host_agent.attesting": _sick,
    "host_agent.jailer": lambda: SecurityAlarm("struck: it is not jailed"),
    "host_agent.pinning": lambda: PinFailed("struck: it is not where it was put"),
    "host_agent.placing": _sick,
    "host_agent.pool.member": _sick,
    "host_agent.pool.reserve": _sick,
    "host_agent.snapshots.build": _sick,
    "host_agent.snapshots.templates": _sick,
    "host_agent.vmm.fcapi": _sick,
    "host_agent.vmm.firecracker": _sick,
    "host_agent.vmm.launch": _sick,
    "host_agent.vmm.machine": _refused(errno.ECONNREFUSED),
    "host_agent.vmm.qmpclient": _sick,
    "host_agent.vmm.sockets": _refused(errno.ECONNREFUSED),
}

# Private functions that are the one place of an act, and how they fail; and public ones that fail unlike their module.
PRIVATE: dict[str, Callable[[], Exception]] = {
    "host.slots._take_first": _refused(errno.ENOSPC),
    "host.cgroup._enable": _refused(errno.EBUSY),
    "host.cgroup._remove_folder": _sick,
    "host.disk._sync_folder": _refused(errno.EIO),
    "host.disk._copy_range": _refused(errno.EIO),
    "host.link._set_families": _refused(errno.ENOBUFS),
    "host.cpuinfo.read_cpu": _sick,
    "storage.attest.Attestor._read": _refused(errno.EIO),
    "storage.content.hash_file": _refused(errno.EIO),
    "storage.content.fsync_path": _refused(errno.EIO),
    "storage.templatefolder.fill_folder": _refused(errno.ENOSPC),
    "host_agent.build.start_over": _sick,
    "host_agent.snapshots.build._open_machine": _sick,
    "host_agent.snapshots.build._wait_listening": _sick,
    "host_agent.snapshots.templates.Templates._open": _damaged,
    "host_agent.snapshots.templates.Templates._seal": _refused(errno.ENOSPC),
    "host_agent.vmm.firecracker.Firecracker.connect_guest": _refused(errno.ECONNREFUSED),
    "host_agent.vmm.firecracker.open_vsock": _refused(errno.ECONNREFUSED),
    "host_agent.output.spool._write_all": _sick,
    "host_agent.keeper._start": _sick,
    "host_agent.keeper._open_outer": _refused(errno.EAGAIN),
    "host_agent.keeper._open_folder": _sick,
    "host_agent.keeper.Keeper._ask": lambda: Unavailable("struck: no answer"),
    "host_agent.keeper.Keeper._connect": lambda: Unavailable("struck: no answer"),
    "host_agent.guesttalk.Talk._attach": lambda: trio.BrokenResourceError("struck"),
    "host_agent.guesttalk.Talk._send": lambda: trio.BrokenResourceError("struck"),
    "host_agent.guesttalk.Talk._send_job": lambda: trio.BrokenResourceError("struck"),
    "host_agent.guesttalk.Talk._hear_hello": lambda: trio.BrokenResourceError("struck"),
    "host_agent.guesttalk.Talk._hear_output": lambda: trio.BrokenResourceError("struck"),
    "host_agent.guesttalk.Talk._hear_exit": lambda: trio.BrokenResourceError("struck"),
    "host_agent.control.ControlPlane._exchange": lambda: Unavailable("struck: no answer"),
    "host_agent.output.shipping._post": lambda: Unavailable("struck: no answer", 0.0),
}

# Among the public functions: what only computes, or cannot fail in a way that a caller could answer.
PURE = frozenset(
    {
        "host_agent.adopt.Estate.held",
        "host.cgroup.cgroup_dir",
        "host.cgroup.cgroup_mount",
        "host.cgroup.find_cgroup2",
        "host.netns.netns_path",
        "host.nft.is_installed",
        "host.nft.parse_error",
        "host.nft.render_removal",
        "host_agent.ledger.parse_record",
        "host_agent.ledger.render_record",
        "host_agent.output.logspool.LogSpool.offsets",
        "host_agent.output.logspool.LogSpool.shipped",
        "host_agent.output.logspool.LogSpool.stored_bytes",
        "host_agent.output.logspool.LogSpool.abandon",
        "host_agent.network.plan_network",
        "host_agent.network.plan_uplink",
        "host_agent.network.render_host_rules",
        "host_agent.network.render_netns_rules",
        "host_agent.output.spool.Spool.has_room",
        "host_agent.output.spool.Spool.stored_bytes",
        "host_agent.vmm.machine.render_keeper_spec",
        "host.chroots.chroot_path",
        "storage.images.check_image_name",
        "storage.images.parse_manifest",
        "storage.sparse.is_zero",
        "storage.templatefolder.Template.memory",
        "storage.templatefolder.Template.overlay",
        "storage.templatefolder.Template.shape",
        "storage.templatefolder.Template.state",
        "storage.templates.TemplateStore.aside",
        "storage.templates.TemplateStore.staging",
        "host_agent.jailer.plan_jailer",
        "host_agent.jailer.plan_pid_file",
        "host_agent.jailer.plan_root",
        "host_agent.jailer.plan_shared",
        "host_agent.placing.Places.core_width",
        "host_agent.placing.Places.cpus",
        "host_agent.placing.parse_housekeeping",
        "host_agent.placing.plan_places",
        "host_agent.pool.member.Member.serves",
        "host_agent.pool.member.Member.stage",
        "host_agent.pool.reserve.Reserve.idle",
        "host_agent.pool.reserve.Reserve.run",
        "host_agent.pool.reserve.Reserve.waiting",
        "host_agent.snapshots.templates.ReadyTemplate.boot",
        "host_agent.snapshots.templates.ReadyTemplate.memory_fd",
        "host_agent.snapshots.templates.ReadyTemplate.state_fd",
        "host_agent.snapshots.templates.Templates.close",
        "host_agent.snapshots.templates.Templates.is_trusted",
        "host_agent.snapshots.templates.Templates.is_usable",
        "host_agent.vmm.fcapi.CallLimits.of",
        "host_agent.vmm.firecracker.Firecracker.describe",
        "host_agent.vmm.firecracker.check_config",
        "host_agent.vmm.firecracker.check_version",
        "host_agent.vmm.firecracker.plan_boot",
        "host_agent.vmm.firecracker.plan_drives",
        "host_agent.vmm.firecracker.plan_metadata",
    }
)

# What never fails, as its callers may rely on: it only takes time, or is where an agent dies.
SURE = frozenset(
    {
        "storage.templatefolder.read_generation",
        "host_agent.pool.member.Member.claim",
        "host_agent.pool.reserve.Reserve.claim",
        "host_agent.snapshots.templates.Templates.distrust",
        "host_agent.snapshots.templates.Templates.find",
        "host_agent.snapshots.templates.Templates.forget",
        "host_agent.snapshots.templates.Templates.is_current",
        "host_agent.snapshots.templates.Templates.tidy",
        "host_agent.vmm.firecracker.find_vcpus",
    }
)

# Waits that are given up where somebody else is quicker: they happen each time, their answer does not.
RACING = frozenset({"host_agent.keeper.Keeper.wait_exit"})
RARE = frozenset(  # and what follows their answer, or is done to who has not ended yet, may not happen at all
    {"host_agent.keeper.read_exit", "host.native.pidfd_send_signal", "host.process.wait_ended"}
)
# A first reading of a whole image may take minutes, and so nobody hurries it: too long for a campaign to sit out.
PATIENT = frozenset({"storage.attest.Attestor.attest", "storage.attest.Attestor._read"})

# An awaited peer that freezes: which process it is.
_KEEPERS = ("host_agent.keeper.Keeper.",)
_GUESTS = (
    "host_agent.guesttalk.Talk._attach",
    "host_agent.guesttalk.Talk._send_job",
    "host_agent.vmm.sockets.connect_unix",
    "host_agent.vmm.fcapi.ApiClient.",
    "host_agent.vmm.firecracker.open_vsock",
)
_FIRECRACKER = "firecracker"  # as its main thread is called


def find_operation(code: CodeType) -> str | None:
    """The name of the operation that this code object is, None where it is none."""
    path = code.co_filename
    if not path.startswith(f"{ROOT}/"):
        return None
    module = path[len(str(ROOT)) + 1 : -len(".py")].replace("/", ".")
    name = f"{module}.{code.co_qualname}"
    if name in PRIVATE:
        return name
    if module not in MODULES or name in PURE or "<" in name or code.co_name.startswith("_"):
        return None
    return name


def fault_of(operation: str) -> Exception:
    """A fault as this operation's callers must expect it."""
    if operation in PRIVATE:
        return PRIVATE[operation]()
    module = max((m for m in MODULES if operation.startswith(f"{m}.")), key=len)
    return MODULES[module]()


def has_peer(operation: str) -> bool:
    """Whether somebody is asked there who could be frozen."""
    return operation.startswith((*_KEEPERS, *_GUESTS))


def find_peer(operation: str, frame: FrameType) -> int:
    """The process that is asked in this frame: a keeper, Firecracker, or what is a guest's PID 1 under the fake."""
    asker = frame.f_locals.get("self")
    if isinstance(asker, Keeper):
        return asker.identity.pid
    if isinstance(asker, Talk):
        name = asker._session.net.name if asker._session.net else ""
    elif isinstance(asker, Machine):
        name = asker.plan.object
    else:
        name = _find_object(asker._path if isinstance(asker, ApiClient) else frame.f_locals["path"])
    pids = sorted(int(pid) for pid in (cgroup_dir(name) / "vmm" / "cgroup.procs").read_text().split())
    return next((pid for pid in pids if _read_name(pid) == _FIRECRACKER), pids[0])


def _find_object(path: Path) -> str:
    """Whose socket it is: <state root>/vms/<VM>/run/link.sock, or a chroot's, <...>/<object>/root/run/api.sock."""
    if parse_object_name(path.parents[2].name) is not None:
        return path.parents[2].name
    return object_name(state_root_id(str(path.parents[3])), VmId(path.parents[1].name))


def _read_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""
