"""The table of numbered faults: complete, and every test that it names is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.faults.numbers import NUMBERS

ROOT = Path(__file__).parents[2]
WANTED = {*range(1, 11), 15, 16, 19, 24, 26, 27, 35, 36, 37, 39, *range(41, 51), *range(52, 56), *range(57, 61)}


def test_every_fault_of_this_release_has_a_test() -> None:
    assert set(NUMBERS) == WANTED
    assert all(one.tests and one.outcome for one in NUMBERS.values())


def test_every_test_that_is_named_can_be_collected() -> None:
    tests = sorted({test for one in NUMBERS.values() for test in one.tests})
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
