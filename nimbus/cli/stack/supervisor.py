"""Starts services in order, keeps them running, stops them in reverse order. Knows nothing of what they are.

A service that dies is started again with back-off; one that dies before it was ever ready, or again and again, ends
the stack with the last lines of its log. Called by `nimbus up` and `nimbus demo`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from nimbus.cli.stack.child import Child, log_tail, open_child
from nimbus.cli.stack.service import Service
from nimbus.model.errors import HostFault

READY_S = 90.0  # a cold start on two busy cores takes seconds; longer is a fault
PROBE_EVERY_S = 0.05  # a health page cannot signal, so it is asked
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 8.0
DEATHS_MAX = 5  # within DEATHS_WINDOW_S: a crash loop
DEATHS_WINDOW_S = 60.0


@dataclass(frozen=True)
class Told:
    """One thing that happened to a service, for whoever shows it."""

    what: str  # starting, ready, done, died, stopping, stopped
    service: str
    ms: float = 0.0
    detail: str = ""
    pid: int | None = None


Report = Callable[[Told], None]


@dataclass
class _Running:
    service: Service
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


@dataclass
class _Stack:
    state: Path
    report: Report
    stop: trio.Event
    faults: list[HostFault] = field(default_factory=list)

    def fail(self, fault: HostFault) -> None:
        self.faults.append(fault)
        self.stop.set()


async def run_stack(
    services: Sequence[Service],
    state: Path,
    report: Report,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Everything up, then wait for `stop` (set by us as well when a service cannot be kept), then everything down.

    Hands over True when all are ready, False when `stop` came first. Raises HostFault where a service failed.
    """
    stack = _Stack(state, report, stop)
    running: list[_Running] = []
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starter:
            starter.start_soon(_cancel_on, stop, starter.cancel_scope)
            await _start_all(services, stack, running, nursery)
            starter.cancel_scope.cancel()
        if not stack.faults:
            task_status.started(not stop.is_set())
        await stop.wait()
        for one in reversed(running):
            report(Told("stopping", one.service.name))
            began = trio.current_time()
            one.scope.cancel()
            await one.ended.wait()
            report(Told("stopped", one.service.name, (trio.current_time() - began) * 1000))
    if stack.faults:
        raise stack.faults[0]


async def _cancel_on(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


async def _start_all(
    services: Sequence[Service], stack: _Stack, running: list[_Running], nursery: trio.Nursery
) -> None:
    for service in services:
        stack.report(Told("starting", service.name))
        try:
            if service.once:
                await _run_once(service, stack)
                continue
            one = _Running(service)
            await nursery.start(_keep, one, stack)
        except HostFault as fault:
            stack.fail(fault)
            return
        running.append(one)


async def _run_once(service: Service, stack: _Stack) -> None:
    began = trio.current_time()
    async with open_child(service, stack.state) as child:
        status = await child.wait()
    if status != 0:
        raise HostFault(_obituary(service, stack.state, f"failed with status {status}"))
    stack.report(Told("done", service.name, (trio.current_time() - began) * 1000))


async def _keep(one: _Running, stack: _Stack, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Keep one service running until its scope is cancelled. HostFault before `started`, else `stack.fail`."""
    deaths: deque[float] = deque(maxlen=DEATHS_MAX)
    was_ready = False
    backoff_s = BACKOFF_FIRST_S
    try:
        with one.scope:
            while True:
                began = trio.current_time()
                async with open_child(one.service, stack.state) as child:
                    if await _wait_ready(child):
                        ms = (trio.current_time() - began) * 1000
                        stack.report(Told("ready", one.service.name, ms, pid=child.pid))
                        if not was_ready:
                            was_ready = True
                            task_status.started()
                    elif not was_ready:
                        raise HostFault(await _why_not_ready(child, stack.state))
                    how = _describe(await child.wait())
                deaths.append(trio.current_time())
                if len(deaths) == DEATHS_MAX and deaths[-1] - deaths[0] < DEATHS_WINDOW_S:
                    stack.fail(HostFault(_obituary(one.service, stack.state, f"died {DEATHS_MAX} times; {how}")))
                    return
                if trio.current_time() - began > DEATHS_WINDOW_S:
                    backoff_s = BACKOFF_FIRST_S
                stack.report(Told("died", one.service.name, detail=f"{how}; again in {backoff_s:g} s"))
                await trio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
    finally:
        one.ended.set()


async def _wait_ready(child: Child) -> bool:
    """True when it is ready; False when it died first, or was not ready in time."""
    probe = child.service.ready
    ready = probe is None
    async with trio.open_nursery() as nursery:

        async def watch_death() -> None:
            await child.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch_death)
        nursery.cancel_scope.deadline = trio.current_time() + READY_S
        while not ready and probe is not None:
            ready = await probe()
            if not ready:
                await trio.sleep(PROBE_EVERY_S)
        nursery.cancel_scope.cancel()
    return ready


async def _why_not_ready(child: Child, state: Path) -> str:
    with trio.move_on_after(0):
        status = await child.wait()
        return _obituary(child.service, state, f"ended before it was ready; {_describe(status)}")
    return _obituary(child.service, state, f"was not ready within {READY_S:g} s")


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _obituary(service: Service, state: Path, what: str) -> str:
    tail = log_tail(state, service.name)
    indented = "".join(f"\n    {line}" for line in tail.splitlines())
    return f"{service.name} {what}. The end of {state}/logs/{service.name}.log:{indented or ' (empty)'}"
