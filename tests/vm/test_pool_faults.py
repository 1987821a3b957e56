"""Whatever goes wrong with what waits costs no job more than a cold boot, no agent anything, and leaves nothing."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.cli.run import LocalLease, open_local_lease
from nimbus.host import slots
from nimbus.host.inventory import Territory
from nimbus.host_agent.jailer import SecurityAlarm
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.pool.reserve import Reserve
from nimbus.host_agent.pool.sizes import PoolPolicy, parse_pool
from nimbus.host_agent.serve import RESTORE_LIMIT_PER_VM_S, RESTORE_LIMIT_S
from nimbus.host_agent.snapshots.templates import KEEP, ReadyTemplate, Templates
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine
from nimbus.host_agent.vmm.qemu import Qemu
from nimbus.host_agent.vmm.qmpclient import QemuRefused
from nimbus.model.errors import HostFault
from nimbus.model.vm import Command, Ending, Shape
from nimbus.storage.images import Image
from nimbus.storage.templates import TemplateFiles
from nimbus.wire.keeper import SOCKET_NAME
from tests.hosts import Collected
from tests.oracle import leak_oracle
from tests.vm.snapshots import CloneHost, open_clone_host, was_restored
from tests.vm.test_pool import LIMIT_S, PoolHost, open_pool, own_slots

pytestmark = [pytest.mark.vm, pytest.mark.root]
__all__ = ["leak_oracle"]

OTHER = Shape(mem_mib=320)


@asynccontextmanager
async def filled(clones: CloneHost, sizes: str, free_slots: int | None = None) -> AsyncIterator[PoolHost]:
    """A pool on a host that the test has made to its needs."""
    host = clones.test.host
    if free_slots is not None:
        host = replace(host, layout=own_slots(host.layout, free_slots))
    reserve = Reserve(host, clones.templates, PoolPolicy(parse_pool(sizes)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reserve.run)
        yield PoolHost(replace(clones, test=replace(clones.test, host=replace(host, reserve=reserve))), reserve)
        nursery.cancel_scope.cancel()


class NoTemplates(Qemu):
    """Cannot make templates of one shape."""

    def __init__(self) -> None:
        self.tries = 0

    async def pause(self, machine: Machine) -> None:
        if machine.plan.shape == OTHER:
            self.tries += 1
            raise HostFault("this machine does not pause")
        await super().pause(machine)


async def test_a_template_that_cannot_be_built_ends_no_agent_and_keeps_no_other_shape_from_waiting(
    leak_oracle: Territory, capsys: pytest.CaptureFixture[str]
) -> None:
    vmm = NoTemplates()
    async with open_clone_host(leak_oracle, vmm) as clones, filled(clones, "1x320 built=1; 1x256 built=1") as host:
        await host.wait_filled(1)
        assert host.reserve.waiting[0].plan.shape == Shape()
        with trio.fail_after(LIMIT_S):
            while vmm.tries < 2:  # noqa: ASYNC110 - nothing but a look tells it
                await trio.sleep(0.02)
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if "warning" in line and "does not pause" in line]


class Refusing(Qemu):
    """Refuses to load, and lives on."""

    async def load(self, machine: Machine, boot: Boot) -> None:
        raise QemuRefused("QEMU refused migrate-incoming: not today")


async def test_a_load_that_the_vmm_refuses_in_its_own_words_costs_a_cold_boot(leak_oracle: Territory) -> None:
    async with open_clone_host(leak_oracle, Refusing()) as clones, filled(clones, "1x256 prespawned=1") as host:
        await host.wait_filled(1)
        outcome, out = await host.run("echo ran")
        assert (outcome.ending, outcome.boots, out.stdout, outcome.clean) == (Ending.DONE, 2, "ran\n", True)
        assert outcome.attestation is not None
        assert outcome.attestation.template is None
        assert [one.digest for one in clones.templates.store.quarantined()] == [clones.template.digest]


class Alarming(Qemu):
    """Comes up with more rights than it was to have."""

    loads = 0

    async def load(self, machine: Machine, boot: Boot) -> None:
        Alarming.loads += 1
        raise SecurityAlarm("its VMM is not jailed")


async def test_a_security_alarm_ends_the_job_and_the_machine_is_never_booted_again(leak_oracle: Territory) -> None:
    async with open_clone_host(leak_oracle, Alarming()) as clones, filled(clones, "1x256 prespawned=1") as host:
        await host.wait_filled(1)
        outcome, out = await host.run("echo ran")
        assert (outcome.ending, outcome.boots, out.stdout, outcome.clean) == (Ending.HOST_FAULT, 1, "", True)
        assert "not jailed" in outcome.cause
        assert clones.templates.store.find(clones.template.digest) is not None  # it is not to blame


class Slow(Qemu):
    """Loads nothing before it is let."""

    def __init__(self) -> None:
        self.loading, self.may_load = trio.Event(), trio.Event()

    async def load(self, machine: Machine, boot: Boot) -> None:
        self.loading.set()
        await self.may_load.wait()
        await super().load(machine, boot)


async def test_a_job_without_a_slot_gets_that_of_a_machine_in_the_making(leak_oracle: Territory) -> None:
    vmm = Slow()
    async with open_clone_host(leak_oracle, vmm) as clones, filled(clones, "1x256 warm=1", free_slots=1) as host:
        with trio.fail_after(LIMIT_S):
            await vmm.loading.wait()
        assert (len(host.reserve.idle), host.reserve.waiting) == (1, ())
        outcome, _ = await host.clones.run("true", OTHER)
        assert (outcome.ending, outcome.clean) == (Ending.DONE, True), outcome.cause
        vmm.may_load.set()
        await host.wait_filled(1)


async def test_two_jobs_take_both_slots_of_a_pool_that_had_all(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 built=5", free_slots=2) as host:
        await host.wait_filled(2)  # of five: it is larger than the host
        ended: list[Ending] = []

        async def run_other() -> None:
            outcome, _ = await host.clones.run("true", OTHER)
            ended.append(outcome.ending)

        async with trio.open_nursery() as jobs:
            jobs.start_soon(run_other)
            jobs.start_soon(run_other)
        assert ended == [Ending.DONE, Ending.DONE]
        await host.wait_filled(2)


async def test_what_waits_keeps_its_memory_when_the_template_is_set_aside_and_nothing_else_does(
    leak_oracle: Territory,
) -> None:
    async with open_clone_host(leak_oracle) as clones:
        ready = await clones.templates.find(clones.image, Shape())
        assert ready is not None
        boot = ready.boot(Boot(clones.image, clones.test.host.choice.binary, 0))
        number = boot.memory_fd
        sealed = os.stat(f"/proc/self/fd/{number}")
        del ready
        await clones.templates.distrust(clones.template, "a clone of it did not come up")
        gc.collect()
        assert boot.memory_fd is not None
        assert os.path.samestat(os.fstat(boot.memory_fd), sealed)
        del boot
        gc.collect()
        with pytest.raises(FileNotFoundError):
            os.stat(f"/proc/self/fd/{number}")


async def test_a_template_built_again_and_again_leaves_one_memory_open(leak_oracle: Territory) -> None:
    async with open_clone_host(leak_oracle) as clones:
        store, template = clones.templates.store, clones.template
        kept = TemplateFiles(template.memory, template.state, template.overlay)
        counts = []
        for _ in range(3):
            store.publish(template.key, kept)
            outcome, _ = await clones.run("true")
            assert was_restored(outcome)
            gc.collect()
            counts.append(count_memories())
        assert counts == [counts[0]] * 3


def count_memories() -> int:
    return sum("memfd:nimbus-" in link for link in map(read_link, os.listdir("/proc/self/fd")))


def read_link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # the one by which the folder was listed
        return ""


async def test_no_machine_of_a_template_that_was_set_aside_is_given_to_a_job(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 prespawned=1") as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        await host.clones.templates.distrust(host.clones.template, "a clone of it did not come up")
        outcome, _ = await host.run("true")
        assert (outcome.ending, outcome.boots) == (Ending.DONE, 1)
        assert outcome.vm != first.plan.vm


class Vanishing(Templates):
    """Each template that a boot finds is removed a moment later."""

    async def find(self, image: Image, shape: Shape) -> ReadyTemplate | None:
        ready = await super().find(image, shape)
        if ready is not None:
            self.store.remove(ready.template.digest)
        return ready


async def test_a_template_that_goes_away_while_a_machine_is_built_from_it_costs_a_cold_boot(
    leak_oracle: Territory,
) -> None:
    async with open_clone_host(leak_oracle) as clones:
        host = clones.test.host
        templates = Vanishing(host.layout, host.choice)
        moved = replace(clones, test=replace(clones.test, host=replace(host, templates=templates)))
        outcome, _ = await moved.run("true")
        assert (outcome.ending, outcome.boots, was_restored(outcome)) == (Ending.DONE, 1, False), outcome.cause
        assert outcome.attestation is not None
        assert outcome.attestation.template is None


async def test_a_machine_claimed_in_the_moment_in_which_its_time_is_over_serves_its_job(
    leak_oracle: Territory,
) -> None:
    async with open_pool(leak_oracle, "1x256 warm=1") as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        first.leave.cancel()  # its task has not noticed yet
        outcome, _ = await host.run("true")
        assert (outcome.ending, outcome.vm, outcome.clean) == (Ending.DONE, first.plan.vm, True)


async def test_a_machine_whose_record_cannot_be_rewritten_is_torn_down_with_its_job(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 built=1") as host:
        await host.wait_filled(1)
        first = host.reserve.waiting[0]
        with first.record._changing, pytest.raises(HostFault, match="hangs in the kernel"):
            await host.run("true")
        assert not first.record.ledger.holds(first.plan.vm)
        assert first.plan.object not in {slot.owner for slot in slots.list_slots(leak_oracle.runtime_dir)}


class PastLease(LocalLease):
    """Its deadline passed in the moment in which it was granted."""

    def terms(self) -> KeeperTerms:
        return KeeperTerms(deadline_ns=1, orphan_fd=None)


@pytest.mark.parametrize("kind", ["built", "prespawned", "warm"])
async def test_a_lease_that_is_over_at_the_claim_runs_nothing(leak_oracle: Territory, kind: str) -> None:
    async with open_pool(leak_oracle, f"1x256 {kind}=1") as host:
        await host.wait_filled(1)
        out = Collected()
        order = host.clones.test.order("echo", "ran", sink=out)
        with trio.fail_after(LIMIT_S):
            outcome = await run_machine(host.clones.test.host, order, PastLease(-1))
        assert (outcome.ending, outcome.exit, out.stdout, outcome.clean) == (Ending.CANCELLED, None, "", True)
        assert host.clones.templates.store.find(host.clones.template.digest) is not None


async def test_only_the_newest_templates_of_a_shape_are_kept(leak_oracle: Territory) -> None:
    async with open_clone_host(leak_oracle) as clones:
        store, template = clones.templates.store, clones.template
        kept = TemplateFiles(template.memory, template.state, template.overlay)
        for number in range(KEEP + 2):
            store.publish(replace(template.key, host_kernel=f"6.1.{number}"), kept)
        async with filled(clones, "1x256 built=1") as host:
            await host.wait_filled(1)
        assert template.digest in store.digests()
        assert len(store.digests()) == KEEP + 1  # it is not among the newest, and in use


class HeldLease(LocalLease):
    """One of a control plane's, good for a minute."""

    def terms(self) -> KeeperTerms:
        return KeeperTerms(deadline_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9, orphan_fd=None)


async def serve_refusals(path: Path, task_status: trio.TaskStatus[None]) -> None:
    """A keeper that takes no lease any more: it is about to end its VMM, as when its pool has let go of it."""
    path.unlink()  # noqa: ASYNC240 - a file of the test, in memory
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        await listening.bind(str(path))
        listening.listen()
        task_status.started()
        while True:
            asking, _ = await listening.accept()
            with asking:
                asked = await asking.recv(1024)
                await asking.send(b"2" if asked == b"VERSION" else b"ERR past")


async def test_a_job_that_claims_a_machine_while_the_pool_lets_go_of_it_boots_cold(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 warm=1") as host:
        await host.wait_filled(1)
        first, out = host.reserve.waiting[0], Collected()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_refusals, first.plan.paths.folder / SOCKET_NAME)
            order = host.clones.test.order("echo", "ran", sink=out)
            with trio.fail_after(LIMIT_S):
                outcome = await run_machine(host.clones.test.host, order, HeldLease(-1))
            nursery.cancel_scope.cancel()
        assert (outcome.ending, outcome.vm, out.stdout) == (Ending.DONE, first.plan.vm, "ran\n"), outcome.cause
        assert (outcome.boots, outcome.clean) == (2, True)
        assert host.clones.templates.store.find(host.clones.template.digest) is not None


async def test_no_guest_and_no_template_is_blamed_for_a_forge_that_takes_its_time(leak_oracle: Territory) -> None:
    async with open_pool(leak_oracle, "1x256 warm=1") as host:
        await host.wait_filled(1)
        out, made = Collected(), host.clones.test
        order = made.order("echo", "ran", sink=out)
        number = slots.count_slots(leak_oracle.runtime_dir) + 2

        async def register() -> Command:
            await trio.sleep(RESTORE_LIMIT_S + RESTORE_LIMIT_PER_VM_S * number)
            return await order.command()

        with trio.fail_after(LIMIT_S), open_local_lease() as lease:
            outcome = await run_machine(made.host, replace(order, command=register), lease)
        assert (outcome.ending, outcome.boots, out.stdout) == (Ending.DONE, 1, "ran\n"), outcome.cause
        assert host.clones.templates.store.find(host.clones.template.digest) is not None
