"""The live part of `make bench-logs`: from a guest's write to a reader's first byte, and what idle tails cost.

Agents are processes of their own (logagent.py), with fifty machines each; every machine's job is followed by one reader
as server-sent events, all of them in this process. A line says when it was printed, by the clock that all processes
share. Idle tails follow jobs that print nothing. Called by logs.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from bench.logagent import MARK
from bench.loghost import CHECKOUT, LogHost, Machine
from bench.logingest import process_cpu_s
from bench.logplane import ORGS_STEP

LIVE_ORG, IDLE_ORG = 400, 500  # the first of theirs; each follows with as many as an org may have
ORG_TAILS = 100
PATIENCE_S = 120.0
_PRINTED = re.compile(rf"{MARK} ([0-9]+) ([0-9]+) ([0-9]+) ".encode())
_KEPT_BYTES = 4096  # of what came, in case a line is cut in two


def plan_machines(first_org: int, count: int) -> list[Machine]:
    """So many machines, in as many orgs as are needed to follow them all."""
    orgs = [first_org + number // ORG_TAILS for number in range(count)]
    return [Machine(org_id, org_id * ORGS_STEP + number) for number, org_id in enumerate(orgs)]


class Tail:
    """One reader of one job, and when each of its lines came."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._text = b""
        self.ms: dict[int, float] = {}

    async def ask(self, host: LogHost, machine: Machine) -> None:
        """Return once the stream has begun."""
        head = f"GET /logs/jobs/{machine.machine_id}/follow HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        await self._stream.send_all(f"{head}Authorization: Bearer {host.read_token(machine.org_id)}\r\n\r\n".encode())
        while b"\r\n\r\n" not in self._text:
            await self._receive()
        status = self._text.split(b" ", 2)[1]
        if status != b"200":
            sys.exit(f"a tail was answered {self._text[:300]!r}")

    async def follow(self, lines: int) -> None:
        """Note each line as it comes, until all have."""
        while len(self.ms) < lines:
            await self._receive()
            now_ns = time.monotonic_ns()
            used = 0
            for found in _PRINTED.finditer(self._text):
                number, printed_ns, used = int(found[2]), int(found[3]), found.end()
                self.ms.setdefault(number, (now_ns - printed_ns) / 1e6)
            self._text = self._text[used:][-_KEPT_BYTES:]

    async def drain(self) -> None:
        """Read whatever comes and forget it."""
        while await self._stream.receive_some(65536):
            pass

    async def _receive(self) -> None:
        piece = await self._stream.receive_some(65536)
        if not piece:
            sys.exit(f"a tail ended: {self._text[-300:]!r}")
        self._text += piece


@asynccontextmanager
async def open_tails(host: LogHost, machines: Sequence[Machine]) -> AsyncIterator[list[Tail]]:
    """A reader for each, all of them told that they follow."""
    async with AsyncExitStack() as opened:
        tails = []
        for machine in machines:
            tail = Tail(await opened.enter_async_context(await trio.open_tcp_stream("127.0.0.1", host.port)))
            await tail.ask(host, machine)
            tails.append(tail)
        yield tails


async def measure_live(host: LogHost, folder: Path, jobs: int, agents: int, lines: int) -> dict[str, list[float]]:
    """Milliseconds from a guest's write to the reader's first byte of it: each job's first line, and all."""
    machines = plan_machines(LIVE_ORG, jobs)
    async with open_tails(host, machines) as tails, AsyncExitStack() as running:
        started = []
        for number in range(agents):
            spools = folder / f"agent-{number}"
            spools.mkdir()
            started.append(
                await running.enter_async_context(_open_agent(host, spools, machines[number::agents], lines))
            )
        for agent in started:
            assert agent.stdin is not None  # noqa: S101 - asked for
            await agent.stdin.send_all(b"go\n")
        processes = {"service": [host.pid], "engine": [host.engine_pid], "agents": [agent.pid for agent in started]}
        before, began = _read_cpu(processes), time.monotonic()
        with trio.move_on_after(lines + PATIENCE_S) as patience:
            async with trio.open_nursery() as nursery:
                for tail in tails:
                    nursery.start_soon(tail.follow, lines)
        after, took_s = _read_cpu(processes), time.monotonic() - began
        if patience.cancelled_caught:
            sys.exit(f"lines never came: {[tail.ms.keys() for tail in tails if len(tail.ms) < lines][:3]}")
        for agent in started:
            if await agent.wait() != 0:
                sys.exit("an agent of the bench failed")
    return {
        "first.ms": [tail.ms[0] for tail in tails],
        "live.ms": [ms for tail in tails for ms in tail.ms.values()],
        **{f"live.{name}_cores": [(after[name] - before[name]) / took_s] for name in after},
    }


def _read_cpu(processes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Seconds that these have used, and this process, which reads."""
    used = {name: sum(map(process_cpu_s, pids)) for name, pids in processes.items()}
    return used | {"readers": time.process_time()}


@asynccontextmanager
async def _open_agent(
    host: LogHost, folder: Path, machines: Sequence[Machine], lines: int
) -> AsyncIterator[trio.Process]:
    argv = [sys.executable, "-m", "bench.logagent", f"http://127.0.0.1:{host.port}", str(folder), str(lines)]
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - asked for above
    try:
        told = [f"{machine.machine_id} {host.machine_token(machine)}\n" for machine in machines]
        await process.stdin.send_all("".join([*told, "\n"]).encode())
        told_back = await process.stdout.receive_some(64)
        if not told_back.startswith(b"ready"):
            sys.exit(f"an agent of the bench did not start: {bytes(told_back)!r}")
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def measure_tails(host: LogHost, tails: int, settle_s: float, idle_s: float) -> dict[str, list[float]]:
    """The service's resident memory: before, with so many idle tails once they have settled, and a while later."""
    before = read_rss_kib(host.pid)
    async with open_tails(host, plan_machines(IDLE_ORG, tails)) as opened, trio.open_nursery() as nursery:
        for tail in opened:
            nursery.start_soon(tail.drain)
        await trio.sleep(settle_s)
        settled, cpu_s = read_rss_kib(host.pid), time.monotonic()
        await trio.sleep(idle_s)
        grown, over_s = read_rss_kib(host.pid), time.monotonic() - cpu_s
        nursery.cancel_scope.cancel()
    return {
        "tails.rss_kib": [settled, grown],
        "tails.kib_each": [(settled - before) / tails],
        "tails.growth": [grown / settled],
        "tails.over_s": [over_s],
    }


def read_rss_kib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    sys.exit("the service is gone")
