"""What a clone costs in memory, looked at as soon as its guest has begun its job. Called by boot.py."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import trio

from bench.boothost import BootHost, Renewals
from nimbus.host import cgroup
from nimbus.model.vm import Command

CLONES = 10
STAY = Command(("sleep", "8"))  # ten at once take some seconds to begin, and all are looked at together
_KIB_PER_MIB = 1024


async def measure_memory(host: BootHost) -> Mapping[str, float]:
    """MiB of one clone, as the median of ten that live at once, and of what the agent and its keepers need for one."""
    before_kib = read_private_kib(os.getpid())
    controls = tuple(Renewals() for _ in range(CLONES))
    told: dict[str, float] = {}

    async def look() -> None:
        for control in controls:
            await control.started.wait()
        told.update(await trio.to_thread.run_sync(read_clones, host))
        told["agent_mib_per_vm"] = (read_private_kib(os.getpid()) - before_kib) / CLONES / _KIB_PER_MIB

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await host.run_all(host.host, CLONES, STAY, controls)
    return told


def read_clones(host: BootHost) -> dict[str, float]:
    """Medians over the clones that are there."""
    template = host.ready.template.memory.stat().st_blocks * 512 / (1 << 20)
    dirty, private, keepers = [], [], []
    prefix = f"nb{host.host.layout.root_id}-"
    for name in cgroup.list_cgroups(prefix):
        for pid in find_processes(name):
            with suppress(FileNotFoundError, ProcessLookupError):
                ram_kib = read_ram_dirty_kib(pid)
                whole_kib = read_private_kib(pid)
                if ram_kib is None:
                    keepers.append(whole_kib / _KIB_PER_MIB)
                else:
                    dirty.append(ram_kib / _KIB_PER_MIB)
                    private.append((whole_kib - ram_kib) / _KIB_PER_MIB)
    return {
        "template_mib": template,
        "clone_dirty_mib": statistics.median(dirty),
        "vmm_private_mib": statistics.median(private),
        "keeper_mib": statistics.median(keepers or [0.0]),
    }


def find_processes(name: str) -> set[int]:
    """Every process of the VM with this object name: its VMM, and its keeper's two."""
    found = set()
    for path in cgroup.cgroup_dir(name).rglob("cgroup.procs"):
        with suppress(OSError):
            found |= {int(word) for word in path.read_text().split()}
    for path in (cgroup.cgroup_dir(name) / "cgroup.procs",):
        with suppress(OSError):
            found |= {int(word) for word in path.read_text().split()}
    return found


def read_ram_dirty_kib(pid: int) -> int | None:
    """What the process has written to its own copy of a template's memory. None: it maps none."""
    found: int | None = None
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = "/memfd:nimbus-" in line
            found = found or 0 if inside else found
        elif inside and words[0] == "Private_Dirty:" and found is not None:
            found += int(words[1])
    return found


def read_private_kib(pid: int) -> int:
    """All memory that is this process's alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Private_Clean:")))
