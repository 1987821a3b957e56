"""An act that hangs is left behind and guarded; a slot that fails again and again is kept apart; the barrier holds."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host import cgroup, process
from nimbus.host.cpus import list_cpus
from nimbus.host.inventory import Territory
from nimbus.host.quarantine import list_quarantined
from nimbus.host_agent import claims
from nimbus.host_agent.claims import Target
from nimbus.host_agent.ledger import Ledger, OpenRecord
from nimbus.host_agent.placing import Places
from nimbus.host_agent.plan import ActLimits, HostLayout, plan_vm
from nimbus.host_agent.teardown import teardown
from nimbus.model.errors import HostFault
from nimbus.model.ids import new_vm_id
from nimbus.model.placement import Node, Placement, Topology
from nimbus.model.record import ProcessId, Record
from nimbus.model.vm import Claim, Shape, Slot
from tests.hosts import needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMITS = ActLimits(acquire_s=0.3, release_s=5.0, empty_s=2.0, settle_s=0.3)
SLOT = Slot(9, 290_009, 290_009, 12)
PATIENCE_S = 60.0


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


@pytest.fixture
def layout(territory: Territory, tmp_path: Path) -> HostLayout:
    """With a runtime folder of its own: slots that go into quarantine here are nobody else's."""
    (tmp_path / "slots").mkdir()
    return HostLayout(state=territory.state_root, runtime=tmp_path, limits=LIMITS)


@pytest.fixture
def record(territory: Territory) -> Iterator[OpenRecord]:
    """A page of the ledger that lists a slot, nothing else."""
    value = Record(
        vm=new_vm_id(), created_at=0, boot_id=process.boot_id(), backend="fake", plan={}, claims=(Claim.SLOT,)
    )
    with Ledger(territory.state_root / "ledger").create(value) as page:
        yield page


def hang_slots(layout: HostLayout) -> Path:
    """Whoever reads this slot waits in the kernel until `answer`."""
    fifo = layout.runtime / "slots" / "0"
    os.mkfifo(fifo)
    return fifo


async def hold_reader(fifo: Path) -> int:
    """Return once somebody reads it; the reader goes on waiting until `answer`."""
    while True:
        with suppress(OSError):  # ENXIO: nobody yet
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        await trio.sleep(0.01)


def answer(fifo: Path, writer: int) -> None:
    """The hung reader gets its end of file, and whoever comes after it finds no file at all."""
    fifo.unlink()
    os.close(writer)


@contextmanager
def run_process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive its block, whatever the block finds."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


async def finish(layout: HostLayout, record: OpenRecord) -> None:
    with trio.fail_after(PATIENCE_S):
        while not await teardown(layout, record):  # noqa: ASYNC110 - a reaper's next round, only sooner
            await trio.sleep(0.02)


async def test_an_acquisition_that_hangs_ends_its_machine_and_is_released_only_after_it_has_ended(
    layout: HostLayout, record: OpenRecord
) -> None:
    fifo = hang_slots(layout)
    with pytest.raises(HostFault, match=r"the slot of VM .* was not there after 0\.3 s"):
        await claims.acquire(Claim.SLOT, Target(layout, record.value))
    assert not await teardown(layout, record)
    assert record.value.claims == (Claim.SLOT,)
    assert "still hangs in the kernel" in record.value.failures[-1]
    answer(
        fifo, await hold_reader(fifo)
    )  # the acquisition comes to its end now, and takes a slot that nobody waits for
    await finish(layout, record)
    assert os.listdir(layout.runtime / "slots") == []


async def test_a_teardown_waits_a_moment_for_an_acquisition_that_was_cancelled_under_way(
    layout: HostLayout, record: OpenRecord
) -> None:
    fifo, layout = hang_slots(layout), replace(layout, limits=replace(LIMITS, acquire_s=60.0, settle_s=60.0))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(_acquire_in_scope, Target(layout, record.value))
            writer = await hold_reader(fifo)
            scope.cancel()
            nursery.start_soon(trio.to_thread.run_sync, answer, fifo, writer)
            assert await teardown(layout, record)
    assert os.listdir(layout.runtime / "slots") == []


async def _acquire_in_scope(target: Target, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await claims.acquire(Claim.SLOT, target)


def broken_target(layout: HostLayout, slot: Slot = SLOT) -> Target:
    """A VM whose network cannot be made: the peer's name is longer than the kernel takes."""
    vm = new_vm_id()
    plan = plan_vm(layout, vm, shape=Shape(), image="none", backend="fake", accel="none", slot=slot)
    value = Record(vm=vm, created_at=0, boot_id=process.boot_id(), backend="fake", plan={}, claims=(), slot=slot)
    return Target(layout, value, replace(plan, net=replace(plan.net, peer="longer-than-ifnamsiz")))


async def test_a_slot_whose_network_fails_three_times_is_kept_apart_whatever_vm_it_was(layout: HostLayout) -> None:
    layout = replace(layout, limits=ActLimits())
    for _ in range(3):
        assert list_quarantined(layout.runtime) == ()
        target = broken_target(layout)
        with pytest.raises(HostFault):
            await claims.acquire(Claim.NETWORK, target)
        await claims.release(Claim.NETWORK, target)
    (slot,) = list_quarantined(layout.runtime)
    assert (slot.index, slot.act) == (SLOT.index, "acquire network")


async def test_a_full_disk_is_not_the_slots_fault(layout: HostLayout) -> None:
    layout = replace(layout, limits=ActLimits(), state=Path("/proc/nowhere"))
    for _ in range(3):
        with pytest.raises((HostFault, OSError)):
            await claims.acquire(Claim.JAIL, broken_target(layout))
    assert list_quarantined(layout.runtime) == ()


async def test_a_slot_is_never_given_back_before_the_vmm_the_cgroup_and_the_network(layout: HostLayout) -> None:
    target = broken_target(layout)
    for held in (Claim.VMM, Claim.CGROUP, Claim.NETWORK):
        value = replace(target.record, claims=(Claim.SLOT, held))
        with pytest.raises(HostFault, match=f"the slot is kept while {held}"):
            await claims.release(Claim.SLOT, Target(layout, value))


async def test_the_barrier_waits_for_a_keeper_that_lives_outside_its_cgroup(layout: HostLayout) -> None:
    with run_process("sleep", "1000") as keeper:
        target = broken_target(layout)
        await claims.release(Claim.VMM, replace(target, record=replace(target.record, keeper=_id(keeper))))
        assert keeper.poll() == -signal.SIGKILL  # dead already: nothing here waited for it
        await claims.release(Claim.VMM, replace(target, record=replace(target.record, keeper=_id_of_dead(keeper))))


def test_a_keeper_that_dies_and_is_reaped_before_its_kill_has_ended() -> None:
    with subprocess.Popen(["true"]) as keeper:
        pidfd = os.pidfd_open(keeper.pid)
    try:
        assert claims.end_process(pidfd, 5.0)
    finally:
        os.close(pidfd)


async def test_the_barrier_waits_for_a_vmm_whose_memory_the_kernel_takes_its_time_to_free(layout: HostLayout) -> None:
    target = broken_target(layout)
    cgroup.ensure_leaf(target.object, cgroup.Limits(cpus=1, mem_mib=1024, pids=16))
    with run_process(sys.executable, "-c", "x = b'x' * (256 << 20); print(flush=True); input()") as vmm:
        assert vmm.stdout is not None
        vmm.stdout.readline()  # its memory is there
        (cgroup.cgroup_dir(target.object) / "vmm" / "cgroup.procs").write_text(str(vmm.pid))
        await claims.release(Claim.VMM, target)
        assert not cgroup.is_populated(target.object)
    await claims.release(Claim.CGROUP, target)


async def test_a_process_that_only_has_the_keepers_old_pid_is_let_live(layout: HostLayout) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:  # noqa: ASYNC220 - fork and exec of a test
        target = broken_target(layout)
        older = replace(_id(stranger), start_ticks=_id(stranger).start_ticks - 1)
        await claims.release(Claim.VMM, replace(target, record=replace(target.record, keeper=older)))
        assert stranger.poll() is None
        stranger.kill()


async def test_a_host_that_must_limit_its_vms_and_cannot_gives_none(layout: HostLayout) -> None:
    target = broken_target(replace(layout, require_limits=True, limits=ActLimits()))
    if not cgroup.ensure_leaf(target.object, claims.plan_limits(Shape())):
        pytest.skip("this host limits VMs: every controller is there")
    with pytest.raises(HostFault, match="NIMBUS_REQUIRE_LIMITS"):
        await claims.acquire(Claim.CGROUP, target)
    await claims.release(Claim.CGROUP, target)


async def test_a_host_that_was_told_to_limit_input_and_output_and_cannot_gives_no_vm(layout: HostLayout) -> None:
    io = cgroup.IoLimit("0:0", bytes_per_s=1 << 20)  # no disk of any host has that number
    target = broken_target(replace(layout, io=io, limits=ActLimits()))
    with pytest.raises(HostFault, match="io is not limited"):
        await claims.acquire(Claim.CGROUP, target)
    await claims.release(Claim.CGROUP, target)


def test_a_vm_that_was_placed_is_fenced_in_by_its_own_cpus_and_nodes() -> None:
    limits = claims.plan_limits(Shape(cpus=1), Placement(vcpus=(2,), cpus=(2, 6), mems=(1,)))
    assert (limits.cpus, limits.cpuset, limits.mems) == (1, (2, 6), (1,))
    assert claims.plan_limits(Shape(cpus=1)).cpuset == ()


async def test_a_vms_cpus_are_given_back_with_its_slot_and_not_before_its_vmm_is_gone(layout: HostLayout) -> None:
    target = broken_target(replace(layout, limits=ActLimits()))
    placed = Places(Topology((Node(0, ((8190, 8191),)),))).take(layout.runtime, target.object, 1)
    assert placed is not None
    busy = replace(target, record=replace(target.record, claims=(Claim.SLOT, Claim.VMM)))
    with pytest.raises(HostFault, match="the slot is kept while vmm"):
        await claims.release(Claim.SLOT, busy)
    assert [ticket.cpus for ticket in list_cpus(layout.runtime)] == [frozenset(placed.cpus)]
    await claims.release(Claim.SLOT, replace(target, record=replace(target.record, claims=(Claim.SLOT,))))
    assert list_cpus(layout.runtime) == ()


async def test_an_overlay_that_came_after_its_vms_folder_was_removed_goes_with_its_folder(layout: HostLayout) -> None:
    target = replace(broken_target(layout), layout=replace(layout, limits=ActLimits()))
    await claims.acquire(Claim.DISK, target)
    assert target.paths.overlay.stat().st_uid == SLOT.uid
    await claims.release(Claim.DISK, target)
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        target.paths.folder.stat()


def _id(running: subprocess.Popen[bytes]) -> ProcessId:
    return process.identify(running.pid)


def _id_of_dead(dead: subprocess.Popen[bytes]) -> ProcessId:
    return ProcessId(dead.pid, 1, process.boot_id())


async def test_what_another_thread_writes_into_a_record_during_its_teardown_brings_no_claim_back(
    territory: Territory, layout: HostLayout
) -> None:
    layout, ledger = replace(layout, limits=ActLimits()), Ledger(territory.state_root / "ledger")
    for _ in range(20):
        every = tuple(claim for claim in Claim if claim is not Claim.NETWORK)
        value = Record(
            vm=new_vm_id(),
            created_at=0,
            boot_id="gone",
            backend="fake",
            plan={},
            claims=every,
            report={},  # not told yet: the record outlives its teardown
        )
        with ledger.create(value) as record, ThreadPoolExecutor(1) as renewer:
            ended = threading.Event()
            renewals = renewer.submit(_renew_until, ended, record)
            try:
                clean = await teardown(layout, record)
            finally:
                ended.set()
            assert renewals.result() > 0
            assert (clean, record.value.claims) == (True, ())
            ledger.remove(value.vm)


def _renew_until(ended: threading.Event, record: OpenRecord) -> int:
    """As a lease's renewer does it, only more often."""
    for deadline_ns in itertools.count(1):
        record.change(deadline_ns=deadline_ns)
        if ended.is_set():
            return deadline_ns
    raise AssertionError
