"""Numbered lines of ten jobs while the pipeline, its engine, the agents and the network between them are killed.

The short form of `make soak-logs`, which has twenty times as many lines and ten times as many kills.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.acceptance.logsoak import run_soak
from tests.acceptance.logsoakfound import SoakPlan, describe, judge

pytestmark = pytest.mark.slow

PLAN = SoakPlan(lines=100_000, jobs=10, agents=2, kills=2, seconds=10, seed=7, followers=3)


async def test_each_line_is_stored_and_told_once_and_in_order_whatever_is_killed(tmp_path: Path) -> None:
    with trio.fail_after(900):
        found = await run_soak(PLAN, tmp_path)
    assert judge(found) == [], describe(found)
