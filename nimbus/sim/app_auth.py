"""Who may call the fake GitHub's REST API: App JWTs (RS256, verified for real) and installation tokens.

It never mints an App JWT: the private key is the caller's alone. It knows no account: whether an installation is
there, and not suspended, its callers look up (`rest.py`, `app_routes.py`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jwt

from nimbus.model.errors import Refused, Unauthorized

TOKEN_LIFE_S = 3600.0
MAX_JWT_LIFE_S = 600
CLOCK_SKEW_S = 60
MAX_REPOSITORIES = 500
PERMISSIONS: Mapping[str, str] = {
    "actions": "write",
    "administration": "write",
    "metadata": "read",
    "organization_self_hosted_runners": "write",
}
_LEVELS = {"read": 0, "write": 1, "admin": 2}


@dataclass(frozen=True)
class InstallationToken:
    """What an installation token reaches and until when."""

    token: str = field(repr=False)
    expires_at_s: float
    installation_id: int
    permissions: Mapping[str, str]
    repositories: frozenset[str] | None  # names in lower case; none: all

    def may(self, permission: str, *, write: bool) -> bool:
        return _LEVELS.get(self.permissions.get(permission, ""), -1) >= _LEVELS["write" if write else "read"]

    def reaches(self, repo: str) -> bool:
        return self.repositories is None or repo.lower() in self.repositories


class AppAuth:
    """One GitHub App and the tokens of its installations."""

    def __init__(self, app_id: str, public_key_pem: str, now_s: Callable[[], float]) -> None:
        self._app_id = app_id
        self._public_key_pem = public_key_pem
        self._now_s = now_s
        self.tokens: dict[str, InstallationToken] = {}

    def check_app(self, token: str) -> None:
        """Unauthorized unless the token is a JWT of the App that GitHub would take."""
        try:
            claims = jwt.decode(
                token,
                self._public_key_pem,
                algorithms=["RS256"],  # pinned: the public key must never serve as an HMAC secret
                options={
                    "require": ["exp", "iat", "iss"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_iss": False,
                },
            )
        except jwt.PyJWTError:
            raise Unauthorized("A JSON web token could not be decoded") from None
        issued, expires, now = claims["iat"], claims["exp"], self._now_s()
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in (issued, expires)):
            raise Unauthorized("'Issued at' and 'Expiration time' claims must be numeric values")
        if str(claims["iss"]) != self._app_id:
            raise Unauthorized("Integration not found")
        if expires <= now:
            raise Unauthorized("'Expiration time' claim ('exp') must be a numeric value in the future")
        if expires - now > MAX_JWT_LIFE_S or expires - issued > MAX_JWT_LIFE_S:
            raise Unauthorized("'Expiration time' claim ('exp') is too far in the future")
        if issued > now + CLOCK_SKEW_S:
            raise Unauthorized("'Issued at' claim ('iat') must be in the past")

    def mint(self, installation_id: int, permissions: object, repositories: object) -> InstallationToken:
        """A token for one hour, with all permissions and repositories or the fewer ones that were asked for."""
        minted = InstallationToken(
            token=f"ghs_{secrets.token_hex(20)}",
            expires_at_s=self._now_s() + TOKEN_LIFE_S,
            installation_id=installation_id,
            permissions=_narrow(permissions),
            repositories=_names(repositories),
        )
        self.tokens = {text: each for text, each in self.tokens.items() if each.expires_at_s > self._now_s()}
        self.tokens[minted.token] = minted
        return minted

    def check_token(self, token: str) -> InstallationToken:
        known = self.tokens.get(token)
        if known is None or known.expires_at_s <= self._now_s():
            raise Unauthorized("Bad credentials")
        return known


def _names(asked: object) -> frozenset[str] | None:
    if asked is None:
        return None
    if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
        raise Refused("repositories must be a list of names")
    if len(asked) > MAX_REPOSITORIES:
        raise Refused(f"There are more than {MAX_REPOSITORIES} repositories")
    return frozenset(name.lower() for name in asked)


def _narrow(asked: object) -> Mapping[str, str]:
    if asked is None:
        return PERMISSIONS
    if not isinstance(asked, dict):
        raise Refused("permissions must be an object")
    for name, level in asked.items():
        if _LEVELS.get(str(level), 9) > _LEVELS.get(PERMISSIONS.get(name, ""), -1):
            raise Refused("The permissions requested are not granted to this installation.")
    return {**{str(name): str(level) for name, level in asked.items()}, "metadata": "read"}
