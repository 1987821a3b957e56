"""Where a machine's milliseconds went: one named span after another, for the waterfall.

Spans are measured on the monotonic clock of this process; what the guest tells of its own boot is added
by name. Holds no business; used by lifecycle.py and shown by the CLI and the control plane.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Spans in the order in which they ended. A name used twice (a retried boot) adds up."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ms: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the block, whether it ends well or not."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(name, (time.monotonic() - started) * 1000)

    def mark(self, name: str) -> None:
        """The time from this object's making until now; the first mark of a name stays."""
        self._ms.setdefault(name, (time.monotonic() - self._began) * 1000)

    def add(self, name: str, ms: float) -> None:
        """Add what somebody else measured."""
        self._ms[name] = self._ms.get(name, 0.0) + ms

    def render(self) -> dict[str, float]:
        """Milliseconds by phase, and `total` since this object was made."""
        total = (time.monotonic() - self._began) * 1000
        return {name: round(ms, 1) for name, ms in {**self._ms, "total": total}.items()}
