"""Named thread limits: one per dependency, so that a slow one cannot starve the others.

The default limiter of Trio (40 for everything) is never used. Called by every room that calls blocking code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Args = TypeVarTuple("Args")


class ThreadLane:
    """Up to `width` threads for one kind of blocking call."""

    def __init__(self, name: str, width: int) -> None:
        self.name = name
        self._limiter = trio.CapacityLimiter(width)

    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """The function's result. Cancellation waits for the thread: abandoned work would go on unseen."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter, thread_name=self.name)
