"""One `nimbus run` under the fake VMM that kills or cancels itself at its k-th step. Run by the fault tests.

    python -m tests.faults.one_run STATE RUNTIME MODE K

MODE `kill`: SIGKILL of this process just before the k-th task step; `cancel`: the run is cancelled there;
`count`: prints how many steps a whole run takes. A step is what Trio runs between two checkpoints, so
every await of the lifecycle is a point, teardown included.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

from nimbus.cli.events import quiet_events
from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory
from nimbus.host_agent.lifecycle import run_machine
from tests.hosts import Collected, make_host


class Saboteur(trio.abc.Instrument):
    """Counts the steps of all tasks and strikes at the k-th."""

    def __init__(self, mode: str, at: int) -> None:
        self.steps = 0
        self.scope = trio.CancelScope()
        self._mode = mode
        self._at = at

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self._at:
            if self._mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self._mode == "cancel":
                self.scope.cancel()


async def run(territory: Territory, saboteur: Saboteur) -> None:
    made = make_host(territory, "fake")
    order = made.order("sh", "-c", "echo hello", sink=Collected())
    with open_local_lease() as lease, saboteur.scope:
        await run_machine(made.host, order, lease)


def main() -> None:
    state, runtime, mode, at = sys.argv[1:]
    quiet_events()
    saboteur = Saboteur(mode, int(at))
    trio.run(run, Territory(Path(state), Path(runtime)), saboteur, instruments=[saboteur])
    print(saboteur.steps)  # noqa: T201 - the caller reads it


if __name__ == "__main__":
    main()
