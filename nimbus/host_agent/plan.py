"""From a request to a plan: every name, path, address and limit of one VM, decided before anything is done.

Pure: no I/O, no clock. The same inputs give the same plan, so a reaper that reads a record recomputes
the paths and names that the dead supervisor used. Called by lifecycle.py and teardown.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from nimbus.host.cgroup import IoLimit
from nimbus.host_agent.network import plan_network
from nimbus.model.ids import VmId, object_name, state_root_id
from nimbus.model.placement import Placement
from nimbus.model.vm import HostPort, NetPlan, Shape, Slot

DEFAULT_SUBNET = IPv4Network("172.30.0.0/16")


@dataclass(frozen=True)
class ActLimits:
    """How long a host act may take. One that takes longer is left behind in the kernel, and its claim stays."""

    acquire_s: float = 15.0  # a network takes 0.1 s on an idle host; of many at once each waits for the kernel's locks
    release_s: float = 10.0
    empty_s: float = 5.0  # from cgroup.kill to an empty cgroup; a process in uninterruptible sleep needs longer
    look_s: float = 15.0  # for a list of the host's objects or one record; those locks are waited for here too
    settle_s: float = 2.0  # for an acquisition whose machine was cancelled: an agent must stop in 5 s

    @classmethod
    def within(cls, limit_s: float) -> ActLimits:
        """What an operator's one number means: a release waits less, since it is tried again anyway."""
        return cls(acquire_s=limit_s, release_s=limit_s * 2 / 3, look_s=limit_s)


@dataclass(frozen=True)
class HostLayout:
    """Where this agent keeps things and how it names them: the same for all its VMs."""

    state: Path
    runtime: Path
    subnet: IPv4Network = DEFAULT_SUBNET
    tap_prefix: str = "nimbus"
    host_ports: tuple[HostPort, ...] = ()
    nameserver: IPv4Address | None = None
    uid_base: int = 200_000
    gid_base: int | None = None  # None: as the uids
    jailer_base: Path | None = None  # where jailers make their chroots; None: below the state root
    slot_limit: int = 64
    require_limits: bool = False  # no VM without limits of its CPU, memory and processes
    io: IoLimit | None = None  # what each VM may read and write on the disk below `state`
    limits: ActLimits = ActLimits()

    @property
    def root_id(self) -> str:
        return state_root_id(str(self.state))

    @property
    def ledger(self) -> Path:
        return self.state / "ledger"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def jails(self) -> Path:
        """On the images' own filesystem by default: what VMs share is linked into their chroots."""
        return self.jailer_base or self.state / "jailer"

    @property
    def templates(self) -> Path:
        """Saved memories of booted machines, which later ones are clones of."""
        return self.state / "templates"

    @property
    def spools(self) -> Path:
        """Output on its way to the logging pipeline: it outlives its VM until it has arrived."""
        return self.state / "spools"

    @property
    def postmortems(self) -> Path:
        """The last words of the newest VMs that ended badly."""
        return self.state / "postmortems"


@dataclass(frozen=True)
class VmPaths:
    """The files of one VM below the state root. `run` alone belongs to the VM's uid."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def overlay(self) -> Path:
        return self.disk / "overlay.img"

    @property
    def jail(self) -> Path:
        return self.folder / "jail"

    @property
    def link(self) -> Path:
        return self.run / "link.sock"


@dataclass(frozen=True)
class VmPlan:
    """All that is decided about one VM."""

    vm: VmId
    object: str
    shape: Shape
    image: str
    backend: str
    accel: str
    slot: Slot
    net: NetPlan
    paths: VmPaths
    placement: Placement | None = None  # the CPUs that are its own; None: it runs wherever the host lets it
    jails: Path = Path("/srv/jailer")  # where a jailer makes its chroot


def plan_vm(
    layout: HostLayout,
    vm: VmId,
    *,
    shape: Shape,
    image: str,
    backend: str,
    accel: str,
    slot: Slot,
    placement: Placement | None = None,
) -> VmPlan:
    """The plan of `vm` on this host."""
    name = object_name(layout.root_id, vm)
    net = plan_network(
        name,
        slot,
        subnet=layout.subnet,
        tap_prefix=layout.tap_prefix,
        host_ports=layout.host_ports,
        nameserver=layout.nameserver,
    )
    paths = VmPaths(layout.state / "vms" / str(vm))
    return VmPlan(vm, name, shape, image, backend, accel, slot, net, paths, placement, layout.jails)


def render_plan(shape: Shape, image: str, accel: str) -> dict[str, object]:
    """What a record must hold so that `replan` gives the same plan again."""
    return {"shape": asdict(shape), "image": image, "accel": accel}


def with_placement(stored: Mapping[str, object], placement: Placement | None) -> dict[str, object]:
    """The same of a VM that was given CPUs since."""
    return {**stored} if placement is None else {**stored, "placement": asdict(placement)}


def replan(layout: HostLayout, vm: VmId, *, backend: str, stored: Mapping[str, Any], slot: Slot) -> VmPlan:
    """The plan of a record that another process wrote."""
    return plan_vm(
        layout,
        vm,
        shape=read_shape(stored),
        image=stored["image"],
        backend=backend,
        accel=stored["accel"],
        slot=slot,
        placement=read_placement(stored),
    )


def read_shape(stored: Mapping[str, Any]) -> Shape:
    """What a record's VM takes of its host."""
    return Shape(**stored["shape"])


def read_placement(stored: Mapping[str, Any]) -> Placement | None:
    """The CPUs that a record's VM was given; None where it was given none."""
    found = stored.get("placement")
    if found is None:
        return None
    return Placement(tuple(found["vcpus"]), tuple(found["cpus"]), tuple(found["mems"]))
