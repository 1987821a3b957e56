"""A folder that looks like /sys/devices/system of a host that is not here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nimbus.model.placement import render_cpus


@dataclass(frozen=True)
class Machine:
    """Numbered as Linux numbers: the first threads of all cores, node by node, then their siblings."""

    nodes: int = 1
    cores: int = 4  # of each node
    threads: int = 1  # of each core
    offline: Collection[int] = ()
    memory_only: int = 0  # further nodes that have no CPU
    without_memory: Collection[int] = ()
    has_node_folder: bool = True
    has_topology: bool = True

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(range(self.nodes * self.cores * self.threads))

    def core_of(self, cpu: int) -> frozenset[int]:
        total = self.nodes * self.cores
        return frozenset(cpu % total + total * thread for thread in range(self.threads))

    def node_of(self, cpu: int) -> int:
        return cpu % (self.nodes * self.cores) // self.cores

    def build(self, root: Path) -> Path:
        """Write what is read; as on Linux, an offline CPU has a folder without topology and stands in no list."""
        online = self.cpus - set(self.offline)
        (root / "cpu").mkdir()
        (root / "cpu" / "online").write_text(f"{render_cpus(online)}\n")
        for cpu in self.cpus:
            folder = root / "cpu" / f"cpu{cpu}"
            folder.mkdir()
            if self.has_topology and cpu in online:
                (folder / "topology").mkdir()
                siblings = f"{render_cpus(self.core_of(cpu) & online)}\n"
                (folder / "topology" / "thread_siblings_list").write_text(siblings)
        if self.has_node_folder:
            self._build_nodes(root / "node", online)
        return root

    def _build_nodes(self, folder: Path, online: frozenset[int]) -> None:
        folder.mkdir()
        everyone = range(self.nodes + self.memory_only)
        (folder / "online").write_text(f"{render_cpus(everyone)}\n")
        (folder / "has_memory").write_text(f"{render_cpus(set(everyone) - set(self.without_memory))}\n")
        for index in everyone:
            (folder / f"node{index}").mkdir()
            own = {cpu for cpu in online if index < self.nodes and self.node_of(cpu) == index}
            (folder / f"node{index}" / "cpulist").write_text(f"{render_cpus(own)}\n")
