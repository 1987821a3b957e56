"""Requests that are being answered, counted: a server that was told to stop ends when all of them are.

Hypercorn ends when all of its connections have. One of 0.18 may never: what its client sends behind a request is
left unread until the answer is out, and where the server stops meanwhile, the connection's reader waits for a next
turn that no longer comes (protocol/h11.py, `can_read`), though the connection itself is closed. So a stop took as long
as the longest request may. Called by serving.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

CLOSING_S = 1.0  # in which Hypercorn closes what is idle, and a request that was on its way still comes


class InFlight:
    """An application, and how many requests it is answering."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._count = 0
        self._landed = trio.Event()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._count -= 1
            if not self._count:
                self._landed.set()

    async def wait_over(self) -> None:
        """Return once nothing is being answered, and nothing has come for CLOSING_S."""
        while True:
            while self._count:
                self._landed = trio.Event()
                await self._landed.wait()
            self._landed = trio.Event()
            with trio.move_on_after(CLOSING_S):
                await self._landed.wait()
                continue
            if not self._count:
                return
