"""What Firecracker's jailer is asked, and what is checked of the process that it left behind.

The jailer is silent where a cgroup is absent, and a build without filters looks like one with them: so nothing it was
asked is believed before /proc says it. `plan_jailer` and `plan_shared` are pure; `check_jail` only reads. Called by
jail.py and vmm/firecracker.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nimbus.host.cgroup import PARENT
from nimbus.host.chroots import chroot_path
from nimbus.host.netns import netns_path
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, Memory
from nimbus.model.errors import HostFault

# Names in the chroot. Templates remember them: a clone's disks and sockets are where its template's were.
KERNEL, INITRAMFS, ROOTFS, OVERLAY = "kernel", "initramfs", "rootfs", "overlay.img"
MEMORY, STATE, SECCOMP = "template.mem", "template.state", "seccomp.bpf"
SAVED_MEMORY, SAVED_STATE = "saved.mem", "saved.state"
API_SOCKET, VSOCK_SOCKET = "run/api.sock", "run/vsock.sock"

DESCRIPTORS = 1024
STATE_MIB = 64  # devices and vCPUs of the largest VM, many times over
_FILTERED = "2"  # Seccomp: of /proc/PID/status
_PROC = Path("/proc")


class SecurityAlarm(HostFault):
    """A VMM runs with more rights than it was to have: it is killed, and somebody must find out why."""


@dataclass(frozen=True)
class _Thread:
    name: str
    status: Mapping[str, str]


def plan_shared(boot: Boot) -> dict[str, Path]:
    """Pure: the host's files that the VM reads, by their names in the chroot."""
    if boot.image is None:
        raise HostFault("Firecracker needs an image")
    shared = {ROOTFS: boot.image.rootfs}
    if boot.memory is Memory.TEMPLATE and boot.template is not None:
        shared |= {MEMORY: boot.template.memory, STATE: boot.template.state}
    else:
        shared |= {KERNEL: boot.image.vmlinux, INITRAMFS: boot.image.initramfs}
    if boot.seccomp_filter is not None:
        shared[SECCOMP] = boot.seccomp_filter
    return shared


def plan_root(plan: VmPlan, boot: Boot) -> Path:
    """Pure: the VM's chroot on the host."""
    return chroot_path(plan.jails, boot.binary.name, plan.object)


def plan_pid_file(plan: VmPlan, boot: Boot) -> Path:
    """Pure: where the jailer leaves the VMM's pid."""
    return plan_root(plan, boot) / f"{boot.binary.name}.pid"


def plan_jailer(plan: VmPlan, boot: Boot) -> tuple[str, ...]:
    """Pure: the jailer's command line, the VMM's own after its `--`."""
    if boot.jailer is None:
        raise HostFault(f"VM {plan.vm}: Firecracker is started by its jailer alone, and there is none")
    largest_mib = plan.shape.disk_mib
    if boot.memory is Memory.KEPT:
        largest_mib = max(largest_mib, plan.shape.mem_mib + STATE_MIB)
    seccomp = () if boot.seccomp_filter is None else ("--seccomp-filter", f"/{SECCOMP}")
    return (
        str(boot.jailer),
        *("--id", plan.object, "--exec-file", str(boot.binary)),
        *("--uid", str(plan.slot.uid), "--gid", str(plan.slot.gid)),
        *("--chroot-base-dir", str(plan.jails)),
        *("--netns", str(netns_path(plan.net.name))),
        *("--cgroup-version", "2", "--parent-cgroup", _cgroup(plan)),
        "--new-pid-ns",
        *("--resource-limit", f"fsize={largest_mib << 20}", "--resource-limit", f"no-file={DESCRIPTORS}"),
        "--",
        # A warning in the middle of the guest's line would hide what that says: both go to the same console.
        *("--api-sock", f"/{API_SOCKET}", "--level", "Error"),
        *seccomp,
    )


def check_jail(pid: int, plan: VmPlan, root: Path, *, filtered: bool) -> None:
    """Raise SecurityAlarm where the process is not what the jailer was asked for.

    Before a guest is started or loaded Firecracker has filters on its API thread alone; `filtered` wants them on all.
    Raises ProcessLookupError where it has ended.
    """
    try:
        wrong = [*_judge_process(pid, plan, root), *_judge_threads(list(_read_threads(pid)), plan, filtered)]
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} has ended") from error
    if wrong:
        raise SecurityAlarm(f"the Firecracker of VM {plan.vm} is not jailed as it was to be: {'; '.join(wrong)}")


def _cgroup(plan: VmPlan) -> str:
    return f"{PARENT}/{plan.object}/vmm"


def _judge_process(pid: int, plan: VmPlan, root: Path) -> Iterator[str]:
    own = _PROC / str(pid)
    if not _is_same(own / "ns/net", netns_path(plan.net.name)):
        yield "its network namespace is another"
    if not _is_same(own / "root", root):
        yield "its root is not the chroot"
    groups = [line for line in (own / "cgroup").read_text().splitlines() if line.startswith("0::")]
    if not any(line.endswith(f"/{_cgroup(plan)}") for line in groups):
        yield f"its cgroup is {', '.join(groups) or 'none'}"


def _judge_threads(threads: list[_Thread], plan: VmPlan, filtered: bool) -> Iterator[str]:
    for thread in threads:
        wanted = {"Uid": [str(plan.slot.uid)] * 4, "Gid": [str(plan.slot.gid)] * 4, "Groups": [], "NoNewPrivs": ["1"]}
        if filtered or thread.name == "fc_api":
            wanted["Seccomp"] = [_FILTERED]
        for field, value in wanted.items():
            if thread.status.get(field, "").split() != value:
                yield f"{field} of thread {thread.name!r} is {thread.status.get(field, 'not told')!r}"
    if not any(thread.name == "fc_api" for thread in threads):
        yield "it has no API thread"


def _read_threads(pid: int) -> Iterator[_Thread]:
    for task in os.listdir(_PROC / str(pid) / "task"):
        try:
            text = (_PROC / str(pid) / "task" / task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread may end; that the process did shows in its list
        pairs = (line.partition(":") for line in text.splitlines())
        status = {name: value.strip() for name, _, value in pairs}
        yield _Thread(status["Name"], status)


def _is_same(one: Path, other: Path) -> bool:
    mine, wanted = os.stat(one), os.stat(other)
    return (mine.st_dev, mine.st_ino) == (wanted.st_dev, wanted.st_ino)
