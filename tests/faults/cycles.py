"""An agent's process that serves one machine after the other, and says after each how big it is. Run by test_cycles.py.

    python -m tests.faults.cycles STATE RUNTIME COUNT

prints `fds threads rss_kib` for each machine; exits with 1 as soon as one does not end as its command did.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from nimbus.cli.events import quiet_events
from nimbus.host.inventory import Territory
from nimbus.model.vm import Ending
from tests.faults.leased import Plane, serve


def measure() -> tuple[int, int, int]:
    """What this process holds of the host: descriptors, threads, resident KiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0])


async def _main(territory: Territory, count: int) -> None:
    for _ in range(count):
        plane = Plane(ttl_s=60)
        await serve(territory, plane, "true")
        if [told.ending for told in plane.ends] != [Ending.DONE]:
            sys.exit(f"a machine ended otherwise: {plane.ends}")
        print(*measure(), flush=True)  # noqa: T201 - the test reads it


def main() -> None:
    state, runtime, count = sys.argv[1:]
    quiet_events()
    trio.run(_main, Territory(Path(state), Path(runtime)), int(count))


if __name__ == "__main__":
    main()
