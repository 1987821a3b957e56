"""Cache tokens as values: who may pull and push whose stored things, on behalf of which lease, until when.

`v1.<kid>.<base64url of the payload>.<mac>`. The MAC covers all that stands before it; its key is derived from the
shared secret for this purpose alone. Sans-IO: keys and the time come in as arguments. Whether the lease is alive is
asked elsewhere (runtime/liveness.py). Minted by the control plane and `nimbus cache`; verified by the services that
store.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nimbus.model.errors import Forbidden, Refused, Unauthorized
from nimbus.model.scope import Action, Scope, parse_scope
from nimbus.wire.tokens import MIN_SECRET_BYTES, SKEW_S, Audience

VERSION = "v1"
STORES = (Audience.CACHE, Audience.REGISTRY)  # a job gets one token, and its clients show it to both
MAX_TOKEN_CHARS = 2048
MAX_SCOPES = 16
MAX_LIFE_S = 366 * 86_400
MAX_ID = 2**63 - 1
_MAC_BYTES = 32
_KID_BYTES = 12
_TOKEN = re.compile(r"v1\.([A-Za-z0-9_-]{16})\.([A-Za-z0-9_-]{1,1900})\.([A-Za-z0-9_-]{43})")
_FIELDS = frozenset({"scopes", "org_id", "aud", "nbf", "exp"})
_LEASE_FIELDS = frozenset({"machine_id", "fence"})
_REFUSAL = "the cache token is not valid"  # the same words whichever byte is wrong


@dataclass(frozen=True)
class CacheKey:
    """A key of cache tokens. The id tells nothing of the secret, and every service derives the same one."""

    kid: str
    material: bytes = field(repr=False)


@dataclass(frozen=True)
class BoundLease:
    """The lease with which a token lives and dies."""

    machine_id: int
    fence: int


@dataclass(frozen=True)
class CacheClaims:
    """A verified token's content. `lease` None: minted by an operator, ends by its expiry alone."""

    org_id: int
    scopes: tuple[Scope, ...]
    audiences: tuple[Audience, ...]
    not_before_s: int
    expires_at_s: int
    lease: BoundLease | None = None

    def require(self, wanted: Scope) -> None:
        """Forbidden unless one scope of the token covers it."""
        if not any(scope.covers(wanted) for scope in self.scopes):
            raise Forbidden(f"this token does not reach {wanted}")


def derive_cache_key(secret: str) -> CacheKey:
    """The key of a shared secret; Refused where that is too short to be one."""
    material = secret.encode()
    if len(material) < MIN_SECRET_BYTES:
        raise Refused(f"the cache secret needs at least {MIN_SECRET_BYTES} bytes (openssl rand -hex 32 makes one)")
    kid = _b64(_derive(material, b"nimbus cache token v1: key id", _KID_BYTES))
    return CacheKey(kid, _derive(material, b"nimbus cache token v1: mac", _MAC_BYTES))


def _derive(material: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(material)


_NOBODYS = CacheKey("", bytes(_MAC_BYTES))  # an unknown key id costs the work of a known one; no match of it counts


def plan_claims(
    org_id: int,
    *,
    now_s: float,
    ttl_s: float,
    actions: Iterable[Action] = tuple(Action),
    repo_id: int | None = None,
    lease: BoundLease | None = None,
) -> CacheClaims:
    """What a token for an org's storage says, or for that of one of its repositories, from now on."""
    begin = int(now_s)
    scopes = tuple(Scope(action, org_id, repo_id) for action in sorted(set(actions)))
    return CacheClaims(org_id, scopes, STORES, begin, begin + max(1, int(ttl_s)), lease)


def render_cache_token(key: CacheKey, claims: CacheClaims) -> str:
    """A signed token; Refused where nobody would take it."""
    payload: dict[str, object] = {
        "scopes": [str(scope) for scope in claims.scopes],
        "org_id": claims.org_id,
        "aud": [str(audience) for audience in claims.audiences],
        "nbf": claims.not_before_s,
        "exp": claims.expires_at_s,
    }
    if claims.lease is not None:
        payload |= {"machine_id": claims.lease.machine_id, "fence": claims.lease.fence}
    if _parse_payload(payload) != claims:
        raise Refused("these claims make no cache token: check scopes, org and life")
    body = _b64(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode())
    signed = f"{VERSION}.{key.kid}.{body}"
    token = f"{signed}.{_b64(_mac(key, signed))}"
    if _TOKEN.fullmatch(token) is None or len(token) > MAX_TOKEN_CHARS:
        raise Refused("these claims make too long a cache token")
    return token


def verify_cache_token(token: str, keys: Iterable[CacheKey], *, audience: Audience, now_s: float) -> CacheClaims:
    """What a valid token says; Unauthorized otherwise, without telling the sender which byte was wrong."""
    match = _TOKEN.fullmatch(token) if len(token) <= MAX_TOKEN_CHARS else None
    if match is None:
        raise Unauthorized("a cache token (v1, four dotted parts) is needed; a secret itself is never a token")
    kid, body, mac = match.groups()
    key = {each.kid: each for each in keys}.get(kid)
    signed = f"{VERSION}.{kid}.{body}"
    same = hmac.compare_digest(_b64(_mac(key or _NOBODYS, signed)), mac)
    if key is None or not same:
        raise Unauthorized(_REFUSAL)
    claims = _read_payload(body)
    if audience not in claims.audiences:
        raise Unauthorized(f"the cache token was made for another service: this one wants aud={audience}")
    if now_s >= claims.expires_at_s + SKEW_S:
        raise Unauthorized("the cache token has expired")
    if claims.not_before_s > now_s + SKEW_S:
        raise Unauthorized("the cache token is not valid yet")
    return claims


def _mac(key: CacheKey, signed: str) -> bytes:
    return hmac.new(key.material, signed.encode(), hashlib.sha256).digest()


def _read_payload(body: str) -> CacheClaims:
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        payload = json.loads(raw, object_pairs_hook=_read_object)
        if _b64(raw) != body:
            raise ValueError("one token, one spelling")
        claims = _parse_payload(payload)
    except (ValueError, RecursionError, Refused) as error:
        raise Unauthorized(_REFUSAL) from error
    if claims is None:
        raise Unauthorized(_REFUSAL)
    return claims


def _read_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name stands there twice")
    return read


def _parse_payload(value: object) -> CacheClaims | None:
    """The claims, or None where they are not exactly what we write; Refused for a scope that is none."""
    if not isinstance(value, dict) or not _FIELDS <= set(value) <= _FIELDS | _LEASE_FIELDS:
        return None
    payload = cast("Mapping[str, object]", value)
    org_id, begin, end = (_number(payload, name) for name in ("org_id", "nbf", "exp"))
    scopes = tuple(parse_scope(text) for text in _texts(payload, "scopes", MAX_SCOPES))
    known = {str(audience): audience for audience in STORES}
    audiences = tuple(known[text] for text in _texts(payload, "aud", len(known)) if text in known)
    bound = _LEASE_FIELDS & set(payload)
    if not org_id or begin is None or end is None or not 0 < end - begin <= MAX_LIFE_S:
        return None
    if not scopes or not audiences or {scope.org_id for scope in scopes} != {org_id}:
        return None
    if not bound:
        return CacheClaims(org_id, scopes, audiences, begin, end)
    machine_id, fence = (_number(payload, name) for name in ("machine_id", "fence"))
    if not machine_id or not fence:
        return None
    return CacheClaims(org_id, scopes, audiences, begin, end, BoundLease(machine_id, fence))


def _number(payload: Mapping[str, object], name: str) -> int | None:
    value = payload.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        return None
    return value


def _texts(payload: Mapping[str, object], name: str, most: int) -> list[str]:
    """The list of different texts, or nothing where it is no such list."""
    value = payload.get(name)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(text, str) for text in value):
        return []
    texts = cast("list[str]", value)
    return texts if len(set(texts)) == len(texts) else []


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
