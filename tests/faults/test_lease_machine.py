"""Stories of agents that are killed, frozen, cut off and restarted keep the laws of the lease: nothing runs twice.

The fixed stories of lease_machine.py, told in a process of their own; NIMBUS_TEST_ALL_POINTS=1 tells more and longer.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.hosts import needs_root

STORIES, WORDS = (12, 20) if os.environ.get("NIMBUS_TEST_ALL_POINTS") else (3, 10)
LIMIT_S = 1200.0


@needs_root
@pytest.mark.root
@pytest.mark.slow
def test_no_story_of_agents_hosts_and_networks_breaks_a_law_of_the_lease() -> None:
    argv = [sys.executable, "-m", "tests.faults.lease_machine", "--stories", str(STORIES), "--words", str(WORDS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 crimes" in done.stdout
