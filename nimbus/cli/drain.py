"""Watches an agent empty its host: asks it by SIGUSR1, tells what is left, and ends it by SIGINT when time is up.

Decides nothing about machines: the agent does. The ledger shows the progress, the agent's pidfd its end.
Called by `nimbus agent drain`.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import trio

from nimbus.host import native, process
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.sight.standing import Standing, look
from nimbus.model.record import ProcessId

DRAINED = 0
NOT_DRAINED = 1
NO_AGENT = 69  # EX_UNAVAILABLE
STILL_THERE = 75  # EX_TEMPFAIL
LOOK_EVERY_S = 0.5  # a folder of files cannot signal; the agent's end can, and does
TEAR_DOWN_LIMIT_S = 120.0  # an agent's own limits add up to less, even where releases hang


@dataclass(frozen=True)
class Progress:
    """What one line tells."""

    event: str  # starting, draining, tearing_down, ended, still_there
    agent: int
    left: tuple[str, ...] = ()  # VMs of machines that are not over
    untold: tuple[str, ...] = ()  # VMs whose end the control plane has not heard


@dataclass(frozen=True)
class Drain:
    """One agent that is being watched. The descriptor is the caller's to close."""

    ledger: Ledger
    agent: ProcessId
    pidfd: int
    say: Callable[[Progress], None]

    async def run(self, within_s: float) -> int:
        """The exit status of the command, once the agent has left."""
        with trio.move_on_after(within_s) as asked:
            await self._wait_listening()
            await self._order(signal.SIGUSR1, "draining")
        if not asked.cancelled_caught:
            return await self._judge(forced=False)
        with trio.move_on_after(TEAR_DOWN_LIMIT_S) as told:
            await self._order(signal.SIGINT, "tearing_down")
        if not told.cancelled_caught:
            return await self._judge(forced=True)
        self.say(await self._look("still_there"))
        return STILL_THERE

    async def _wait_listening(self) -> None:
        """An agent that has just started does not hear SIGUSR1 yet, and would die of it."""
        told = False
        while not await in_thread(partial(_hears, self.agent.pid, signal.SIGUSR1)):
            if not told:
                told = True
                self.say(await self._look("starting"))
            if await self._has_left(LOOK_EVERY_S):
                return

    async def _order(self, signum: signal.Signals, event: str) -> None:
        """Send the signal; one line for what was left before it and one for each change, until the agent has left."""
        before = await self._look(event)
        self._send(signum)
        self.say(before)
        while not await self._has_left(LOOK_EVERY_S):
            now = await self._look(event)
            if now != before:
                self.say(now)
                before = now

    async def _judge(self, *, forced: bool) -> int:
        """An agent that left although machines are not over was killed or detached meanwhile: that is no drain."""
        end = await self._look("ended")
        self.say(end)
        return NOT_DRAINED if forced or end.left else DRAINED

    async def _look(self, event: str) -> Progress:
        leased = [s for s in await in_thread(partial(look, self.ledger)) if s.record is None or s.record.lease]
        untold = tuple(str(s.vm) for s in leased if s.standing is Standing.ENDED_UNTOLD)
        left = tuple(str(s.vm) for s in leased if s.standing is not Standing.ENDED_UNTOLD)
        return Progress(event, self.agent.pid, left, untold)

    async def _has_left(self, within_s: float) -> bool:
        with trio.move_on_after(within_s):
            await trio.lowlevel.wait_readable(self.pidfd)
            return True
        return False

    def _send(self, signum: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has just left; the watch sees that
            native.pidfd_send_signal(self.pidfd, signum)


async def drain_agent(ledger: Ledger, agent: ProcessId, within_s: float | None, say: Callable[[Progress], None]) -> int:
    """Drain this agent; the exit status of the command. None for `within_s`: as long as the jobs take."""
    try:
        pidfd = process.open_pidfd(agent)
    except ProcessLookupError:
        return NO_AGENT
    try:
        return await Drain(ledger, agent, pidfd, say).run(math.inf if within_s is None else within_s)
    finally:
        os.close(pidfd)


def _hears(pid: int, signum: signal.Signals) -> bool:
    """Whether the process has a handler for this signal; one that has gone needs none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signum - 1) & 1)


def say_json(progress: Progress) -> None:
    """For programs: one object a line."""
    click.echo(json.dumps(asdict(progress)))


def say_lines(progress: Progress) -> None:
    """For people."""
    click.echo(render(progress))


def render(progress: Progress) -> str:
    """Pure: the line for a person."""
    who, left = f"agent {progress.agent}", _count(progress.left)
    match progress.event:
        case "starting":
            return f"{who} is still starting; waiting until it listens"
        case "draining":
            return f"draining {who}: no new job; {left} left" + _named(progress.left)
        case "tearing_down":
            return f"time is up: {who} tears down what is left; {left}" + _named(progress.left)
        case "still_there":
            return f"{who} is still there {TEAR_DOWN_LIMIT_S:g} s after SIGINT: read its log, then `nimbus doctor`"
    told = f"{who} has left; {left} left behind" + _named(progress.left)
    if progress.left:
        told += "\n  it was stopped or killed meanwhile; start it again to adopt them, or `nimbus vms purge --all`"
    if progress.untold:
        told += f"\n  not told to the control plane yet: {', '.join(progress.untold)}; the next agent tells it"
    return told


def _count(left: tuple[str, ...]) -> str:
    return "no machine" if not left else f"{len(left)} machine{'s' if len(left) > 1 else ''}"


def _named(left: tuple[str, ...]) -> str:
    return f" ({', '.join(left)})" if left else ""
