"""What an agent finds may be strange, and its lease may be lost meanwhile: an end is told, a VM is not left by mistake,
and no record ends the agent. On the fake VMM with real kernel objects; the control plane is the test.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest
import trio

from nimbus.host import process
from nimbus.host.inventory import Territory
from nimbus.host_agent.adopt import find_machines, run_adopted
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.departure import Departure, Order, leave_on_a_bug
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.logs import LogTarget, save_target
from nimbus.host_agent.machines import JobPolicy, Workplace
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from nimbus.model.errors import Fenced
from nimbus.model.lease import LeasePolicy
from nimbus.model.record import Record
from nimbus.model.vm import Ending, ExitReason, GuestExit
from nimbus.wire.leaseapi import FinishRequest, RenewRequest, render_finish_request
from tests.faults.leased import KEY, NOBODY, Plane, serve
from tests.hosts import make_host, needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 90.0
SEVEN = GuestExit(7, None, ExitReason.EXITED, "")


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


def layout_of(territory: Territory) -> HostLayout:
    return HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)


def ledger_of(territory: Territory) -> Ledger:
    return Ledger(territory.state_root / "ledger")


async def leave(territory: Territory, **changes: Any) -> Record:
    """A machine whose agent is gone, its record changed; as it then stands."""
    plane, departure = Plane(ttl_s=60), Departure()
    async with trio.open_nursery() as machines:

        async def run() -> None:
            await serve(territory, plane, "sleep", "1000", departure=departure)

        machines.start_soon(run)
        await plane.running.wait()
        departure.note(Order.DETACH)
        machines.cancel_scope.cancel()
    (vm,) = ledger_of(territory).vms()
    with ledger_of(territory).take(vm) as held:
        assert held is not None
        held.change(**changes)
        return held.value


async def adopt(
    territory: Territory, plane: Plane, departure: Departure | None = None, *, cancelled: bool = False
) -> int:
    """What the next agent does at its start; how many machines it found."""
    host = make_host(territory, "fake").host
    policy = JobPolicy(timeout_s=1000, grace_s=1, log_sink_url=None, lease=LeasePolicy())
    place = Workplace(host, cast("ControlPlane", plane), policy, departure or Departure())
    found = await find_machines(host.layout)
    with trio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        async with trio.open_nursery() as machines:
            for foundling in found.machines:
                machines.start_soon(run_adopted, place, foundling)
    return len(found.machines)


def is_alive(record: Record) -> bool:
    assert record.keeper is not None
    return process.is_alive(record.keeper)


def spoil_spool(territory: Territory, record: Record) -> None:
    """A spool that says where it belongs, and nothing else that could be understood."""
    folder = layout_of(territory).spools / str(record.vm)
    folder.mkdir(parents=True)
    save_target(folder, LogTarget(NOBODY, "token"))
    (folder / "shipped.json").write_text("{}")


async def test_a_host_that_cannot_open_a_record_says_so_and_its_agent_lives(territory: Territory) -> None:
    plane, ledger = Plane(ttl_s=60), territory.state_root / "ledger"
    ledger.rmdir()
    ledger.write_text("no folder")
    with trio.fail_after(LIMIT_S):
        await serve(territory, plane, "true")
    assert [told.ending for told in plane.ends] == [Ending.HOST_FAULT]
    ledger.unlink()
    ledger.mkdir()


async def test_an_agent_told_to_leave_before_it_has_taken_a_machine_up_leaves_it(territory: Territory) -> None:
    heir, departure = Plane(ttl_s=60), Departure()
    with trio.fail_after(LIMIT_S):
        record = await leave(territory)
        departure.note(Order.DETACH)
        assert await adopt(territory, heir, departure, cancelled=True) == 1
        assert is_alive(record)
        assert heir.ends == []
        assert (await reap(layout_of(territory), living=True)).reaped == [str(record.vm)]


async def test_a_machine_whose_lease_is_lost_is_not_left_to_the_next_agent(territory: Territory) -> None:
    departure = Departure()

    def fence(_: RenewRequest) -> None:
        departure.note(Order.DETACH)  # SIGTERM and the fence come at the same moment
        raise Fenced("another has it")

    with trio.fail_after(LIMIT_S):
        record = await leave(territory)
        await adopt(territory, Plane(60, fence), departure)
    assert not is_alive(record)
    assert ledger_of(territory).vms() == []


async def test_an_exit_in_the_record_is_told_though_its_output_cannot_be_taken_up(territory: Territory) -> None:
    heir = Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        spoil_spool(territory, await leave(territory, exit=SEVEN))
        await adopt(territory, heir)
    assert [(told.ending, told.exit_code) for told in heir.ends] == [(Ending.FAILED, 7)]
    assert ledger_of(territory).vms() == []
    shutil.rmtree(layout_of(territory).spools)


async def test_a_recorded_end_is_told_though_its_output_cannot_be_taken_up(territory: Territory) -> None:
    heir, end = Plane(ttl_s=60), render_finish_request(FinishRequest(KEY, Ending.TIMED_OUT, cause="too long"))
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, report=end)
        spoil_spool(territory, record)
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.TIMED_OUT]
    assert not is_alive(record)
    assert ledger_of(territory).vms() == []
    shutil.rmtree(layout_of(territory).spools)


async def test_a_vm_that_outlived_its_recorded_end_dies_though_its_lease_is_lost(territory: Territory) -> None:
    heir, end = Plane(ttl_s=60), render_finish_request(FinishRequest(KEY, Ending.TIMED_OUT, cause="too long"))
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, report=end, deadline_ns=1)  # the keeper's own is not over
        await adopt(territory, heir)
    assert heir.ends == []
    assert not is_alive(record)
    assert ledger_of(territory).vms() == []


@pytest.mark.parametrize("session", [{"nonce": 5}, {"nonce": "00", "next_offsets": 7, "stop_grace_s": 1}, {"a": "b"}])
async def test_a_record_with_a_strange_session_ends_its_own_machine_alone(
    territory: Territory, session: dict[str, object]
) -> None:
    heir = Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        await leave(territory, session=session)
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.HOST_FAULT]
    assert ledger_of(territory).vms() == []


@pytest.mark.parametrize("changes", [{"version": 3}, {"plan": {}}, {"plan": {"shape": {"cpus": 0}}}])
async def test_while_a_record_cannot_be_read_no_lease_of_its_agent_is_given_up(
    territory: Territory, changes: dict[str, object]
) -> None:
    """A newer release's VM lives on below this agent: what it runs must not be given to anybody else meanwhile."""
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, **changes)
        estate = await find_machines(layout_of(territory))
        assert (estate.machines, estate.held) == ((), None)
        assert is_alive(record)
        path = territory.state_root / "ledger" / f"{record.vm}.json"
        path.write_text(path.read_text().replace('"version":3', '"version":2'))
        await reap(layout_of(territory), living=True)
    assert not is_alive(record)


async def test_an_exit_that_the_disk_does_not_take_is_told_all_the_same(territory: Territory) -> None:
    """The job reached its end: to run it again somewhere else because a disk is full would run it twice."""
    plane, ledger = Plane(ttl_s=60), territory.state_root / "ledger"
    with trio.fail_after(LIMIT_S):
        await serve(territory, plane, "sh", "-c", f"mv {ledger} {ledger}.away; exit 7")
    assert [(told.ending, told.exit_code) for told in plane.ends] == [(Ending.FAILED, 7)]
    shutil.rmtree(ledger, ignore_errors=True)
    shutil.rmtree(f"{ledger}.away")


async def test_a_stopped_keeper_does_not_hold_the_next_agent_for_ever(territory: Territory) -> None:
    """It holds no deadline any more, so its VM is ended; a stopped process can be killed."""
    heir = Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        record = await leave(territory)
        assert record.keeper is not None
        os.kill(record.keeper.pid, signal.SIGSTOP)
        await adopt(territory, heir)
    assert [told.ending for told in heir.ends] == [Ending.HOST_FAULT]
    assert not is_alive(record)
    assert ledger_of(territory).vms() == []


async def test_a_bug_in_one_task_ends_the_agent_and_leaves_the_machines_of_the_others(territory: Territory) -> None:
    plane, departure = Plane(ttl_s=60), Departure()

    async def stumble() -> None:
        await plane.running.wait()
        raise KeyError("a bug")

    async def run() -> None:
        await serve(territory, plane, "sleep", "1000", departure=departure)

    async def run_both() -> None:
        async with trio.open_nursery() as agent:
            agent.start_soon(leave_on_a_bug, departure, run)
            agent.start_soon(leave_on_a_bug, departure, stumble)

    with trio.fail_after(LIMIT_S):
        with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
            await run_both()
        (vm,) = ledger_of(territory).vms()
        left = ledger_of(territory).read(vm)
        assert left is not None
        assert is_alive(left)
        assert plane.ends == []
        await reap(layout_of(territory), living=True)


async def test_a_purge_keeps_an_exit_that_its_agent_died_before_telling(territory: Territory) -> None:
    """Forgotten, its lease would run out, and the job would run again although it had reached its end."""
    heir = Plane(ttl_s=60)
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, exit=SEVEN)
        for _ in range(2):
            assert (await reap(layout_of(territory), living=True)).untold == [str(record.vm)]
        assert not is_alive(record)
        await adopt(territory, heir)
    assert [(told.ending, told.exit_code) for told in heir.ends] == [(Ending.FAILED, 7)]
    assert ledger_of(territory).vms() == []


async def test_an_exit_whose_lease_ran_out_meanwhile_is_forgotten(territory: Territory) -> None:
    with trio.fail_after(LIMIT_S):
        record = await leave(territory, exit=SEVEN, deadline_ns=1)
        assert (await reap(layout_of(territory), living=True)).reaped == [str(record.vm)]
    assert ledger_of(territory).vms() == []
