"""What a VM has used, and whether the kernel killed its VMM for memory, as this host counts it.

Reads a handful of small kernel files and changes nothing. What cannot be read is None, never an exception: a count must
not end a machine. Synchronous, some 0.2 ms; the lease's renewals call it in a thread, and whoever saw a VMM end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nimbus.host.cgroup import cgroup_dir
from nimbus.host_agent.plan import VmPlan
from nimbus.model.vm import Usage

_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the filesystem's own
_NET = Path("/sys/class/net")
_PROC = Path("/proc")
MEMORY_EVENTS = "memory.events"


@dataclass(frozen=True)
class MemoryEvents:
    """What became of a cgroup for want of memory."""

    kills: int = 0  # its processes that the kernel killed, whoever ran out
    own_limit: int = 0  # how often it was its own limit that was reached with nothing left to give back


def read_usage(plan: VmPlan) -> Usage:
    """What the VM has used since its boot; after its teardown nothing but None."""
    leaf = cgroup_dir(plan.object) / "vmm"
    cpu_us = _counter(leaf / "cpu.stat", "usage_usec")  # counted with and without the cpu controller
    received, sent = read_traffic(_NET / plan.net.name)
    return Usage(
        cpu_ms=None if cpu_us is None else cpu_us // 1000,
        memory_bytes=read_memory(leaf),
        disk_bytes=read_disk(plan.paths.overlay),
        received_bytes=received,
        sent_bytes=sent,
    )


def read_memory(leaf: Path) -> int | None:
    """What the leaf holds now. Without the memory controller: what its processes have resident, shared pages twice."""
    held = _number(leaf / "memory.current")
    if held is not None:
        return held
    pids = (_read(leaf / "cgroup.procs") or "").split()
    resident_kib = [kib for pid in pids if (kib := _counter(_PROC / pid / "status", "VmRSS:")) is not None]
    return sum(resident_kib) * 1024 if resident_kib else None


def read_disk(overlay: Path) -> int | None:
    """The blocks behind a sparse file, those that it shares with its template included."""
    try:
        return os.stat(overlay, follow_symlinks=False).st_blocks * _BLOCK_BYTES
    except OSError:
        return None


def read_traffic(device: Path) -> tuple[int | None, int | None]:
    """Bytes that the guest received and sent: what the host's end of the veth sends is what the guest receives."""
    statistics = device / "statistics"
    return _number(statistics / "tx_bytes"), _number(statistics / "rx_bytes")


def find_memory_events(plan: VmPlan) -> Path:
    """The file that counts deaths for memory.

    No file can be planted in a cgroup, so a rehearsal of such a death with the fake VMM puts its own into the VM's
    folder. A real VMM could write there too, which is why only the fake's is looked at.
    """
    planted = plan.paths.run / MEMORY_EVENTS
    if plan.backend == "fake" and planted.is_file():
        return planted
    return cgroup_dir(plan.object) / "vmm" / MEMORY_EVENTS


def read_memory_events(path: Path) -> MemoryEvents:
    """Ask between the VMM's end and its cgroup's removal. Nothing happened where the host does not count it."""
    kills = max(_counter(path, "oom_kill") or 0, _counter(path, "oom_group_kill") or 0)
    return MemoryEvents(kills, _counter(path, "oom") or 0)


def _counter(path: Path, key: str) -> int | None:
    """The number behind the word `key` at the beginning of a line."""
    for line in (_read(path) or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == key and words[1].isdecimal():
            return int(words[1])
    return None


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
