"""Asks for work while there is room for it, and hands each grant to a machine's own task.

Free slots are the back-pressure: a lease is asked for only when a place, CPUs, memory and disk are there for it.
Never runs a machine itself; stops at once when told to. Called by main.py.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Protocol

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.host_agent.admission import DiskPolicy, Supply, count_cpus, count_disk_mib, count_slots
from nimbus.model.errors import HostFault, NimbusError, Unavailable
from nimbus.model.labels import Arch
from nimbus.model.vm import Shape
from nimbus.runtime.retry import Backoff
from nimbus.wire.leaseapi import Grant, LeaseRequest

log = structlog.get_logger()

POLL_WAIT_S = 20.0
LOOK_AGAIN_S = 5.0  # disk and slots come free without a word to us: a job ends its files, another agent its VMs
MIN_SHAPE = Shape()  # the least that any machine request asks for
_ARCHES = {"x86_64": Arch.X64, "aarch64": Arch.ARM64}  # as the kernel calls them
MIN_DISK_MIB = 16  # but of disk, which the control plane compares with what we offer: the smallest that Shape allows


@dataclass(frozen=True)
class Capacity:
    """What this host gives to VMs in all."""

    cpus: int
    mem_mib: int
    slots: int
    disk_mib: int | None = None  # None: not counted
    core_width: int = 0  # CPUs of a core, where each VM gets whole cores as its own; 0: VMs share the CPUs


@dataclass(frozen=True)
class LeaseRetry:
    """NIMBUS_AGENT_LEASE_RETRIES, ..._RETRY_BASE and ..._RETRY_MAX."""

    retries: int
    base_s: float
    max_s: float


class Lessor(Protocol):
    """Where work is leased."""

    async def lease(self, request: LeaseRequest) -> Grant | None:
        """A grant, or None after the wait. Raises Unavailable where nobody answers."""
        ...


class Room:
    """Free capacity, and a way to wait for it. With a `supply` the host itself is asked each time, too;
    `idle` names the VMs that wait in the pool, or are made for it. `on_change` hears of each change.
    """

    def __init__(
        self,
        capacity: Capacity,
        supply: Callable[[], Awaitable[Supply]] | None = None,
        disk: DiskPolicy = DiskPolicy(reserve_mib=0),  # noqa: B008 - a frozen value
        idle: Callable[[], frozenset[str]] = frozenset,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._capacity = capacity
        self._supply = supply
        self._disk = disk
        self._idle = idle
        self._on_change = on_change
        self._used: list[Shape] = []
        self._changed = trio.Event()

    def free(self) -> Capacity:
        """What is left now of what this agent gives."""
        return Capacity(
            self._capacity.cpus - self._used_cpus(),
            self._capacity.mem_mib - sum(s.mem_mib for s in self._used),
            self._capacity.slots - len(self._used),
        )

    async def look(self) -> Capacity:
        """What is left now of that, as far as the host still has it. Raises HostFault where it cannot be asked."""
        if self._supply is None:
            return self.free()
        return self.judge(await self._supply())

    def judge(self, supply: Supply) -> Capacity:
        """What is left of it on a host that said this of itself."""
        idle = len(supply.owners & self._idle())  # of those that held a slot by then
        own = self.free()  # after the host was asked: what was taken meanwhile counts
        taken_mib = sum(shape.disk_mib for shape in self._used)
        cpus = count_cpus(supply, self._capacity.cpus, self._used_cpus()) if self._capacity.core_width else own.cpus
        return replace(
            own,
            cpus=cpus,
            slots=min(own.slots, count_slots(supply, self._capacity.slots, len(self._used), idle)),
            disk_mib=count_disk_mib(supply, self._disk, taken_mib),
        )

    async def wait_free(self) -> Capacity:
        """Room for at least the smallest machine, once there is some. Says once that it has to wait."""
        told = False
        while True:
            changed = self._changed
            try:
                left = await self.look()
                if fits(left):
                    return left
                why = asdict(left)
            except HostFault as error:
                why = {"error": str(error)}
            if not told:
                log.info("host.full", **why)
                told = True
            with trio.move_on_after(LOOK_AGAIN_S):
                await changed.wait()

    def _used_cpus(self) -> int:
        return sum(round_to_cores(shape.cpus, self._capacity.core_width) for shape in self._used)

    @property
    def is_taken(self) -> bool:
        """Whether a machine is served in it, or about to be."""
        return bool(self._used)

    def take(self, shape: Shape) -> None:
        self._used.append(shape)
        self._on_change()

    def give_back(self, shape: Shape) -> None:
        self._used.remove(shape)
        self._on_change()
        self._changed.set()
        self._changed = trio.Event()


def round_to_cores(cpus: int, core_width: int) -> int:
    """Pure: what a VM with so many vCPUs takes of a host whose cores have so many CPUs; 0: no more than them."""
    return cpus if core_width == 0 else -(-cpus // core_width) * core_width


def fits(left: Capacity) -> bool:
    """Pure: whether the smallest machine could be served."""
    disk = left.disk_mib is None or left.disk_mib >= MIN_DISK_MIB
    return disk and left.slots > 0 and left.cpus >= MIN_SHAPE.cpus and left.mem_mib >= MIN_SHAPE.mem_mib


def name_arch(machine: str) -> Arch:
    """Pure: what jobs call this host's architecture; HostFault for one that none can ask for."""
    try:
        return _ARCHES[machine]
    except KeyError:
        raise HostFault(f"jobs run on {' and '.join(_ARCHES)}: this host is {machine}") from None


async def poll_leases(
    control: Lessor,
    room: Room,
    labels: tuple[str, ...],
    retry: LeaseRetry,
    serve: Callable[[Grant], Awaitable[None]],
    machines: trio.Nursery,
) -> None:
    """Lease and serve until cancelled. A control plane that is away is asked again, later and later."""
    failures = 0
    arch = name_arch(platform.machine())
    delays = Backoff(retry.base_s, retry.max_s).delays_s()
    while True:
        left = await room.wait_free()
        try:
            grant = await control.lease(
                LeaseRequest(POLL_WAIT_S, left.cpus, left.mem_mib, left.slots, labels, left.disk_mib, arch)
            )
        except NimbusError as error:
            failures += 1
            metrics.LEASE_ERRORS.inc()
            log.warning("lease.request_failed", error=str(error), failures=failures)
            asked_s = error.retry_after_s if isinstance(error, Unavailable) else 0.0
            await trio.sleep(retry.max_s if failures > retry.retries else max(next(delays), min(asked_s, retry.max_s)))
            continue
        failures, delays = 0, Backoff(retry.base_s, retry.max_s).delays_s()
        if grant is not None:
            room.take(grant.shape)
            machines.start_soon(occupy, room, grant.shape, partial(serve, grant))


async def occupy(room: Room, shape: Shape, serve: Callable[[], Awaitable[None]]) -> None:
    """Serve in room that was taken for it, and give it back."""
    try:
        await serve()
    finally:
        room.give_back(shape)
