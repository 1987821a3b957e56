"""Run as a program: kill a process with SIGKILL at each step of its acquire, release by name, look for remains.

Prints one JSON object: how many deaths there were and what stayed after any of them. A process of its own,
because it forks, and must have no threads for that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

from nimbus.host_agent.network import acquire_network, release_network
from nimbus.model.vm import NetPlan
from tests.host.stand_in import random_plan, remains

_WATCHED = ("nimbus/host/", "nimbus/host_agent/network.py")


def die_at(step: int, plan: NetPlan) -> bool:
    """Whether a child that was to be killed at its `step`-th call was killed; False when it was done before."""
    child = os.fork()
    if child == 0:
        _count_down(step)
        acquire_network(plan)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _count_down(steps: int) -> None:
    left = steps

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in {"call", "return"} and any(part in frame.f_code.co_filename for part in _WATCHED):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(note)


def main() -> None:
    deaths, left, step = 0, [], 1
    while True:
        plan = random_plan()
        killed = die_at(step, plan)
        release_network(plan.name)
        release_network(plan.name)
        left += remains(plan)
        if not killed:
            break
        deaths += 1
        step += 4
    print(json.dumps({"deaths": deaths, "left": left}))  # noqa: T201 - this is the program's answer


if __name__ == "__main__":
    main()
