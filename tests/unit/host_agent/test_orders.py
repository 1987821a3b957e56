"""An agent obeys its signals, and is gone in time whatever hangs."""

from __future__ import annotations

import subprocess
import sys

HANGS = "from nimbus.host_agent.orders import limit_leaving; import time; limit_leaving(); time.sleep(1000)"


def test_an_agent_that_detaches_is_gone_whatever_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "left to the next agent" in done.stdout
