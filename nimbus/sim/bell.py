"""A bell that wakes every waiter once: something changed, look again. It carries no message."""

from __future__ import annotations

import trio


class Bell:
    """Look first, then wait: no ring is missed, because no other task runs between the look and the wait."""

    def __init__(self) -> None:
        self._next = trio.Event()

    def ring(self) -> None:
        self._next.set()
        self._next = trio.Event()

    async def wait(self) -> None:
        await self._next.wait()
