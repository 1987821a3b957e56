"""The host's cores and NUMA nodes as sysfs tells them, without what is offline or not this process' to use.

Reads only; nothing is believed to exist: a host without NUMA has one node, a CPU without topology is a core of its own.
Called by host_agent/placing.py, once at an agent's start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nimbus.host import cgroup, native
from nimbus.model.errors import HostFault
from nimbus.model.placement import Core, Node, Topology, parse_cpus

SYSFS = Path("/sys/devices/system")


def read_topology(allowed: frozenset[int], root: Path = SYSFS) -> Topology:
    """The cores all of whose threads that are online are `allowed`: one that is shared with others is nobody's own."""
    online = _read_list(root / "cpu" / "online")
    if online is None:
        raise HostFault(f"{root / 'cpu' / 'online'} cannot be read: is sysfs mounted?")
    cores = {_read_core(root, cpu, online) for cpu in online}
    usable = sorted(core for core in cores if set(core) <= allowed)
    home = _find_nodes(root, online)
    with_memory = _read_list(root / "node" / "has_memory")
    nodes = []
    for index in sorted({home(core[0]) for core in usable}):
        own = tuple(core for core in usable if home(core[0]) == index)
        nodes.append(Node(index, own, with_memory is None or index in with_memory))
    return Topology(tuple(nodes))


def allowed_cpus() -> frozenset[int]:
    """CPUs on which this process may run, and which its cgroup v2 mount, perhaps a container's, has."""
    allowed = native.get_affinity(0)
    try:
        effective = _read_list(cgroup.cgroup_mount() / "cpuset.cpus.effective")  # a host's own root has no such file
    except HostFault:  # no cgroup v2 at all: caps.py tells of it
        return allowed
    return allowed & effective if effective else allowed


def _read_core(root: Path, cpu: int, online: frozenset[int]) -> Core:
    folder = root / "cpu" / f"cpu{cpu}" / "topology"
    siblings = _read_list(folder / "core_cpus_list") or _read_list(folder / "thread_siblings_list")
    return tuple(sorted((siblings or frozenset()) & online | {cpu}))


def _find_nodes(root: Path, online: frozenset[int]) -> Callable[[int], int]:
    """On which node a CPU is; the first node where none names it."""
    found: dict[int, int] = {}
    try:
        names = os.listdir(root / "node")
    except FileNotFoundError:
        names = []
    indexes = sorted(int(name[4:]) for name in names if name.startswith("node") and name[4:].isdecimal())
    for index in indexes:
        for cpu in (_read_list(root / "node" / f"node{index}" / "cpulist") or frozenset()) & online:
            found[cpu] = index
    return lambda cpu: found.get(cpu, min(indexes, default=0))


def _read_list(path: Path) -> frozenset[int] | None:
    """None where there is no such file; HostFault where it holds no list."""
    try:
        return parse_cpus(path.read_text())
    except OSError:
        return None
    except ValueError as error:
        raise HostFault(f"{path}: {error}") from None
