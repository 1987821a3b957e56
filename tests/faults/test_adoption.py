"""A machine outlives its agent: the next one goes on with it, or tells how it ended. The control plane is the test."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import trio

from nimbus.host import process
from nimbus.host.inventory import Territory
from nimbus.host_agent.adopt import find_machines, run_adopted
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.departure import Departure, Order
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.machines import JobPolicy, Workplace
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from nimbus.model.errors import Fenced, Unavailable
from nimbus.model.lease import LeasePolicy
from nimbus.model.record import Record
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import FinishRequest, RenewReply, RenewRequest
from tests.faults.leased import KEY, Plane, serve
from tests.hosts import make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 90.0


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


def layout_of(territory: Territory) -> HostLayout:
    return HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)


def the_record(territory: Territory) -> Record:
    ledger = Ledger(territory.state_root / "ledger")
    (vm,) = ledger.vms()
    record = ledger.read(vm)
    assert record is not None
    return record


async def leave(territory: Territory, plane: Plane, *argv: str) -> Record:
    """Serve one machine, and detach from it once its command runs; its record as it was left."""
    departure = Departure()
    async with trio.open_nursery() as machines:
        machines.start_soon(_serve, territory, plane, argv, departure)
        await plane.running.wait()
        departure.note(Order.DETACH)
        machines.cancel_scope.cancel()
    return the_record(territory)


async def _serve(territory: Territory, plane: Plane, argv: tuple[str, ...], departure: Departure) -> None:
    await serve(territory, plane, *argv, departure=departure)


async def adopt(territory: Territory, plane: Plane, departure: Departure | None = None) -> int:
    """What the next agent does at its start; how many machines it found."""
    host = make_host(territory, "fake").host
    policy = JobPolicy(timeout_s=1000, grace_s=1, log_sink_url=None, lease=LeasePolicy())
    place = Workplace(host, cast("ControlPlane", plane), policy, departure or Departure())
    found = await find_machines(host.layout)
    async with trio.open_nursery() as machines:
        for foundling in found.machines:
            machines.start_soon(run_adopted, place, foundling)
    return len(found.machines)


async def test_a_machine_that_was_left_ends_well_under_the_next_agent_with_the_same_vmm(territory: Territory) -> None:
    gate = territory.state_root / "gate"
    plane, heir = Plane(ttl_s=60), Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, plane, "sh", "-c", f"until test -e {gate}; do sleep 0.05; done; exit 7")
        assert record.keeper is not None
        assert process.is_alive(record.keeper)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, territory, heir)
            await heir.running.wait()
            assert the_record(territory).keeper == record.keeper
            gate.touch()
    assert plane.ends == []
    assert [(told.key, told.ending, told.exit_code) for told in heir.ends] == [(KEY, Ending.FAILED, 7)]
    gate.unlink()


async def test_a_machine_may_be_left_again_and_again(territory: Territory) -> None:
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, Plane(ttl_s=60), "sleep", "1000")
        for _ in range(3):
            departure, heir = Departure(), Plane(ttl_s=60)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(adopt, territory, heir, departure)
                await heir.running.wait()
                departure.note(Order.DETACH)
                nursery.cancel_scope.cancel()
            assert heir.ends == []
            assert the_record(territory).keeper == record.keeper
        assert (await reap(layout_of(territory), living=True)).reaped == [str(record.vm)]


async def test_a_job_that_ended_while_no_agent_lived_is_told_by_the_next_with_its_own_exit(
    territory: Territory,
) -> None:
    heir, began = Plane(ttl_s=60), territory.state_root / "ended"
    with trio.fail_after(LIMIT_S):
        await leave(territory, Plane(ttl_s=60), "sh", "-c", f"sleep 0.5; touch {began}; exit 7")
        await trio.to_thread.run_sync(_wait_for, began)
        assert await adopt(territory, heir) == 1
    assert [(told.ending, told.exit_code) for told in heir.ends] == [(Ending.FAILED, 7)]
    began.unlink()


async def test_a_vmm_that_died_while_no_agent_lived_is_a_crash_and_not_a_success(territory: Territory) -> None:
    heir, gate = Plane(ttl_s=60), territory.state_root / "gate"
    with trio.fail_after(LIMIT_S):
        suicide = f"until test -e {gate}; do sleep 0.05; done; kill -KILL $PPID"
        record = await leave(territory, Plane(ttl_s=60), "sh", "-c", suicide)
        gate.touch()
        await trio.to_thread.run_sync(_wait_dead, record)
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.GUEST_CRASHED]
    gate.unlink()


async def test_a_keeper_that_was_killed_while_no_agent_lived_is_the_hosts_fault(territory: Territory) -> None:
    heir = Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, Plane(ttl_s=60), "sleep", "1000")
        assert record.keeper is not None
        os.kill(record.keeper.pid, signal.SIGKILL)
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.HOST_FAULT]


async def test_a_lease_that_another_holds_by_now_ends_the_vm_and_nothing_is_told(territory: Territory) -> None:
    def fence(_: RenewRequest) -> None:
        raise Fenced("another has it")

    heir = Plane(60, fence)
    with trio.fail_after(LIMIT_S):
        await leave(territory, Plane(ttl_s=60), "sleep", "1000")
        await adopt(territory, heir)
    assert heir.ends == []
    assert Ledger(territory.state_root / "ledger").vms() == []


async def test_without_a_control_plane_the_recorded_deadline_decides(territory: Territory) -> None:
    def away(_: RenewRequest) -> None:
        raise Unavailable("no route")

    heir = Plane(60, away)
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, Plane(ttl_s=8), "sleep", "1000")
        assert record.keeper is not None
        assert record.deadline_ns is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, territory, heir)
            await trio.to_thread.run_sync(_wait_dead, record)
    assert heir.ends == []
    assert Ledger(territory.state_root / "ledger").vms() == []


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)


def _wait_dead(record: Record) -> None:
    assert record.keeper is not None
    try:
        fd = process.open_pidfd(record.keeper)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
    os.close(fd)


async def test_an_end_that_nobody_heard_is_told_by_the_next_agent(territory: Territory) -> None:
    class Deaf(Plane):
        """Takes the report and never answers."""

        def __init__(self) -> None:
            super().__init__(60)
            self.asked = trio.Event()

        async def finish(self, request: FinishRequest) -> None:
            await super().finish(request)
            self.asked.set()
            await trio.sleep_forever()

    plane, heir, departure = Deaf(), Plane(ttl_s=60), Departure()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as machines:
            machines.start_soon(_serve, territory, plane, ("sh", "-c", "exit 7"), departure)
            await plane.asked.wait()
            departure.note(Order.DETACH)
            machines.cancel_scope.cancel()
        record = the_record(territory)
        assert record.claims == ()
        assert (await reap(layout_of(territory), living=True)).untold == [str(record.vm)]
        await adopt(territory, heir)
    assert [(told.ending, told.exit_code) for told in heir.ends] == [(Ending.FAILED, 7)]
    assert Ledger(territory.state_root / "ledger").vms() == []


@contextmanager
def leased_elsewhere(territory: Territory) -> Iterator[subprocess.Popen[str]]:
    words = [territory.state_root, territory.runtime_dir, 600, 0]
    argv = [sys.executable, "-m", "tests.faults.leased", *(str(word) for word in words)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as agent:
        try:
            yield agent
        finally:
            agent.kill()


async def test_a_killed_agents_machine_is_adopted_and_can_be_cancelled(territory: Territory) -> None:
    class Cancelling(Plane):
        async def renew(self, request: RenewRequest) -> RenewReply:
            await super().renew(request)
            return RenewReply(60, cancel=True)

    heir = Cancelling(60)
    with leased_elsewhere(territory) as agent:
        assert agent.stdout is not None
        assert await trio.to_thread.run_sync(agent.stdout.readline) == "started\n"
    with trio.fail_after(LIMIT_S):
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.CANCELLED]


async def test_a_machine_whose_host_was_restarted_is_told_as_a_host_fault_and_touches_no_process(
    territory: Territory,
) -> None:
    heir = Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, Plane(ttl_s=60), "sleep", "1000")
        assert record.keeper is not None
        os.kill(record.keeper.pid, signal.SIGKILL)  # what a restart does
        await trio.to_thread.run_sync(_wait_dead, record)
        ledger = Ledger(territory.state_root / "ledger")
        with ledger.take(record.vm) as held:
            assert held is not None
            held.change(boot_id="00000000-0000-0000-0000-000000000000")
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.HOST_FAULT]
    assert "restarted" in heir.ends[0].cause
