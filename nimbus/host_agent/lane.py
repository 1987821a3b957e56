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


async def in_thread(act: Callable[[], T], *, abandon: bool = False) -> T:
    """The act's result."""
    return await trio.to_thread.run_sync(act, limiter=LIMITER, abandon_on_cancel=abandon, thread_name="nimbus-host")
