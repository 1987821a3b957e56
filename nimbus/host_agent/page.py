"""A block of a synchronous context manager, entered and left in threads, each within a limit: a record, a spool.

Entering may be given up: cancelled, or beyond its limit. What it takes after that is given back at once, so that
nothing stays locked by a thread for which nobody waits. Called by lifecycle.py, reaper.py, adopt.py and logspool.py.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

import trio

from nimbus.host_agent.lane import PAGE_LIMITER, Hung, in_thread, in_thread_or_left
from nimbus.model.errors import HostFault

T = TypeVar("T")

SETTLE_S = 2.0  # for one that is entered while its opener is cancelled: an agent must stop in 5 s


class Page(Generic[T]):
    """One such block. `unmake` is what its making needs beyond leaving it, where nobody ever had it."""

    def __init__(self, block: AbstractContextManager[T], unmake: Callable[[], None] = lambda: None) -> None:
        self._block = block
        self._unmake = unmake
        self._deciding = threading.Lock()
        self._has_begun = False
        self._is_entered = False
        self._is_unwanted = False
        self._ended = threading.Event()  # of the thread that enters it

    async def open(self, limit_s: float) -> T:
        """Enter it. Raises Hung beyond the limit, and whatever entering raises."""
        is_given = is_late = False
        try:
            with trio.move_on_after(limit_s):
                value = await in_thread_or_left(self._enter, PAGE_LIMITER)
                is_given = True
                return value
            is_late = True
            raise Hung(limit_s)
        finally:
            if not is_given and self._give_up():  # entered at the very moment at which nobody waited any more
                with trio.CancelScope(shield=True):  # in_thread has its own limit
                    await in_thread(self._undo)
            elif not is_given and not is_late and self._has_begun:  # a process that ends now would leave half of it
                with trio.move_on_after(SETTLE_S, shield=True):
                    await in_thread_or_left(partial(self._ended.wait, SETTLE_S), PAGE_LIMITER)

    async def close(self) -> None:
        """Leave it, cancelled or not."""
        with trio.CancelScope(shield=True):  # closes one file descriptor; in_thread has its own limit
            await in_thread(self._leave)

    def _enter(self) -> T:
        with self._deciding:
            self._has_begun = not self._is_unwanted
        if not self._has_begun:
            raise HostFault("nobody waits for it any more")
        try:
            value = self._block.__enter__()
            with self._deciding:
                self._is_entered = True
                if not self._is_unwanted:
                    return value
            self._undo()
            return value  # to nobody
        finally:
            self._ended.set()

    def _give_up(self) -> bool:
        """True where it is entered already, and so the caller's to undo; else its thread undoes what it enters."""
        with self._deciding:
            self._is_unwanted = True
            return self._is_entered

    def _undo(self) -> None:
        try:
            self._unmake()
        finally:
            self._leave()

    def _leave(self) -> None:
        self._block.__exit__(None, None, None)


@asynccontextmanager
async def open_page(page: Page[T], limit_s: float) -> AsyncIterator[T]:
    """The page, open for a block."""
    value = await page.open(limit_s)
    try:
        yield value
    finally:
        await page.close()  # noqa: ASYNC102 - its shield and its limit are inside
