"""Whose turn it is to read much at once: searches, counts, the plan of a download.

One org's costly reads run one after the other, and all orgs' together in few places, handed out in turn: however many
searches one org sends, another's waits for at most one of them. Pages take no turn. Called by the read routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from nimbus.model.errors import RateLimited, Unavailable

PLACES = 2  # of the table's four connections: the writer's and one for pages stay free
WAIT_S = 20.0  # for a turn; a client that waits longer than this has gone
_RETRY_S = 2.0
_BUSY = "too much is searched at once: retry, or narrow it"


@dataclass
class _Line:
    """What one org runs and waits for."""

    turn: trio.Lock = field(default_factory=trio.Lock)
    reads: int = 0
    parts: int = 0  # of downloads


class Turns:
    """The turns of one process."""

    def __init__(self, reads_per_org: int, places: int = PLACES, wait_s: float = WAIT_S) -> None:
        self._reads_per_org = reads_per_org
        self._places = trio.CapacityLimiter(places)
        self._wait_s = wait_s
        self._lines: dict[int, _Line] = {}

    @asynccontextmanager
    async def take(self, org_id: int) -> AsyncIterator[None]:
        """Hold a turn; RateLimited where the org has as many reads under way as it may have."""
        line = self._lines.setdefault(org_id, _Line())
        if line.reads >= self._reads_per_org:
            raise RateLimited(
                f"{line.reads} searches or counts of this org run or wait: let one end, or narrow them", _RETRY_S
            )
        line.reads += 1
        try:
            with trio.move_on_after(self._wait_s) as waiting:
                await line.turn.acquire()
            if waiting.cancelled_caught:
                raise Unavailable(_BUSY, _RETRY_S)
            try:
                with trio.move_on_after(self._wait_s) as waiting:
                    await self._places.acquire()
                if waiting.cancelled_caught:
                    raise Unavailable(_BUSY, _RETRY_S)
                try:
                    yield
                finally:
                    self._places.release()
            finally:
                line.turn.release()
        finally:
            line.reads -= 1
            self._forget(org_id, line)

    @asynccontextmanager
    async def queue(self, org_id: int) -> AsyncIterator[None]:
        """The same for a part of a download, which waits for as long as its client does."""
        line = self._lines.setdefault(org_id, _Line())
        line.parts += 1
        try:
            async with line.turn, self._places:
                yield
        finally:
            line.parts -= 1
            self._forget(org_id, line)

    def _forget(self, org_id: int, line: _Line) -> None:
        if not (line.reads or line.parts):
            del self._lines[org_id]
