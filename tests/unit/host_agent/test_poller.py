"""Work is asked for only where there is room, and a plane that is away is asked again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from nimbus.host_agent.admission import DiskPolicy, Supply
from nimbus.host_agent.poller import Capacity, LeaseRetry, Room, name_arch, poll_leases
from nimbus.model.errors import HostFault, Unavailable
from nimbus.model.labels import Arch
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Command, Shape
from nimbus.wire.leaseapi import Grant, GrantTimes, LeaseRequest, MachineKind

RETRY = LeaseRetry(retries=3, base_s=1, max_s=15)


def make_grant(machine_id: int, shape: Shape) -> Grant:
    return Grant(
        key=LeaseKey(machine_id, "00000000-0000-4000-8000-000000000001", 1),
        ttl_s=300,
        org_id=1,
        kind=MachineKind.COMMAND,
        shape=shape,
        image="base",
        labels=(),
        command=Command(("true",)),
        log_url=None,
        log_token=None,
        times_ms=GrantTimes(None, 0, 0),
    )


class Plane:
    """Hands out what is in `grants`, then waits as a long poll does."""

    def __init__(self, *grants: Grant | Unavailable) -> None:
        self.requests: list[tuple[float, LeaseRequest]] = []
        self._grants = list(grants)

    async def lease(self, request: LeaseRequest) -> Grant | None:
        self.requests.append((trio.current_time(), request))
        await trio.lowlevel.checkpoint()
        if not self._grants:
            await trio.sleep(request.wait_s)
            return None
        grant = self._grants.pop(0)
        if isinstance(grant, Unavailable):
            raise grant
        return grant


async def poll(plane: Plane, room: Room, served: list[int], busy_s: float, for_s: float) -> None:
    async def serve(grant: Grant) -> None:
        served.append(grant.key.machine_id)
        await trio.sleep(busy_s)

    with trio.move_on_after(for_s):
        async with trio.open_nursery() as machines:
            await poll_leases(plane, room, ("nimbus",), RETRY, serve, machines)


async def test_no_lease_is_asked_for_that_the_host_cannot_serve(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(*(make_grant(n, Shape(cpus=2)) for n in range(3)))
    served: list[int] = []
    await poll(plane, Room(Capacity(4, 65536, 8)), served, busy_s=100, for_s=50)
    assert served == [0, 1]
    assert [request.free_cpus for _, request in plane.requests] == [4, 2]


async def test_a_machine_that_ends_makes_room_for_the_next_at_once(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(*(make_grant(n, Shape()) for n in range(2)))
    served: list[int] = []
    await poll(plane, Room(Capacity(1, 1024, 8)), served, busy_s=10, for_s=11)
    assert served == [0, 1]


@pytest.mark.parametrize("capacity", [Capacity(0, 65536, 8), Capacity(8, 64, 8), Capacity(8, 65536, 0)])
async def test_a_host_without_room_asks_nobody(capacity: Capacity, autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane()
    await poll(plane, Room(capacity), [], busy_s=1, for_s=1000)
    assert plane.requests == []


async def test_a_plane_that_is_away_is_asked_less_and_less_and_then_served_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    away = [Unavailable("away", retry_after_s=0.0) for _ in range(6)]
    plane = Plane(*away, make_grant(9, Shape()))
    served: list[int] = []
    await poll(plane, Room(Capacity(4, 4096, 4)), served, busy_s=1, for_s=120)
    waits = [b[0] - a[0] for a, b in zip(plane.requests, plane.requests[1:], strict=False)]
    assert served == [9]
    assert all(0.49 < wait < 15.01 for wait in waits[:6])  # sums of floats
    assert waits[4] > waits[0]


async def test_a_plane_that_says_when_to_come_again_is_obeyed(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(Unavailable("busy", retry_after_s=12.0), make_grant(1, Shape()))
    await poll(plane, Room(Capacity(4, 4096, 4)), [], busy_s=1, for_s=60)
    assert plane.requests[1][0] - plane.requests[0][0] == pytest.approx(12)


class Changing:
    """A host whose supply changes by itself, as time goes on."""

    def __init__(self, *supplies: tuple[float, Supply | HostFault]) -> None:
        self.asked = 0
        self._supplies = supplies
        self._began = trio.current_time()

    async def __call__(self) -> Supply:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        now = trio.current_time() - self._began
        found = [supply for since, supply in self._supplies if since <= now][-1]
        if isinstance(found, HostFault):
            raise found
        return found


ENOUGH = Supply(slots_held=0, slots_elsewhere=0, free_mib=65536, promised_mib=0, written_mib=0)
FULL_DISK = Supply(slots_held=0, slots_elsewhere=0, free_mib=2048, promised_mib=0, written_mib=0)
NO_SLOT = Supply(slots_held=0, slots_elsewhere=8, free_mib=65536, promised_mib=0, written_mib=0)


@pytest.mark.parametrize("lack", [FULL_DISK, NO_SLOT, HostFault("the disk does not answer")])
async def test_a_host_that_is_full_asks_nobody_and_finds_out_by_itself_when_it_is_not_any_more(
    lack: Supply | HostFault, autojump_clock: trio.testing.MockClock
) -> None:
    plane, began = Plane(make_grant(1, Shape())), trio.current_time()
    served: list[int] = []
    host = Changing((0, lack), (12, ENOUGH))
    await poll(plane, Room(Capacity(4, 4096, 8), host, DiskPolicy(reserve_mib=2048)), served, busy_s=1, for_s=60)
    assert served == [1]
    assert 12 <= plane.requests[0][0] - began <= 17
    assert host.asked < 10


async def test_the_control_plane_hears_what_disk_is_left_beyond_the_reserve(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plane = Plane(make_grant(1, Shape(disk_mib=10000)))
    room = Room(Capacity(4, 4096, 8), Changing((0, ENOUGH)), DiskPolicy(reserve_mib=2048))
    await poll(plane, room, [], busy_s=100, for_s=50)
    assert [request.free_disk_mib for _, request in plane.requests[:2]] == [63488, 53488]


async def test_a_machine_that_was_adopted_takes_its_room_too(autojump_clock: trio.testing.MockClock) -> None:
    plane, room = Plane(), Room(Capacity(4, 4096, 1), Changing((0, ENOUGH)))
    room.take(Shape())
    await poll(plane, room, [], busy_s=1, for_s=50)
    assert plane.requests == []


async def test_where_each_vm_has_cores_of_its_own_one_of_one_cpu_costs_a_whole_core(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plane = Plane(make_grant(1, Shape(cpus=1)), make_grant(2, Shape(cpus=3)))
    room = Room(Capacity(8, 65536, 8, core_width=2), Changing((0, ENOUGH)))
    await poll(plane, room, [], busy_s=100, for_s=50)
    assert [request.free_cpus for _, request in plane.requests[:3]] == [8, 6, 2]


async def test_cores_that_others_have_taken_on_this_host_are_not_offered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plane, room = Plane(), Room(Capacity(8, 65536, 8, core_width=2), Changing((0, replace(ENOUGH, cpus_elsewhere=6))))
    await poll(plane, room, [], busy_s=1, for_s=10)
    assert [request.free_cpus for _, request in plane.requests] == [2]


async def test_cores_that_are_anothers_own_do_not_matter_where_vms_share_the_cpus(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plane, room = Plane(), Room(Capacity(8, 65536, 8), Changing((0, replace(ENOUGH, cpus_elsewhere=6))))
    await poll(plane, room, [], busy_s=1, for_s=10)
    assert [request.free_cpus for _, request in plane.requests] == [8]


async def test_what_waits_in_the_pool_costs_no_job_its_slot(autojump_clock: trio.testing.MockClock) -> None:
    held = replace(ENOUGH, slots_held=3, owners=frozenset({"waits", "waits too", "runs"}))
    plane = Plane()
    room = Room(Capacity(8, 65536, 3), Changing((0, held)), idle=lambda: frozenset({"waits", "waits too"}))
    room.take(Shape())
    await poll(plane, room, [], busy_s=1, for_s=10)
    assert [request.free_slots for _, request in plane.requests] == [2]


async def test_what_is_made_for_the_pool_counts_as_idle_only_once_it_holds_a_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    held = replace(ENOUGH, slots_held=1, owners=frozenset({"a person's own"}))
    plane = Plane()
    room = Room(Capacity(8, 65536, 1), Changing((0, held)), idle=lambda: frozenset({"without a slot yet"}))
    await poll(plane, room, [], busy_s=1, for_s=10)
    assert plane.requests == []


def test_a_host_tells_its_architecture_as_jobs_call_it_and_one_that_no_job_can_ask_for_is_refused() -> None:
    assert (name_arch("x86_64"), name_arch("aarch64")) == (Arch.X64, Arch.ARM64)
    with pytest.raises(HostFault, match="riscv64"):
        name_arch("riscv64")
