"""An agent obeys its signals, and is gone in time whatever hangs."""

from __future__ import annotations

import subprocess
import sys

HANGS = "from nimbus.host_agent.orders import limit_leaving; import time; limit_leaving(); time.sleep(1000)"


def test_an_agent_that_detaches_is_gone_whatever_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "left to the next agent" in done.stdout


LEAVES = """
import os, signal, trio
from functools import partial
from nimbus.host_agent.departure import Departure
from nimbus.host_agent.orders import ORDERS, obey_signals

async def leave():
    async with trio.open_nursery() as agent:
        await agent.start(partial(obey_signals, Departure(), trio.CancelScope(), trio.CancelScope(), lambda: None))
        agent.cancel_scope.cancel()
    for number in ORDERS:
        os.kill(os.getpid(), number)
    await trio.sleep(0)

trio.run(leave)
for number in ORDERS:
    os.kill(os.getpid(), number)
print("left in good order")
"""


def test_a_signal_that_comes_while_an_agent_leaves_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "left in good order\n"), done.stderr
