"""The threads in which this room does its synchronous host acts: one named lane, never the default.

Acts are not abandoned on cancellation: what they did must be known when they return. Called everywhere
in the room; teardown.py alone abandons a release that sits in the kernel beyond its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

WIDTH = 32  # netlink and file acts are short; a slow device must not hold back more than itself
LIMITER = trio.CapacityLimiter(WIDTH)
UNDO_LIMITER = trio.CapacityLimiter(WIDTH)  # an abandoned act keeps its place for good: never one of those above


async def in_thread(act: Callable[[], T], *, abandon: bool = False) -> T:
    """The act's result."""
    limiter = UNDO_LIMITER if abandon else LIMITER
    return await trio.to_thread.run_sync(act, limiter=limiter, abandon_on_cancel=abandon, thread_name="nimbus-host")
