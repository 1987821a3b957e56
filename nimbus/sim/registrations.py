"""Registration and remove tokens: who holds one may add runners to a scope, or take them away, for an hour.

Reusable, unlike a just-in-time config, which is why Nimbus uses them only where it is told to. `runner_routes.py`
issues them, `runner_api.py` takes them from the runner that registers itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nimbus.model.errors import Unauthorized

LIFE_S = 3600.0


@dataclass(frozen=True)
class Registration:
    """One token and what it is good for."""

    token: str = field(repr=False)
    scope: str  # "owner", or "owner/name"
    expires_at_s: float
    removes: bool = False  # the token of `remove-token`: it takes runners away and adds none


class Registrations:
    """All tokens that have not expired."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._known: dict[str, Registration] = {}

    def issue(self, scope: str, *, removes: bool) -> Registration:
        made = Registration(f"A{secrets.token_hex(14).upper()}", scope, self._now_s() + LIFE_S, removes)
        self.take_up([*self.valid(), made])
        return made

    def check(self, token: str, *, removes: bool) -> Registration:
        known = self._known.get(token)
        if known is None or known.expires_at_s <= self._now_s() or known.removes is not removes:
            raise Unauthorized("this registration token is unknown or has expired")
        return known

    def valid(self) -> list[Registration]:
        return [each for each in self._known.values() if each.expires_at_s > self._now_s()]

    def take_up(self, earlier: Iterable[Registration]) -> None:
        """Know these and no others."""
        self._known = {each.token: each for each in earlier}
