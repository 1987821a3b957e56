"""How long to wait before trying again: exponential, with jitter, capped.

Pure arithmetic and one loop; never decides what is worth retrying (the caller names it by raising Unavailable).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import trio

from nimbus.model.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Waits of `base_s`, doubling up to `max_s`, each shortened at random by up to half."""

    base_s: float = 0.2
    max_s: float = 15.0

    def delays_s(self) -> Iterator[float]:
        delay = self.base_s
        while True:
            # not secret: spreads clients that failed together
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311
            delay = min(delay * 2, self.max_s)


async def retry_unavailable(function: Callable[[], Awaitable[T]], backoff: Backoff, attempts: int) -> T:
    """The function's first success; the last Unavailable after `attempts` tries."""
    delays = backoff.delays_s()
    for _ in range(attempts - 1):
        try:
            return await function()
        except Unavailable as error:
            await trio.sleep(max(next(delays), min(error.retry_after_s, backoff.max_s)))
    return await function()
