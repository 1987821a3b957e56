"""How long the pool leaves alone what it could not make: longer each time, and said once. Pure.

Called by reserve.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

FIRST_S = 5.0
MOST_S = 600.0  # a template that cannot be built costs minutes of a core at each try


@dataclass(frozen=True)
class _Trouble:
    failures: int
    until: float
    why: str


class Patience:
    """What failed, how often in a row, and until when it is not tried again."""

    def __init__(self) -> None:
        self._troubles: dict[Hashable, _Trouble] = {}

    def note_failure(self, what: Hashable, why: str, now: float, *, for_good: bool = False) -> bool:
        """One more. True where nobody was told of it yet: the first in a row, or one for another reason."""
        before = self._troubles.get(what, _Trouble(0, now, ""))
        wait_s = math.inf if for_good else min(FIRST_S * 2.0**before.failures, MOST_S)
        self._troubles[what] = _Trouble(min(before.failures + 1, 32), now + wait_s, why)
        return before.why != why

    def forget(self, what: Hashable) -> None:
        """It went well."""
        self._troubles.pop(what, None)

    def wait_s(self, what: Hashable, now: float) -> float:
        """Seconds until it may be tried; 0 where it may be now."""
        trouble = self._troubles.get(what)
        return 0.0 if trouble is None else max(0.0, trouble.until - now)
