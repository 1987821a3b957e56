"""Attends a live machine, booted or adopted: its lease followed, its guest heard, its disk and its silence watched.

Ends when the command's exit is safe, when the guest is silent for too long, or when it is cancelled; it decides
nothing about what follows. Called by serve.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

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
from nimbus.host_agent.life import Lease, Life
from nimbus.host_agent.plan import VmPlan
from nimbus.host_agent.usage import read_usage
from nimbus.host_agent.vmm.machine import Machine
from nimbus.model.errors import HostFault
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.guestlink import GuestState

SILENCE_LIMIT_S = 60.0  # a guest sends a heartbeat each second; a host under heavy load delays it, a hung one stops it
DISK_LOOK_S = 5.0
OVERTIME_S = 30.0  # beyond the command's own timeout and grace, which the guest enforces
CONSOLE_TAIL_BYTES = 64 * 1024  # all that a keeper keeps
USAGE_S = 10.0  # as often as a lease is renewed


async def attend(
    machine: Machine, lease: Lease, ask_session: Callable[[], Awaitable[GuestSession]], sink: OutputSink, life: Life
) -> None:
    """Until the guest told its exit (`life.exit`), or `life.heard` ran out. Raises what the session's parts raise."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.follow, machine, life.record)
        nursery.start_soon(_watch_disk, machine.plan, life)
        session = await ask_session()
        nursery.start_soon(_watch_usage, machine.plan, lease)
        with life.heard, life.phases.span("guest"):
            await run_guest(
                machine.connect_guest,
                session,
                sink,
                on_event=partial(_hear, life, lease),
                on_exit=partial(_persist_exit, life),
                stop=lease.stop,
            )
        await _read_console(machine, life)
        nursery.cancel_scope.cancel()


def _hear(life: Life, lease: Lease, event: GuestEvent) -> None:
    """Every word of the guest moves the silence limit, within its command's time; its first ones date its boot."""
    if isinstance(event, GuestConnected):
        life.phases.mark("asked")  # from here on it is the guest that is waited for
        return  # the VMM's word: a guest that hangs in its boot has a connection too
    now = life.heard_at = trio.current_time()
    match event:
        case GuestHello() if not life.greeted:
            life.greeted = True
            life.phases.mark("ready")
            _greet(life, lease, event, now)
        case GuestJobStarted() if not life.started:
            _note_started(life, lease)
        case _:
            pass
    life.heard.deadline = min(now + SILENCE_LIMIT_S, life.latest)


def _greet(life: Life, lease: Lease, hello: GuestHello, now: float) -> None:
    if not life.adopted:
        life.latest = now + longest_s(life.command)
        if not life.restored:  # else these are its template's
            life.phases.add("kernel", hello.kernel_ms)
            life.phases.add("init", hello.init_ms)
    elif hello.state is GuestState.IDLE:
        # The command is nowhere on this host (it may hold secrets), and nothing of it has run.
        raise HostFault("its agent died before the job was handed to the guest")
    else:
        _note_started(life, lease)


def _note_started(life: Life, lease: Lease) -> None:
    life.started = True
    lease.note_started()


async def _watch_disk(plan: VmPlan, life: Life) -> None:
    """A VMM halts its VM when the host's disk has no room for a write: the guest falls silent, and stays so."""
    while True:
        await trio.sleep(DISK_LOOK_S)
        silent = trio.current_time() - life.heard_at > DISK_LOOK_S
        with suppress(HostFault):  # a disk that does not say it now may say it at the next look
            if silent and await in_thread(partial(is_full, plan)):
                life.starved = True
                life.heard.cancel()


async def _watch_usage(plan: VmPlan, lease: Lease) -> None:
    while True:
        with suppress(HostFault):  # no job ends because its use is not known
            lease.note_usage(await in_thread(partial(read_usage, plan)))
        await trio.sleep(USAGE_S)


def longest_s(command: Command | None) -> float:
    """Pure: how long a guest may live after its hello."""
    if command is None or command.timeout_s is None:
        return math.inf
    return command.timeout_s + command.grace_s + OVERTIME_S


def latest_ns(longest: float) -> int | None:
    """The CLOCK_BOOTTIME at which `longest` seconds from now are over; None for ever."""
    if math.isinf(longest):
        return None
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(longest * 1e9)


def until(moment_ns: int | None) -> float:
    """Trio's time at that CLOCK_BOOTTIME."""
    if moment_ns is None:
        return math.inf
    return trio.current_time() + (moment_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9


async def _persist_exit(life: Life, told: GuestExit) -> None:
    """The record first, then the acknowledgement: a successor finishes the lease with this very exit.

    It counts from here on: if the VM is gone before its farewell was read, and if the disk does not take it.
    """
    life.exit = told
    await in_thread(partial(life.record.change, exit=told))


async def _read_console(machine: Machine, life: Life) -> None:
    """Keep the console's end where nothing better tells what went wrong."""
    if life.exit is None:
        with trio.move_on_after(1):
            life.console = await machine.console_tail(CONSOLE_TAIL_BYTES)
