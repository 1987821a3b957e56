"""Agents' tokens that were verified a moment ago: the same one comes several times a minute from each host.

Remembers by digest, never the token itself, and only what was verified; forgets all of it when the accepted keys are
others than before, so that a revoked key ends at once. Called by access.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from nimbus.wire.tokens import Claims, VerifyKey

MOST = 20_000  # tokens at once; an agent has one, and the one before for a while


@dataclass(frozen=True)
class _Known:
    subject: str
    expires_at_s: int


class VerifiedTokens:
    """What verifying each token anew would say again."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kids: frozenset[str | None] = frozenset()
        self._known: dict[bytes, _Known] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._known)

    def find(self, token: str, accepted: Iterable[VerifyKey], now_s: float) -> str | None:
        """Whose token it is; None where it must be verified: it is new here, has expired, or the keys have changed."""
        kids = frozenset(key.kid for key in accepted)  # a key's id follows from the key
        if kids != self._kids:
            self._kids = kids
            self._known.clear()
        known = self._known.get(_digest(token))
        return known.subject if known is not None and now_s < known.expires_at_s else None

    def keep(self, token: str, claims: Claims) -> None:
        """This token was verified just now, under the keys of the last `find`."""
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[_digest(token)] = _Known(claims.subject, claims.expires_at_s)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
