"""kill -9 at any step of an acquire, and the same release by name leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def test_an_acquire_killed_at_any_step_is_released_by_name_alone() -> None:
    repository = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.host.killed_acquire"], cwd=repository, capture_output=True, check=True
    )
    told = json.loads(run.stdout)
    assert told["left"] == []
    assert told["deaths"] > 10
