"""Boots a planned VM and serves it, or takes over one that an earlier agent booted.

A boot that never says hello is killed and tried again (the kernel can hang in its calibration under
software emulation); after the hello nothing is ever repeated. Tears nothing down for good: that is
teardown.py's. Called by lifecycle.py.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog
import trio

from nimbus.host import cgroup, process, slots
from nimbus.host_agent.attend import CONSOLE_TAIL_BYTES, SILENCE_LIMIT_S, attend, latest_ns, longest_s, until
from nimbus.host_agent.attesting import attest_boot
from nimbus.host_agent.build import Host, Ready, start_over
from nimbus.host_agent.causes import first_error
from nimbus.host_agent.guest import GuestSession, OutputSink, parse_session, render_session
from nimbus.host_agent.keeper import KeeperGone, read_exit
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.life import Lease, Life, Overtime, describe_end, judge_memory
from nimbus.host_agent.plan import HostLayout, VmPlan, replan
from nimbus.host_agent.usage import find_memory_events, read_memory_events
from nimbus.host_agent.vmm.choice import BACKENDS
from nimbus.host_agent.vmm.launch import RestoreFailed, bring_up
from nimbus.host_agent.vmm.machine import (
    KeeperTerms,
    Machine,
    Memory,
    find_machine,
    open_machine,
    read_console_file,
)
from nimbus.model.errors import Fenced, GuestFault, HostFault, NimbusError, Refused, Unavailable
from nimbus.model.record import ProcessId, Record
from nimbus.model.vm import Command, Slot
from nimbus.wire.keeper import VANISHED

log = structlog.get_logger()

BOOT_ATTEMPTS = 3
BOOT_LIMIT_S = 10.0  # plus the next for each VM on the host: a boot takes 1.5 s of a core under TCG (facts/qemu)
BOOT_LIMIT_PER_VM_S = 3.0
# A clone answers in a fraction of a second or never: its vCPUs go on where they were, nothing of a boot is left to do.
RESTORE_LIMIT_S, RESTORE_LIMIT_PER_VM_S = 5.0, 1.0
LAUNCH_LIMIT_S = 60.0  # until its VMM runs a keeper mounts and forks: milliseconds, unless the kernel hangs

AskCommand = Callable[[], Awaitable[Command]]


class ResumableSink(OutputSink, Protocol):
    """A sink that an earlier agent has filled."""

    @property
    def offsets(self) -> tuple[int, int]:
        """Of stdout and stderr: all below is safe, and the guest goes on from there."""
        ...


# --- booted here ---------------------------------------------------------------------------------------------------


async def serve_vm(
    host: Host, ready: Ready, lease: Lease, ask_command: AskCommand, sink: OutputSink, life: Life
) -> None:
    """Run the command in the VM; `life.exit` is its end. HostFault before the guest said hello, GuestFault after it."""
    plan = ready.plan
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        life.boots = attempt
        life.restored = ready.boot.memory is Memory.TEMPLATE
        limit_s = await _boot_limit_s(host.layout, restored=life.restored)
        life.heard = trio.CancelScope(deadline=trio.current_time() + limit_s)
        failed: RestoreFailed | None = RestoreFailed(f"the guest never said hello in {limit_s:g} s")
        try:
            ask_session = partial(_open_session, life, plan, ask_command, limit_s)
            await _serve_once(host, ready, lease, ask_session, sink, life)
        except (RestoreFailed, KeeperGone) as error:
            failed = error if isinstance(error, RestoreFailed) else None
        if _has_ended(life, plan):
            return
        log.warning("vm.boot_failed", vm=str(plan.vm), attempt=attempt, why=str(failed or "it died while it waited"))
        await in_thread(partial(_clear_cgroup, plan.object))
        await in_thread(partial(life.record.change, keeper=None, session=None))  # nothing of this boot can be adopted
        ready = await _boot_cold(host, ready, failed)
        await attest_boot(life.record, ready.boot)
    raise HostFault(describe_end(life, f"the guest never said hello in {BOOT_ATTEMPTS} boots{_advise(host)}"))


async def _boot_cold(host: Host, ready: Ready, failed: RestoreFailed | None) -> Ready:
    """After a boot that failed: its template is not tried again, and the disk begins empty where a clone or a chroot
    was given one, as cold boots do.
    """
    plan, boot = ready.plan, ready.boot
    if boot.memory is not Memory.TEMPLATE:
        return Ready(plan, boot if boot.jailer is None else await start_over(host, plan, boot))
    if failed is not None and host.templates is not None and boot.template is not None:
        await host.templates.distrust(boot.template, str(failed))
    return Ready(plan, await start_over(host, plan, boot))


async def _boot_limit_s(layout: HostLayout, *, restored: bool = False) -> float:
    """How long a guest may take to its hello, on a host with so many VMs."""
    first_s, each_s = (RESTORE_LIMIT_S, RESTORE_LIMIT_PER_VM_S) if restored else (BOOT_LIMIT_S, BOOT_LIMIT_PER_VM_S)
    return first_s + each_s * await in_thread(partial(slots.count_slots, layout.runtime))


async def _serve_once(
    host: Host,
    ready: Ready,
    lease: Lease,
    ask_session: Callable[[], Awaitable[GuestSession]],
    sink: OutputSink,
    life: Life,
) -> None:
    """One boot and what follows. Returns with `life.exit` set, or not: VMM gone or guest silent."""
    try:
        async with trio.open_nursery() as vm:
            machine: Machine | None = None
            with life.phases.span("vmm"), trio.move_on_after(LAUNCH_LIMIT_S):
                bring = _launch if ready.stage is None else _resume
                machine = await vm.start(partial(bring, host, ready, lease.terms(), life, vm.cancel_scope))
            if machine is None:
                raise HostFault(f"the VMM was not started in {LAUNCH_LIMIT_S:g} s: its keeper hangs")
            await attend(machine, lease, ask_session, sink, life)
            vm.cancel_scope.cancel()
    except* NimbusError as group:
        raise first_error(group) from None


async def _open_session(life: Life, plan: VmPlan, ask_command: AskCommand, boot_limit_s: float) -> GuestSession:
    """This boot's session, in the record before the guest hears of it: from then on it can be adopted."""
    if life.command is None:
        life.command = await ask_command()
        life.heard.deadline = trio.current_time() + boot_limit_s  # no guest answers for how long a forge took
    nonce = secrets.token_bytes(16)
    session = GuestSession(nonce=nonce, command=life.command, net=plan.net, must_prepare=life.restored)
    latest = latest_ns(boot_limit_s + longest_s(life.command))
    await in_thread(partial(life.record.change, session=render_session(session), latest_ns=latest))
    return session


async def _launch(
    host: Host,
    ready: Ready,
    terms: KeeperTerms,
    life: Life,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Machine],
) -> None:
    """The VMM's own task. When the VM is gone, nobody needs to wait for its guest any longer.

    Its keeper is noted while its VMM starts: nobody waits for the disk then.
    """
    life.vmm_exit = None
    span = life.phases.span
    async with AsyncExitStack() as stack:
        with span("keeper"):
            machine = await stack.enter_async_context(open_machine(host.choice.vmm, ready.plan, ready.boot, terms))
        async with trio.open_nursery() as both:
            both.start_soon(in_thread, partial(life.record.change, keeper=machine.keeper.identity))
            await bring_up(machine, ready.boot, span=span)
        task_status.started(machine)
        await _wait_gone(machine, life, scope)


async def _resume(
    host: Host,
    ready: Ready,
    terms: KeeperTerms,
    life: Life,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Machine],
) -> None:
    """The same for a machine that waited: its keeper takes the lease before its guest runs.

    Raises KeeperGone where it died while it waited, or its keeper gives no answer: it is no machine to go on with.
    """
    keeper = life.record.value.keeper
    assert keeper is not None  # noqa: S101 - the pool hands over nothing else
    is_up = False
    try:
        async with find_machine(host.choice.vmm, ready.plan, keeper) as machine:
            if terms.deadline_ns is not None:
                await _lease_keeper(machine, terms.deadline_ns)
            await bring_up(machine, ready.boot, since=ready.stage, span=life.phases.span)
            is_up = True
            task_status.started(machine)
            await _wait_gone(machine, life, scope)
    except Unavailable as error:
        if is_up:
            raise
        raise KeeperGone(str(error)) from error


async def _lease_keeper(machine: Machine, deadline_ns: int) -> None:
    """Raises Fenced where the deadline has passed. A keeper that refuses a good one was let go of by its pool in this
    very moment, and is about to end its VMM: that ends the machine, not its job.
    """
    try:
        await machine.keeper.lease(deadline_ns)
    except Fenced as error:
        if deadline_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME):
            raise
        raise KeeperGone("its pool let go of it before its job took it") from error


# --- booted by an earlier agent --------------------------------------------------------------------------------------


async def serve_adopted(host: Host, lease: Lease, life: Life, sink: ResumableSink) -> None:
    """Go on with the VM of a record, or learn how it ended. Like serve_vm, but nothing is ever booted again."""
    value = life.record.value
    life.exit = value.exit
    if value.exit is not None:
        return  # it had told its exit and all its output: only the undoing is left
    if value.boot_id != process.boot_id():
        raise HostFault("this host was restarted while the machine was on it")
    if value.keeper is None or value.slot is None or value.session is None:
        raise HostFault("its agent died before the job was handed to the guest")
    plan, session = _read_left(host.layout, value, value.slot, value.session)
    life.latest = until(value.latest_ns)
    life.heard = trio.CancelScope(deadline=trio.current_time() + await _boot_limit_s(host.layout) + SILENCE_LIMIT_S)
    try:
        await _attend_adopted(plan, value.keeper, replace(session, next_offsets=sink.offsets), lease, life, sink)
    except KeeperGone:
        life.vmm_exit = await read_exit(plan.paths.folder)
        await _look_after_it(plan, life)
    except Unavailable as error:  # and so holds no deadline: its VM must not live on
        raise HostFault(str(error)) from error
    if not _has_ended(life, plan):
        raise HostFault(describe_end(life, "the guest never said hello to the agent that adopted it"))


def _read_left(
    layout: HostLayout, value: Record, slot: Slot, stored: Mapping[str, object]
) -> tuple[VmPlan, GuestSession]:
    """What an earlier agent wrote of it: a record that says something else must not end this agent."""
    try:
        plan = replan(layout, value.vm, backend=value.backend, stored=value.plan, slot=slot)
        return plan, replace(parse_session(stored), net=plan.net)
    except (LookupError, TypeError, ValueError, AttributeError, Refused) as error:
        raise HostFault(f"the record that its agent left cannot be understood: {error!r}") from error


async def _attend_adopted(
    plan: VmPlan, keeper: ProcessId, session: GuestSession, lease: Lease, life: Life, sink: ResumableSink
) -> None:
    try:
        async with find_machine(BACKENDS[plan.backend], plan, keeper) as machine, trio.open_nursery() as vm:
            log.info("vm.adopted", vm=str(plan.vm), keeper=keeper.pid)
            vm.start_soon(_wait_gone, machine, life, vm.cancel_scope)
            await attend(machine, lease, partial(_give, session), sink, life)
            vm.cancel_scope.cancel()
    except* NimbusError as group:
        raise first_error(group) from None


async def _wait_gone(machine: Machine, life: Life, scope: trio.CancelScope) -> None:
    life.vmm_exit = await machine.wait_gone()
    await _look_after_it(machine.plan, life)
    scope.cancel()


async def _give(session: GuestSession) -> GuestSession:  # noqa: ASYNC124 - a booted machine's has to be asked for
    return session


# --- both ------------------------------------------------------------------------------------------------------------


async def _look_after_it(plan: VmPlan, life: Life) -> None:
    """What a VMM that is gone has left, while its cgroup and its folder are still there."""
    if life.exit is None:
        life.console = await in_thread(partial(read_console_file, plan, CONSOLE_TAIL_BYTES))
        life.memory = await in_thread(lambda: read_memory_events(find_memory_events(plan)))


def _has_ended(life: Life, plan: VmPlan) -> bool:
    """True with the exit told, False where the guest never said hello. Raises what else it ended of."""
    if life.exit is not None:
        return True
    if life.vmm_exit is not None and life.vmm_exit.reason == "deadline":
        raise HostFault("its lease ran out while no agent renewed it, and its keeper ended the VM")
    if life.vmm_exit == VANISHED:
        raise HostFault("its keeper was killed on this host, and the VM with it")
    if (starved := judge_memory(life, plan.shape.mem_mib)) is not None:
        raise starved
    if trio.current_time() >= life.latest:
        raise Overtime("the guest did not end its command in time: its VM was killed")
    if life.starved:
        raise HostFault(f"the host's disk became full and its VM was halted: free space at {plan.paths.folder.parent}")
    if life.greeted or (life.adopted and life.vmm_exit is not None):
        silent = f"the guest was silent for {SILENCE_LIMIT_S:g} s and was killed"
        ended = "the guest ended without telling its command's exit"
        raise GuestFault(describe_end(life, ended if life.vmm_exit else silent))
    return False


def _clear_cgroup(name: str) -> None:
    """Between two boots: nothing of the first may live into the second."""
    cgroup.kill_cgroup(name)
    if not cgroup.wait_empty(name, 5.0):
        raise HostFault(f"cgroup {name} holds a process that cannot be killed")


def _advise(host: Host) -> str:
    """A /dev/kvm that opens is not yet one that boots a guest: some hosts offer it in software only."""
    if host.choice.accel != "kvm":
        return ""
    return " (NIMBUS_ACCEL=kvm: this host's /dev/kvm may not work for guests; NIMBUS_ACCEL=tcg does without)"
