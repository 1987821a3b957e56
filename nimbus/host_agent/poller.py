"""Asks for work while there is room for it, and hands each grant to a machine's own task.

Free slots are the back-pressure: a lease is asked for only when a place, CPUs and memory are held for it.
Never runs a machine itself; stops at once when told to. Called by main.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.model.errors import NimbusError, Unavailable
from nimbus.model.vm import Shape
from nimbus.runtime.retry import Backoff
from nimbus.wire.leaseapi import Grant, LeaseRequest

log = structlog.get_logger()

POLL_WAIT_S = 20.0
MIN_SHAPE = Shape()  # the least that any machine request asks for


@dataclass(frozen=True)
class Capacity:
    """What this host gives to VMs in all."""

    cpus: int
    mem_mib: int
    slots: int


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
    """Free capacity, and a way to wait for it."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._used: list[Shape] = []
        self._changed = trio.Event()

    def free(self) -> Capacity:
        """What is left now."""
        return Capacity(
            self._capacity.cpus - sum(s.cpus for s in self._used),
            self._capacity.mem_mib - sum(s.mem_mib for s in self._used),
            self._capacity.slots - len(self._used),
        )

    async def wait_free(self) -> Capacity:
        """Room for at least the smallest machine, once there is some."""
        while True:
            left = self.free()
            if left.slots > 0 and left.cpus >= MIN_SHAPE.cpus and left.mem_mib >= MIN_SHAPE.mem_mib:
                return left
            await self._changed.wait()

    def take(self, shape: Shape) -> None:
        self._used.append(shape)

    def give_back(self, shape: Shape) -> None:
        self._used.remove(shape)
        self._changed.set()
        self._changed = trio.Event()


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
    delays = Backoff(retry.base_s, retry.max_s).delays_s()
    while True:
        left = await room.wait_free()
        try:
            grant = await control.lease(LeaseRequest(POLL_WAIT_S, left.cpus, left.mem_mib, left.slots, labels))
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
            machines.start_soon(_serve, room, grant, serve)


async def _serve(room: Room, grant: Grant, serve: Callable[[Grant], Awaitable[None]]) -> None:
    try:
        await serve(grant)
    finally:
        room.give_back(grant.shape)
