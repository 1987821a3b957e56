"""The threads in which this room does its synchronous host acts: named lanes, never the default, each under a limit.

What acts is not abandoned on cancellation, because what it did must be known when it returns; what only looks is. A
thread that sits in the kernel beyond its limit is left behind either way, so that no sick disk holds a machine or an
agent for ever; it keeps its place in its lane for good. Called everywhere in the room.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import trio

from nimbus.model.errors import HostFault

T = TypeVar("T")

WIDTH = 32  # netlink and file acts are short; a slow device must not hold back more than itself
_file_s = ContextVar("file_s", default=15.0)  # for one small file or a few: a disk that needs longer is sick
LIMITER = trio.CapacityLimiter(WIDTH)
# An abandoned act keeps its place for good: never one of those above, and what hangs in the making holds no undo back.
MAKE_LIMITER = trio.CapacityLimiter(WIDTH)
UNDO_LIMITER = trio.CapacityLimiter(WIDTH)
PAGE_LIMITER = trio.CapacityLimiter(WIDTH)
LOOK_LIMITER = trio.CapacityLimiter(WIDTH)


class Hung(HostFault):
    """No answer within the limit. The act may still happen."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"no answer in {limit_s:g} s: it hangs in the kernel")


def file_limit_s() -> float:
    """How long one small file may take on this host."""
    return _file_s.get()


def limit_files(limit_s: float) -> None:
    """For all tasks that begin after this: what the operator of a slow host allows."""
    _file_s.set(limit_s)


async def in_thread(act: Callable[[], T], limiter: trio.CapacityLimiter = LIMITER) -> T:
    """The act's result, waited for through any cancellation; Hung where it is not there within `file_limit_s`."""
    await trio.lowlevel.checkpoint_if_cancelled()
    limit_s = file_limit_s()
    with trio.move_on_after(limit_s, shield=True):
        return await in_thread_or_left(act, limiter)
    raise Hung(limit_s)


async def in_thread_or_left(act: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """The act's result; on cancellation its thread is left behind, and the act must guard itself against the next."""
    return await trio.to_thread.run_sync(act, limiter=limiter, abandon_on_cancel=True, thread_name="nimbus-host")


async def look(read: Callable[[], T], limit_s: float) -> T:
    """What a pure read finds; nobody waits for it once cancelled. Hung where it takes longer than `limit_s`."""
    with trio.move_on_after(limit_s):
        return await in_thread_or_left(read, LOOK_LIMITER)
    raise Hung(limit_s)
