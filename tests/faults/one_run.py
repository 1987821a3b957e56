"""One `nimbus run` that kills or cancels itself at its k-th step. Run by the fault tests.

    python -m tests.faults.one_run STATE RUNTIME MODE K [WHAT]

MODE `kill`: SIGKILL of this process just before the k-th task step; `cancel`: the run is cancelled there;
`count`: prints how many steps a whole run takes. A step is what Trio runs between two checkpoints, so
every await of the lifecycle is a point, teardown included. WHAT is one of WHATS; clones find their template in STATE,
and of a claim the steps count from the moment at which a machine waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from nimbus.cli.events import quiet_events
from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.plan import HostLayout
from tests.fakes.install import Fakes
from tests.faults.clones import find_image, find_places, make_clone_host, open_pool
from tests.faults.ways import Way
from tests.hosts import Collected, TestHost, make_host

WHATS = ("run", "restore", *(way for way in Way if way.pool and way.has_template))  # cold on the fake VMM; clones


class Saboteur(trio.abc.Instrument):
    """Counts the steps of all tasks from `begin` on and strikes at the k-th."""

    def __init__(self, mode: str, at: int) -> None:
        self.steps = 0
        self.scope = trio.CancelScope()
        self._mode = mode
        self._at = at
        self._has_begun = False

    def begin(self) -> None:
        self._has_begun = True

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += self._has_begun
        if self._has_begun and self.steps == self._at:
            if self._mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self._mode == "cancel":
                self.scope.cancel()


async def run(territory: Territory, saboteur: Saboteur, what: str) -> None:
    async with open_host(territory, what) as made:
        order = made.order("sh", "-c", "echo hello", sink=Collected())
        saboteur.begin()
        with open_local_lease() as lease, saboteur.scope:
            await run_machine(made.host, order, lease)


@asynccontextmanager
async def open_host(territory: Territory, what: str) -> AsyncIterator[TestHost]:
    """The host of that kind of run; with a pool, once a machine waits in it."""
    if what == "run":
        yield make_host(territory, "fake")
        return
    layout = HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)
    host = make_clone_host(layout, Fakes(territory.state_root / "fakes"), places=find_places())
    image = find_image(layout)
    if what == "restore":
        yield TestHost(host, territory, image)
        return
    async with open_pool(host, Way(what).pool) as pooled:
        yield TestHost(pooled, territory, image)


def main() -> None:
    state, runtime, mode, at, *what = sys.argv[1:]
    quiet_events()
    saboteur = Saboteur(mode, int(at))
    trio.run(run, Territory(Path(state), Path(runtime)), saboteur, what[0] if what else "run", instruments=[saboteur])
    print(saboteur.steps)  # noqa: T201 - the caller reads it


if __name__ == "__main__":
    main()
