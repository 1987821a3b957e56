"""Whether this host's VMs get CPUs of their own, and which: the operator's wish held against what the host can do.

`plan_places` is pure and decides once, at the agent's start; `Places.take` asks the host-wide tickets of host/cpus.py,
which teardown gives back with the slot. Pins nothing itself (pinning.py does). Called by settings.py, build.py and
main.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import structlog

from nimbus.host import caps, native
from nimbus.host.cpus import list_cpus, take_cpus
from nimbus.host.topology import allowed_cpus, read_topology
from nimbus.model.errors import HostFault, Refused
from nimbus.model.placement import Placement, Topology, parse_cpus, place, render_cpus

log = structlog.get_logger()

AUTO_CORES_MIN = 4  # on fewer, the core that is kept for the host would cost a third of it or more
NO_CPU = "none"
_CAP_SYS_NICE = 23  # a VMM has another uid than its agent, which therefore needs it to pin it


class Pinning(enum.StrEnum):
    """NIMBUS_CPU_PINNING."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class Wish:
    """What an operator wants of the host's CPUs."""

    pinning: Pinning = Pinning.AUTO
    housekeeping: frozenset[int] | None = None  # None: the first core
    overcommit: float = 1.0


@dataclass(frozen=True)
class Places:
    """The cores that are given to VMs, whole and one VM each; none where VMs share the host's CPUs."""

    cores: Topology | None = None
    housekeeping: frozenset[int] = frozenset()  # kept for the agent, the keepers and the host
    must: bool = False  # no VM without CPUs of its own
    why: str = ""  # why VMs share the CPUs

    @property
    def cpus(self) -> int | None:
        """What VMs may have in all; None: the host's CPUs are not counted by cores."""
        return None if self.cores is None else len(self.cores.cpus)

    @property
    def core_width(self) -> int:
        """CPUs that a VM of one vCPU costs; 0 where none has its own."""
        return 0 if self.cores is None else self.cores.core_width

    def take(self, runtime_dir: Path, owner: str, cpus: int) -> Placement | None:
        """CPUs for the VM with this object name, until its slot is released. None: it shares what others leave.

        Raises HostFault where there are not enough and every VM must have its own.
        """
        cores = self.cores
        if cores is None:
            return None
        placed = take_cpus(runtime_dir, owner, lambda taken: place(cores, taken, cpus))
        if placed is None and self.must:
            raise HostFault(f"not enough whole cores are free for {cpus} vCPUs: NIMBUS_CPU_PINNING=on gives no others")
        if placed is None:
            log.warning("vm.not_placed", object=owner, cpus=cpus)
        return placed

    def has_room(self, runtime_dir: Path, cpus: int) -> bool:
        """Whether `take` would find CPUs now; always where VMs share them."""
        taken = frozenset[int]().union(*(ticket.cpus for ticket in list_cpus(runtime_dir)))
        return self.cores is None or place(self.cores, taken, cpus) is not None

    def confine(self) -> None:
        """Keep the calling thread, and what it starts from here on, to the housekeeping CPUs, if there are any.

        A keeper stays there; a VMM leaves when it is pinned.
        """
        if self.cores is not None and self.housekeeping:
            native.set_affinity(0, self.housekeeping)


def read_places(wish: Wish) -> Places:
    """What this host gives, by the wish. Raises HostFault or Refused where it asks for what cannot be."""
    if wish.pinning is Pinning.OFF:
        return Places(why="NIMBUS_CPU_PINNING is off")
    may_pin = bool(caps.read_facts().capabilities >> _CAP_SYS_NICE & 1)
    return plan_places(wish, read_topology(allowed_cpus()), may_pin=may_pin)


def plan_places(wish: Wish, topology: Topology, *, may_pin: bool) -> Places:
    """Pure: the same for a host with these cores."""
    first = frozenset(topology.cores[0]) if topology.cores else frozenset[int]()
    housekeeping = first if wish.housekeeping is None else wish.housekeeping
    if absent := housekeeping - topology.cpus:
        raise Refused(
            f"NIMBUS_HOUSEKEEPING_CPUS: {render_cpus(absent)} is not online, or not this process' to use with its whole"
            " core"
        )
    cores = topology.without(housekeeping)
    why = _find_obstacle(wish, topology, cores, may_pin=may_pin)
    if not why:
        return Places(cores, housekeeping, must=wish.pinning is Pinning.ON)
    if wish.pinning is Pinning.ON:
        raise HostFault(f"NIMBUS_CPU_PINNING is on, and {why}")
    return Places(why=why)


def _find_obstacle(wish: Wish, topology: Topology, cores: Topology, *, may_pin: bool) -> str:
    if wish.overcommit > 1:
        return f"NIMBUS_AGENT_CPU_OVERCOMMIT is {wish.overcommit:g}: more vCPUs are given out than there are CPUs"
    if not may_pin:
        return "this process has no CAP_SYS_NICE: it may not choose the CPUs of another uid's threads"
    if not cores.nodes:
        return "no core is left beside the housekeeping CPUs"
    if wish.pinning is Pinning.AUTO and len(topology.cores) < AUTO_CORES_MIN:
        return f"the host has {len(topology.cores)} cores: below {AUTO_CORES_MIN} a VM's own would be too few for all"
    return ""


def parse_housekeeping(text: str) -> frozenset[int] | None:
    """NIMBUS_HOUSEKEEPING_CPUS as a value; None for the default. Raises Refused for what is no list of CPUs."""
    if not text.strip():
        return None
    if text.strip().lower() == NO_CPU:
        return frozenset()
    try:
        return parse_cpus(text)
    except ValueError as error:
        raise Refused(f"NIMBUS_HOUSEKEEPING_CPUS: {error}") from None
