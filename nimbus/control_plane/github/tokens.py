"""The credentials we show to GitHub: the App's JWT, and tokens that are fetched once however many callers wait.

Tokens are kept in memory alone, renewed five minutes early and never logged. `github/transport.py` asks for them
before each call; `github/client.py` keeps registration tokens on the same kind of shelf.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import jwt
import trio

from nimbus.model.forge import ForgeTrouble, Problem, ProblemKind
from nimbus.wire.github import app_jwt_claims
from nimbus.wire.githubrest import TokenReply

REFRESH_EARLY_S = 300.0
JWT_REFRESH_EARLY_S = 60.0

Key = TypeVar("Key")


@dataclass(frozen=True)
class AppCredentials:
    """The GitHub App that Nimbus acts as."""

    app_id: str
    private_key_pem: str = field(repr=False)


class AppJwt:
    """The App's own token, signed anew a minute before it ends."""

    def __init__(self, app: AppCredentials, now_s: Callable[[], float], owner_retry_s: float) -> None:
        self._app = app
        self._now_s = now_s
        self._owner_retry_s = owner_retry_s
        self._token = ""
        self._good_from_s = self._good_until_s = 0.0

    def read(self) -> str:
        """The token; ForgeTrouble where the key is none."""
        now_s = self._now_s()
        if not self._good_from_s <= now_s < self._good_until_s:  # before: the clock was set back
            claims = app_jwt_claims(self._app.app_id, now_s)
            self._token = self._sign(claims)
            self._good_from_s = now_s
            self._good_until_s = float(str(claims["exp"])) - JWT_REFRESH_EARLY_S
        return self._token

    def forget(self, token: str) -> None:
        """GitHub did not take this one."""
        if token == self._token:
            self._good_until_s = 0.0

    def _sign(self, claims: dict[str, object]) -> str:
        try:
            return jwt.encode(claims, self._app.private_key_pem, algorithm="RS256")
        except (ValueError, TypeError, jwt.PyJWTError):
            # the library's message could quote the key
            said = "NIMBUS_GITHUB_APP_PRIVATE_KEY is no PEM private key"
            raise ForgeTrouble(Problem(ProblemKind.APP_KEY, said, self._owner_retry_s)) from None


@dataclass
class _Place:
    """One token; the lock makes the others wait for the one that fetches."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    reply: TokenReply | None = None
    fetches: int = 0
    trouble: ForgeTrouble | None = None  # of the last fetch


class TokenShelf(Generic[Key]):
    """Tokens by key. `fetch` is called for one key by one task at a time."""

    def __init__(self, fetch: Callable[[Key], Awaitable[TokenReply]], now_s: Callable[[], float]) -> None:
        self._fetch = fetch
        self._now_s = now_s
        self._places: defaultdict[Key, _Place] = defaultdict(_Place)

    async def read(self, key: Key) -> TokenReply:
        """A token that is good for five minutes at least. Whoever waited for a fetch shares its failure."""
        place = self._places[key]
        fetches = place.fetches
        async with place.lock:
            if place.reply is not None and self._now_s() < place.reply.expires_at_s - REFRESH_EARLY_S:
                return place.reply
            if place.fetches != fetches and place.trouble is not None:
                raise ForgeTrouble(place.trouble.problem)
            place.fetches += 1
            place.reply = place.trouble = None
            try:
                place.reply = await self._fetch(key)
            except ForgeTrouble as trouble:
                place.trouble = trouble
                raise
            return place.reply

    def forget(self, key: Key, token: str) -> None:
        """GitHub did not take this token; one that was fetched since stays."""
        place = self._places[key]
        if place.reply is not None and place.reply.token == token:
            place.reply = None
