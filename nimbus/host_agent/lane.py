"""The threads in which this room does its synchronous host acts: one named lane, never the default.

Acts are not abandoned on cancellation: what they did must be known when they return. Called everywhere
in the room; claims.py alone abandons an act that sits in the kernel beyond its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

WIDTH = 32  # netlink and file acts are short; a slow device must not hold back more than itself
LIMITER = trio.CapacityLimiter(WIDTH)
# An abandoned act keeps its place for good: never one of those above, and what hangs in the making holds no undo back.
MAKE_LIMITER = trio.CapacityLimiter(WIDTH)
UNDO_LIMITER = trio.CapacityLimiter(WIDTH)


async def in_thread(act: Callable[[], T]) -> T:
    """The act's result."""
    return await trio.to_thread.run_sync(act, limiter=LIMITER, thread_name="nimbus-host")


async def in_thread_or_left(act: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """The act's result; on cancellation its thread is left behind, and the act must guard itself against the next."""
    return await trio.to_thread.run_sync(act, limiter=limiter, abandon_on_cancel=True, thread_name="nimbus-host")
