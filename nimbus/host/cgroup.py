"""The cgroup v2 leaf of a VM: `<mount>/nimbus/<object>/{keeper,vmm}`.

Kill, populated and freeze need no controller, so a leaf works on a hybrid host too; a limit whose
controller is absent is a named degradation, never silence. The keeper lives beside the leaf that it kills.
Never moves a process by itself. Called by host_agent (claims, serve, reaper, sight) and host/inventory.py.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nimbus.host.mountinfo import parse_mountinfo
from nimbus.model.errors import HostFault
from nimbus.model.ids import parse_object_name
from nimbus.model.placement import render_cpus

PARENT = "nimbus"
LEAVES = ("keeper", "vmm")
CONTROLLERS = ("cpu", "memory", "pids")  # what NIMBUS_REQUIRE_LIMITS insists on
LIMIT_FILES = (
    *("cpuset.cpus", "cpuset.cpus.effective", "cpuset.mems", "cpuset.mems.effective", "cpu.max"),
    *("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "io.max"),
)
_CPU_PERIOD_US = 100_000
_SWAPS = Path("/proc/swaps")
_RETRY_S = 0.01  # rmdir says EBUSY for a moment after the last process has gone; nothing signals its end


@dataclass(frozen=True)
class IoLimit:
    """What a VM may read, and as much what it may write, on the disk below the state folder. None: no limit."""

    device: str  # `major:minor` of the whole disk
    bytes_per_s: int | None = None
    operations_per_s: int | None = None


@dataclass(frozen=True)
class Limits:
    """What the VMM of one VM may use at most. Empty tuples: any CPU, memory of any node."""

    cpus: int
    mem_mib: int
    pids: int
    cpuset: tuple[int, ...] = ()
    mems: tuple[int, ...] = ()
    io: IoLimit | None = None


def find_cgroup2(mountinfo: str) -> str | None:
    """Pure: mount point of the cgroup2 filesystem in the text of /proc/self/mountinfo, None where there is none."""
    return next((mount.point for mount in parse_mountinfo(mountinfo) if mount.filesystem == "cgroup2"), None)


@functools.cache
def cgroup_mount() -> Path:
    """Where cgroup v2 is mounted on this host."""
    found = find_cgroup2(Path("/proc/self/mountinfo").read_text())
    if found is None:
        raise HostFault("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup (needs root)")
    return Path(found)


def cgroup_dir(name: str) -> Path:
    """The folder of one VM, whether it exists or not."""
    if parse_object_name(name) is None:
        raise HostFault(f"{name!r} is no object name of Nimbus")
    return cgroup_mount() / PARENT / name


def render_limits(limits: Limits) -> dict[str, dict[str, str]]:
    """Pure: by controller, each file of the leaf and what is written to it, in that order."""
    wanted = {}
    if limits.cpuset:  # the nodes first: who comes in later finds its memory there
        mems = {"cpuset.mems": render_cpus(limits.mems)} if limits.mems else {}
        wanted["cpuset"] = {**mems, "cpuset.cpus": render_cpus(limits.cpuset)}
    wanted["cpu"] = {"cpu.max": f"{limits.cpus * _CPU_PERIOD_US} {_CPU_PERIOD_US}"}
    wanted["memory"] = {
        "memory.max": str(limits.mem_mib << 20),
        "memory.oom.group": "1",
        "memory.swap.max": "0",  # the last: a kernel that knows no swap has no such file
    }
    wanted["pids"] = {"pids.max": str(limits.pids)}
    if limits.io is not None:
        wanted["io"] = {"io.max": _render_io(limits.io)}
    return wanted


def ensure_leaf(name: str, limits: Limits) -> dict[str, str]:
    """Make the VM's cgroups and set the limits; returns a sentence for each controller whose limit cannot be kept."""
    folder = cgroup_dir(name)
    try:
        for leaf in LEAVES:
            (folder / leaf).mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise HostFault(f"cgroup {folder} could not be made ({error.strerror}): Nimbus needs root") from error
    degraded = {}
    for controller, knobs in render_limits(limits).items():
        try:
            _enable(controller, folder)
            for knob, value in knobs.items():
                _write(folder / "vmm" / knob, value)
        except OSError as error:
            degraded[controller] = (
                f"{controller} is not limited: the cgroup v2 controller is not usable ({error.strerror})"
            )
    if limits.cpuset and "cpuset" not in degraded:
        effective = _read(folder / "vmm" / "cpuset.cpus.effective")
        if effective != render_cpus(limits.cpuset):  # an ancestor has fewer: the kernel takes what it can, and says so
            degraded["cpuset"] = f"cpuset is not limited: its CPUs are {effective} and not what was asked for"
    return degraded


def read_limits(name: str) -> dict[str, str | None]:
    """What the kernel holds the VMM's leaf to, by file; None where the controller is absent, or the cgroup."""
    return {knob: _read(cgroup_dir(name) / "vmm" / knob) for knob in LIMIT_FILES}


def list_threads(name: str) -> frozenset[int]:
    """Every thread in the VMM's leaf, as the kernel lists them: no VMM can name a stranger's here."""
    text = _read(cgroup_dir(name) / "vmm" / "cgroup.threads")
    return frozenset(map(int, text.split())) if text else frozenset()


def missing_controllers() -> tuple[str, ...]:
    """Controllers that a VM's limits need and this host's cgroup v2 lacks. Raises HostFault where there is no v2."""
    found = (cgroup_mount() / "cgroup.controllers").read_text().split()
    return tuple(name for name in CONTROLLERS if name not in found)


def has_controller(controller: str) -> bool:
    """Whether this host's cgroup v2 has it at all. Raises HostFault where there is no v2."""
    return controller in (cgroup_mount() / "cgroup.controllers").read_text().split()


def kill_cgroup(name: str, leaf: Literal["keeper", "vmm"] | None = None) -> None:
    """SIGKILL everything in the VM's cgroup, or in one leaf of it. Absent is success. Waits for nothing."""
    folder = cgroup_dir(name) / (leaf or "")
    try:
        (folder / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        _kill_one_by_one(folder)
    except OSError as error:
        if error.errno != errno.ENODEV:  # removed between open and write
            raise HostFault(f"cgroup {name} could not be killed ({error.strerror})") from error


def is_populated(name: str, leaf: Literal["keeper", "vmm"] | None = None) -> bool:
    """Whether a process is left in the VM's cgroup or below it. A cgroup that is absent has none."""
    try:
        return "populated 1" in (cgroup_dir(name) / (leaf or "") / "cgroup.events").read_text()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV}:
            return False
        raise


def wait_empty(name: str, limit_s: float, leaf: Literal["keeper", "vmm"] | None = None) -> bool:
    """Wait until no process is left, woken by the kernel. False when `limit_s` passed before that."""
    deadline = time.monotonic() + limit_s
    try:
        fd = os.open(cgroup_dir(name) / (leaf or "") / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        waiting = select.poll()
        waiting.register(fd, select.POLLPRI)
        while b"populated 1" in _events(fd):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            waiting.poll(left_s * 1000)
        return True
    finally:
        os.close(fd)


def remove_cgroup(name: str, limit_s: float) -> None:
    """Kill what is inside, wait, and remove the folders, children first. Absent is success."""
    deadline = time.monotonic() + limit_s
    kill_cgroup(name)
    if not wait_empty(name, limit_s):
        raise HostFault(f"cgroup {name} still holds processes {limit_s:g} s after its kill")
    for folder, _, _ in os.walk(cgroup_dir(name), topdown=False):
        _remove_folder(folder, deadline)


def list_cgroups(prefix: str) -> tuple[str, ...]:
    """Names below `nimbus/` that begin with `prefix`."""
    try:
        entries = os.scandir(cgroup_mount() / PARENT)
    except FileNotFoundError:
        return ()
    with entries:
        return tuple(sorted(entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_dir()))


def _enable(controller: str, folder: Path) -> None:
    """Hand the controller down from the mount to the leaves. Raises OSError where a level refuses."""
    mount = cgroup_mount()
    if controller not in (mount / "cgroup.controllers").read_text().split():
        raise OSError(errno.ENODEV, "absent from cgroup.controllers")
    for level in (mount, mount / PARENT, folder):
        if controller not in (level / "cgroup.subtree_control").read_text().split():
            (level / "cgroup.subtree_control").write_text(f"+{controller}")


def _write(knob: Path, value: str) -> None:
    """Without swap in the kernel there is nothing to forbid."""
    if knob.name == "memory.swap.max" and not knob.exists() and not _SWAPS.exists():
        return
    knob.write_text(value)


def _read(knob: Path) -> str | None:
    try:
        return knob.read_text().strip()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENOTDIR}:  # absent, or removed meanwhile
            return None
        raise


def _render_io(limit: IoLimit) -> str:
    wanted = {"bps": limit.bytes_per_s, "iops": limit.operations_per_s}
    words = [f"{way}{unit}={value}" for unit, value in wanted.items() if value is not None for way in "rw"]
    return " ".join((limit.device, *words))


def _kill_one_by_one(folder: Path) -> None:
    """Kernels before 5.14 have no cgroup.kill. Repeated while new processes show up: one may fork meanwhile."""
    killed: set[int] = set()
    while found := _pids(folder) - killed:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found


def _pids(folder: Path) -> set[int]:
    """Every process in the folder and below it; none where it is absent."""
    pids: set[int] = set()
    for level, _, _ in os.walk(folder):
        with suppress(FileNotFoundError):
            pids |= {int(pid) for pid in Path(level, "cgroup.procs").read_text().split()}
    return pids


def _events(fd: int) -> bytes:
    try:
        return os.pread(fd, 4096, 0)
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed meanwhile
            return b""
        raise


def _remove_folder(folder: str, deadline: float) -> None:
    while True:
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise HostFault(f"cgroup {folder} could not be removed ({error.strerror})") from error
            time.sleep(_RETRY_S)
        else:
            return
