"""The shared secrets as keys: which are there, what they are called, what they may do. Never holds or shows one.

A secret changes in three restarts: it is accepted everywhere (`_NEXT`), it signs (and the old one is `_PREVIOUS`), the
old one goes. Called by app.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nimbus.control_plane.keys.ring import Role
from nimbus.runtime.settings import SharedSecret
from nimbus.wire.cachetokens import derive_cache_key
from nimbus.wire.tokens import hmac_key

CACHE_VARIABLE = "NIMBUS_CACHE_SHARED_SECRET"


@dataclass(frozen=True)
class SharedKey:
    """What may be told of a shared secret: the variable that holds it, and its key's id."""

    family: str  # the variable whose secret signs
    variable: str
    role: Role
    kid: str


def list_shared_keys(secrets: Iterable[SharedSecret]) -> tuple[SharedKey, ...]:
    """Pure: every secret that is set, as it may be shown."""
    return tuple(
        SharedKey(secret.variable, f"{secret.variable}{suffix}", role, _find_kid(secret.variable)(value))
        for secret in secrets
        for value, suffix, role in (
            (secret.next, "_NEXT", Role.NEXT),
            (secret.current, "", Role.CURRENT),
            (secret.previous, "_PREVIOUS", Role.PREVIOUS),
        )
        if value is not None
    )


def _find_kid(variable: str) -> Callable[[str], str]:
    """Cache tokens are no JWTs: their keys are derived in a way of their own."""
    if variable == CACHE_VARIABLE:
        return lambda secret: derive_cache_key(secret).kid
    return lambda secret: hmac_key(secret).kid
