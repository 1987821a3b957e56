"""A process with the log shipping of a host agent and nothing else of one: some jobs' output, without guests.

`python -m tests.acceptance.logsoakagent`, started and killed by logsoak.py. Reads one JSON object (Assignment), then on
each line the share of the output that may be printed by now; the end of its input ends it. Says in one JSON line now
and then how far it is. Killed and started again with the same folder, it goes on where its spools end, as an agent
does that adopts its machines: each stream from the offset that is told, under the same numbers.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio

from nimbus.host_agent.logs import LogShipping, LogTarget, open_log_shipping
from nimbus.runtime.telemetry import configure_logging
from tests.acceptance.logsoaklines import STREAMS, Printed, StreamBytes

TELL_S = 0.25
ARRIVE_S = 3600.0  # no limit of its own: the soak has one
_FINISHING = "finishing"


@dataclass(frozen=True)
class Ordered:
    """One job: what it prints, and the machine token that lets its output in."""

    job_id: int
    lines: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class Assignment:
    """Everything that the process is told at its start."""

    url: str
    folder: str
    seed: int
    jobs: tuple[Ordered, ...]

    def render(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def parse_assignment(line: bytes) -> Assignment:
    value = json.loads(line)
    return Assignment(value["url"], value["folder"], value["seed"], tuple(Ordered(**job) for job in value["jobs"]))


@dataclass
class Progress:
    """How far the jobs of this process are."""

    share: float = 0.0
    lines: dict[int, int] = field(default_factory=dict)
    arrived: int = 0  # jobs
    failed: list[str] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    def allow(self, share: float) -> None:
        self.share = share
        self.changed.set()
        self.changed = trio.Event()

    def render(self) -> str:
        return json.dumps({"lines": sum(self.lines.values()), "arrived": self.arrived, "failed": self.failed})


async def main() -> None:
    """Serve until the end of the input."""
    lines = read_lines()
    assignment = parse_assignment(await anext(lines))
    progress = Progress()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell, progress)
        for ordered in assignment.jobs:
            nursery.start_soon(run_job, assignment, ordered, progress)
        async for line in lines:
            progress.allow(float(line))
        nursery.cancel_scope.cancel()


async def read_lines() -> AsyncIterator[bytes]:
    """The lines of the standard input."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        held = b""
        async for chunk in stream:
            *whole, held = (held + chunk).split(b"\n")
            for line in whole:
                yield line


async def tell(progress: Progress) -> None:
    while True:
        print(progress.render(), flush=True)  # noqa: T201 - what the soak reads
        await trio.sleep(TELL_S)


async def run_job(assignment: Assignment, ordered: Ordered, progress: Progress) -> None:
    """Print the job's output as far as it is allowed, then its end, and wait until all of it has arrived."""
    printed = Printed(assignment.seed, ordered.job_id, ordered.lines)
    folder = Path(assignment.folder) / f"job{ordered.job_id}"
    mark = Path(assignment.folder) / f"job{ordered.job_id}.{_FINISHING}"
    # a spool that is gone behind the mark has arrived: an agent's ledger would say so
    if not (mark.exists() and not folder.exists()):
        target = LogTarget(assignment.url, ordered.token)
        async with open_log_shipping(folder, target, flush_s=ARRIVE_S) as sink:
            await print_all(printed, sink, progress, random.Random(f"{assignment.seed} {ordered.job_id}"))
            mark.touch()
            if not await sink.finish():
                progress.failed.append(f"job {ordered.job_id}: its end did not arrive")
            if sink.dropped_lines:
                progress.failed.append(f"job {ordered.job_id}: {sink.dropped_lines} lines dropped")
    progress.lines[ordered.job_id] = ordered.lines
    progress.arrived += 1


async def print_all(printed: Printed, sink: LogShipping, progress: Progress, rng: random.Random) -> None:
    """What the guest link would bring: frames of both streams, each at its offset."""
    sources = [StreamBytes(printed, stream, offset) for stream, offset in zip(STREAMS, sink.offsets, strict=True)]
    while True:
        changed, share = progress.changed, progress.share
        frames = [(source, source.offset, source.frame(printed.count(source.stream, share), rng)) for source in sources]
        for source, offset, data in frames:
            if data:
                await sink.write(source.stream, offset, data)
        progress.lines[printed.job_id] = sum(source.number for source in sources)
        if any(data for _, _, data in frames):
            continue
        if share >= 1:
            return
        await changed.wait()


if __name__ == "__main__":
    configure_logging("INFO")
    sys.exit(trio.run(main))
