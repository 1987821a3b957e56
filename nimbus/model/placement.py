"""Which CPUs of a host are one VM's own: a pure choice over the host's cores, and the kernel's lists of CPUs as values.

A core is given to one VM whole, with all its hardware threads: what shares a core shares caches and time with a
stranger. The choice knows no policy and does no I/O. Called by host/{topology,cpus}.py and host_agent/placing.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain

MAX_CPUS = 8192  # the most that a kernel can be built for
Core = tuple[int, ...]  # the CPUs that are its hardware threads, ascending


@dataclass(frozen=True)
class Node:
    """One NUMA node and its cores."""

    index: int
    cores: tuple[Core, ...]
    has_memory: bool = True

    @property
    def width(self) -> int:
        """Its CPUs."""
        return sum(map(len, self.cores))


@dataclass(frozen=True)
class Topology:
    """The cores of a host that are online and may be used; a node that has none of them is left out."""

    nodes: tuple[Node, ...]

    @property
    def cores(self) -> tuple[Core, ...]:
        return tuple(sorted(chain.from_iterable(node.cores for node in self.nodes)))

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(chain.from_iterable(self.cores))

    @property
    def core_width(self) -> int:
        """Hardware threads of its widest core: VMs of one vCPU still cost that many CPUs."""
        return max(map(len, self.cores), default=1)

    def without(self, barred: Collection[int]) -> Topology:
        """Its cores of which no thread is among `barred`."""
        left = (
            replace(node, cores=tuple(core for core in node.cores if not set(core) & set(barred)))
            for node in self.nodes
        )
        return Topology(tuple(node for node in left if node.cores))


@dataclass(frozen=True)
class Placement:
    """What is one VM's own. `vcpus` are in the guest's order: the CPU of vCPU 0 first."""

    vcpus: tuple[int, ...]
    cpus: tuple[int, ...]  # every thread of its cores, ascending: the VMM's other threads run there too
    mems: tuple[int, ...]  # the nodes that its memory comes from; empty: none of its nodes has memory


def place(
    topology: Topology, taken: Collection[int], cpus: int, housekeeping: Collection[int] = ()
) -> Placement | None:
    """Whole cores with room for `cpus` vCPUs, none of them taken or housekeeping; None where there are not enough.

    On one node if one has the room, and then on the one that it fills best, so that large VMs still find theirs;
    otherwise on as few as a walk from the emptiest node needs. The same question has the same answer.
    """
    left = list(topology.without({*taken, *housekeeping}).nodes)
    chosen: list[tuple[Node, tuple[Core, ...]]] = []
    missing = cpus
    while missing > 0:
        roomy = [node for node in left if node.width >= missing]
        if roomy:
            best = min(roomy, key=lambda node: (node.width, node.index))
            chosen.append((best, _pick(best.cores, missing)))
            break
        if not left:
            return None
        emptiest = max(left, key=lambda node: (node.width, -node.index))
        chosen.append((emptiest, _pick(emptiest.cores, emptiest.width)))
        missing -= emptiest.width
        left.remove(emptiest)
    threads = tuple(chain.from_iterable(chain.from_iterable(cores for _, cores in chosen)))
    mems = tuple(sorted(node.index for node, _ in chosen if node.has_memory))
    return Placement(vcpus=threads[:cpus], cpus=tuple(sorted(threads)), mems=mems)


def _pick(cores: Iterable[Core], cpus: int) -> tuple[Core, ...]:
    """Of cores with room for `cpus`: the wide ones first, and for what is left the narrowest that does."""
    picked: list[Core] = []
    passed_over: list[Core] = []
    missing = cpus
    for core in sorted(cores, key=lambda core: (-len(core), core)):
        if len(core) <= missing:
            picked.append(core)
            missing -= len(core)
        else:
            passed_over.append(core)
    if missing:
        picked.append(min(passed_over, key=lambda core: (len(core), core)))
    return tuple(picked)


def parse_cpus(text: str) -> frozenset[int]:
    """The kernel's `0-3,8` as a set. Raises ValueError for anything else."""
    found: set[int] = set()
    for part in filter(None, (word.strip() for word in text.split(","))):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ValueError(f"{part!r} is no CPU and no range of CPUs")
        low, high = int(ends[0]), int(ends[-1])
        if not low <= high < MAX_CPUS:
            raise ValueError(f"{part!r} is no range of CPUs from 0 to {MAX_CPUS - 1}")
        found.update(range(low, high + 1))
    return frozenset(found)


def render_cpus(cpus: Collection[int]) -> str:
    """The same as the kernel writes it: `0-3,8`."""
    parts: list[str] = []
    numbers = sorted(cpus)
    start = 0
    for index, number in enumerate(numbers):
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            parts.append(f"{numbers[start]}-{number}" if index > start else str(number))
            start = index + 1
    return ",".join(parts)
