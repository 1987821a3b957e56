"""GitHub's primary limit: so many REST requests an hour and installation, then none until the hour is over.

`rest.py` counts against it and writes its headers; each account has one, and the App one of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from nimbus.model.errors import RateLimited

WINDOW_S = 3600.0


class RateWindow:
    """One window and what is used of it."""

    def __init__(self, limit: int, now_s: Callable[[], float]) -> None:
        self.limit = limit
        self._now_s = now_s
        self._used = 0
        self._reset_s = now_s() + WINDOW_S

    def count(self) -> None:
        now = self._now_s()
        if now >= self._reset_s:
            self._used, self._reset_s = 0, now + WINDOW_S
        if self._used >= self.limit:
            raise RateLimited("API rate limit exceeded for installation.", self._reset_s - now)
        self._used += 1

    def refund(self) -> None:
        """The last request found nothing new, and GitHub does not count those."""
        self._used = max(0, self._used - 1)

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(max(0, self.limit - self._used)),
            "x-ratelimit-used": str(self._used),
            "x-ratelimit-reset": str(int(self._reset_s)),
            "x-ratelimit-resource": "core",
        }
