"""The ids of tokens that were revoked before their time, in memory: asked at each request, so no query each.

Holds ids and nothing else. revocation.py fills it from the database and keeps it fresh; access.py asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


class DenyList:
    """What this process knows of revoked tokens."""

    def __init__(self, token_ids: Iterable[str] = ()) -> None:
        self.replace(token_ids)

    def holds(self, token_id: str) -> bool:
        return token_id in self._token_ids

    def replace(self, token_ids: Iterable[str]) -> None:
        """Take over what the database says now."""
        self._token_ids = frozenset(token_ids)
        self.ids = sorted(self._token_ids)
        self.tag = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:32]  # another list has another
