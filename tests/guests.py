"""How many guests this test run really booted: the summary's last line says it.

Processes of the tests add to one file, because `nimbus run` boots its guest in a process of its own.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

VARIABLE = "NIMBUS_TEST_BOOTS"  # path of the file, set for the session in conftest.py


def count_boots(backend: str, boots: int) -> None:
    """Add `boots` guests that ran under `backend`."""
    path = os.environ.get(VARIABLE)
    if path is not None:
        with Path(path).open("a") as file:
            file.write(f"{backend} {boots}\n")


def read_boots() -> Counter[str]:
    """Guests by backend so far."""
    found: Counter[str] = Counter()
    path = os.environ.get(VARIABLE)
    if path is not None and Path(path).exists():
        for line in Path(path).read_text().splitlines():
            backend, boots = line.split()
            found[backend] += int(boots)
    return found
