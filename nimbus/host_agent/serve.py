"""Boots a planned VM and serves it: launch under a keeper, greet the guest, run the command, hear its end.

A boot that never says hello is killed and tried again (the kernel can hang in its calibration under
software emulation); after the hello nothing is ever repeated. Tears nothing down for good: that is
teardown.py's. Called by lifecycle.py.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog
import trio

from nimbus.host import cgroup, slots
from nimbus.host_agent.build import Host
from nimbus.host_agent.disks import is_full
from nimbus.host_agent.guest import (
    GuestConnected,
    GuestEvent,
    GuestHello,
    GuestJobStarted,
    GuestSession,
    OutputSink,
    run_guest,
)
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.phases import Phases
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.vmm.machine import Boot, KeeperTerms, Machine, read_console_file
from nimbus.model.errors import GuestFault, HostFault, NimbusError
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.keeper import VmmExit

log = structlog.get_logger()

BOOT_ATTEMPTS = 3
BOOT_LIMIT_S = 10.0  # plus the next for each VM on the host: a boot takes 1.5 s of a core under TCG (facts/qemu)
BOOT_LIMIT_PER_VM_S = 3.0
SILENCE_LIMIT_S = 60.0  # a guest sends a heartbeat each second; a host under heavy load delays it, a hung one stops it
DISK_LOOK_S = 5.0
OVERTIME_S = 30.0  # beyond the command's own timeout and grace, which the guest enforces
CONSOLE_TAIL_BYTES = 8192  # a panic's one telling line stands before a screenful of registers
PANIC = "Kernel panic"


class Overtime(GuestFault):
    """The guest let its command run on: who is root in there can stop nimbus-init from ending it, but not us."""


class Lease(Protocol):
    """The right to run, as a machine's life needs it."""

    @property
    def key(self) -> LeaseKey | None:
        """What the control plane knows it by; None for a local run."""
        ...

    @property
    def stop(self) -> trio.Event:
        """Set when the command is to be ended politely."""
        ...

    def terms(self) -> KeeperTerms:
        """Until when the keeper may let the VM live, as of now."""
        ...

    def note_started(self) -> None:
        """The command runs now."""
        ...

    async def follow(self, machine: Machine, record: OpenRecord) -> None:
        """Move the keeper's deadline with every renewal, until cancelled."""
        ...


@dataclass
class Life:
    """What is learned of one machine while it lives."""

    phases: Phases
    record: OpenRecord
    command: Command | None = None
    greeted: bool = False
    started: bool = False
    boots: int = 0
    exit: GuestExit | None = None
    vmm_exit: VmmExit | None = None
    console: bytes = b""
    heard: trio.CancelScope = field(default_factory=trio.CancelScope)
    heard_at: float = math.inf  # the guest's last word
    starved: bool = False  # the host's disk is full, so the VMM halted the VM
    latest: float = math.inf  # when the command's time is over by the host's own clock


async def serve_vm(
    host: Host,
    plan: VmPlan,
    boot: Boot,
    lease: Lease,
    ask_command: Callable[[], Awaitable[Command]],
    sink: OutputSink,
    life: Life,
) -> GuestExit:
    """Run the command in the VM. Raises HostFault before the guest said hello, GuestFault after it."""
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        life.boots = attempt
        limit_s = BOOT_LIMIT_S + BOOT_LIMIT_PER_VM_S * await in_thread(partial(slots.count_slots, host.layout.runtime))
        life.heard = trio.CancelScope(deadline=trio.current_time() + limit_s)
        await _serve_once(host, plan, boot, lease, ask_command, sink, life)
        if life.exit is not None:
            return life.exit
        if trio.current_time() >= life.latest:
            raise Overtime("the guest did not end its command in time: its VM was killed")
        if life.starved:
            raise HostFault(
                f"the host's disk became full and its VM was halted: free space at {plan.paths.folder.parent}"
            )
        if life.greeted:
            silent = f"the guest was silent for {SILENCE_LIMIT_S:g} s and was killed"
            ended = "the guest ended without telling its command's exit"
            raise GuestFault(_describe_end(life, ended if life.vmm_exit else silent))
        log.warning("vm.boot_failed", vm=str(plan.vm), attempt=attempt, limit_s=limit_s)
        await in_thread(partial(_clear_cgroup, plan.object))
    raise HostFault(_describe_end(life, f"the guest never said hello in {BOOT_ATTEMPTS} boots{_advise(host)}"))


async def _serve_once(
    host: Host,
    plan: VmPlan,
    boot: Boot,
    lease: Lease,
    ask_command: Callable[[], Awaitable[Command]],
    sink: OutputSink,
    life: Life,
) -> None:
    """One boot and what follows. Returns with `life.exit` set, or not: VMM gone or guest silent."""
    try:
        async with trio.open_nursery() as vm:
            with life.phases.span("vmm"):
                launched = partial(_launch, host, plan, boot, lease.terms(), life, vm.cancel_scope)
                machine: Machine = await vm.start(launched)
            await in_thread(partial(life.record.change, keeper=machine.keeper.identity))
            vm.start_soon(lease.follow, machine, life.record)
            vm.start_soon(_watch_disk, plan, life)
            if life.command is None:
                life.command = await ask_command()
            with life.heard:
                await _run_guest(machine, plan, lease, sink, life)
            await _read_console(machine, life)
            vm.cancel_scope.cancel()
    except* NimbusError as group:
        raise first_error(group) from None


async def _launch(  # noqa: ASYNC128 - launch has the machine and says that it started
    host: Host,
    plan: VmPlan,
    boot: Boot,
    terms: KeeperTerms,
    life: Life,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Machine],
) -> None:
    """The VMM's own task. When the VM is gone, nobody needs to wait for its guest any longer."""
    life.vmm_exit = None
    life.vmm_exit = await host.choice.vmm.launch(plan, boot, terms, task_status=task_status)
    if life.exit is None:
        life.console = await in_thread(partial(read_console_file, plan, CONSOLE_TAIL_BYTES))
    scope.cancel()


async def _run_guest(machine: Machine, plan: VmPlan, lease: Lease, sink: OutputSink, life: Life) -> None:
    assert life.command is not None  # noqa: S101 - set by _serve_once just before
    session = GuestSession(nonce=secrets.token_bytes(16), command=life.command, net=plan.net)
    with life.phases.span("guest"):
        await run_guest(
            machine.connect_guest,
            session,
            sink,
            on_event=partial(_hear, life, lease),
            on_exit=partial(_persist_exit, life),
            stop=lease.stop,
        )


def _hear(life: Life, lease: Lease, event: GuestEvent) -> None:
    """Every word of the guest moves the silence limit, within its command's time; its first ones date its boot."""
    if isinstance(event, GuestConnected):
        return  # the VMM's word: a guest that hangs in its boot has a connection too
    now = life.heard_at = trio.current_time()
    match event:
        case GuestHello() if not life.greeted:
            life.greeted = True
            life.latest = now + _longest_s(life.command)
            life.phases.add("kernel", event.kernel_ms)
            life.phases.add("init", event.init_ms)
        case GuestJobStarted() if not life.started:
            life.started = True
            lease.note_started()
        case _:
            pass
    life.heard.deadline = min(now + SILENCE_LIMIT_S, life.latest)


async def _watch_disk(plan: VmPlan, life: Life) -> None:
    """A VMM halts its VM when the host's disk has no room for a write: the guest falls silent, and stays so."""
    while True:
        await trio.sleep(DISK_LOOK_S)
        silent = trio.current_time() - life.heard_at > DISK_LOOK_S
        if silent and await in_thread(partial(is_full, plan)):
            life.starved = True
            life.heard.cancel()


def _longest_s(command: Command | None) -> float:
    """Pure: how long a guest may live after its hello."""
    if command is None or command.timeout_s is None:
        return math.inf
    return command.timeout_s + command.grace_s + OVERTIME_S


async def _persist_exit(life: Life, told: GuestExit) -> None:
    """The record first, then the acknowledgement: a successor finishes the lease with this very exit."""
    await in_thread(partial(life.record.change, exit=told))
    life.exit = told  # from here on it counts, even if the VM is gone before its farewell was read


async def _read_console(machine: Machine, life: Life) -> None:
    """Keep the console's end where nothing better tells what went wrong."""
    if life.exit is None:
        with trio.move_on_after(1):
            life.console = await machine.console_tail(CONSOLE_TAIL_BYTES)


def _clear_cgroup(name: str) -> None:
    """Between two boots: nothing of the first may live into the second."""
    cgroup.kill_cgroup(name)
    if not cgroup.wait_empty(name, 5.0):
        raise HostFault(f"cgroup {name} holds a process that cannot be killed")


def _describe_end(life: Life, what: str) -> str:
    # A guest writes there what it likes: nothing of it may steer a terminal or be refused by a database.
    lines = [
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
        for line in life.console.decode(errors="replace").splitlines()
    ]
    panic = [line for line in lines if PANIC in line]
    ended = ""
    if life.vmm_exit is not None:
        told = life.vmm_exit
        ended = f"; the VMM {told.kind} {told.code if told.code is not None else ''} ({told.reason or 'no word left'})"
    if panic:
        return f"{what}{ended}; its kernel died: {panic[0].strip()}"
    return f"{what}{ended}" + (f"; console ends: {' | '.join(lines[-8:])}" if lines else "")


def _advise(host: Host) -> str:
    """A /dev/kvm that opens is not yet one that boots a guest: some hosts offer it in software only."""
    if host.choice.accel != "kvm":
        return ""
    return " (NIMBUS_ACCEL=kvm: this host's /dev/kvm may not work for guests; NIMBUS_ACCEL=tcg does without)"


def first_error(group: BaseExceptionGroup[NimbusError]) -> NimbusError:
    """The one that counts: errors of one VM that come together have one cause."""
    inner = group.exceptions[0]
    return first_error(inner) if isinstance(inner, BaseExceptionGroup) else inner
