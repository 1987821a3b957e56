"""JSON Web Tokens and key sets as values: who may speak for what, until when.

Sans-IO: keys and the time come in as arguments. The algorithm is pinned by the key and never read from
the token; a key id is looked up in a dict and nowhere else (RFC 8725). Called by every service and by the CLI.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, cast

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nimbus.model.errors import Refused, Unauthorized

ISSUER = "nimbus"
SKEW_S = 30.0  # hosts' clocks differ; more than the usual NTP error, less than a minute
MAX_TOKEN_CHARS = 8192
MIN_SECRET_BYTES = 32  # RFC 7518 3.2: an HS256 key is at least as long as its hash
_KID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KID_BYTES = 12  # of a shared secret's: enough that two never meet, too few to lead back
_KID_PURPOSE = b"nimbus shared secret: key id"
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_HEADER_FIELDS = frozenset({"alg", "typ", "kid"})  # crit, jku, jwk, x5u, x5c: refused by not being here


class Audience(enum.StrEnum):
    """One word per service and purpose: a token for one opens no other."""

    AGENT_ENROLMENT = "nimbus-agent-enrolment"
    AGENT = "nimbus-agent"
    ADMIN = "nimbus-admin"
    LOGS = "nimbus-logs"
    LOGS_READ = "nimbus-logs-read"
    LOGS_TICKET = "nimbus-logs-ticket"  # the one kind that may stand in an address: see logging_pipeline/tickets.py
    INTERNAL = "nimbus-internal"
    CACHE = "nimbus-cache"
    REGISTRY = "nimbus-registry"


class UnknownKey(Unauthorized):
    """The token names a key that is not in the set, and is good but for that: fetching the key set anew may help."""


@dataclass(frozen=True)
class VerifyKey:
    """What checks a signature: the algorithm belongs to the key."""

    kid: str
    algorithm: str
    material: Ed25519PublicKey | bytes = field(repr=False)


@dataclass(frozen=True)
class SigningKey:
    """What makes a signature."""

    kid: str
    algorithm: str
    material: Ed25519PrivateKey | bytes = field(repr=False)

    def verify_key(self) -> VerifyKey:
        if isinstance(self.material, bytes):
            return VerifyKey(self.kid, self.algorithm, self.material)
        return VerifyKey(self.kid, self.algorithm, self.material.public_key())


@dataclass(frozen=True)
class Claims:
    """A verified token's content."""

    subject: str
    audience: Audience
    expires_at_s: int
    extra: Mapping[str, object]

    def integer(self, name: str) -> int | None:
        """A claim that is a whole number of our bigint range, or None where it is absent; Unauthorized for others."""
        value = self.extra.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise Unauthorized(f"the token's claim {name} is no whole number")
        return value


@dataclass(frozen=True)
class MachineClaims:
    """Whose output a machine token lets in."""

    org_id: int
    machine_id: int
    fence: int
    agent_id: str


# --- keys --------------------------------------------------------------------------------------------------------


def hmac_key(secret: str) -> SigningKey:
    """The HS256 key of a shared secret; Refused where it is too short to be one.

    Its id is derived from the secret, one way: all who share the secret call it the same, and nobody hands out ids.
    """
    material = secret.encode()
    if len(material) < MIN_SECRET_BYTES:
        raise Refused(f"a signing secret needs at least {MIN_SECRET_BYTES} bytes (openssl rand -hex 32 makes one)")
    kid = HKDF(algorithm=hashes.SHA256(), length=_KID_BYTES, salt=None, info=_KID_PURPOSE).derive(material)
    return SigningKey(_b64(kid), "HS256", material)


def new_ed25519_key() -> SigningKey:
    return _ed25519(Ed25519PrivateKey.generate())


def load_ed25519_key(pem: str) -> SigningKey:
    """The key in a PKCS#8 PEM text."""
    try:
        private = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise Refused("the signing key is no unencrypted PEM private key") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise Refused("the signing key must be an Ed25519 key")
    return _ed25519(private)


def render_private_pem(key: SigningKey) -> str:
    assert isinstance(key.material, Ed25519PrivateKey)  # noqa: S101 - a bug of ours, not bad luck
    form = serialization.PrivateFormat.PKCS8
    return key.material.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def render_public_key(key: VerifyKey) -> str:
    """The public half as the text that a key set holds."""
    assert isinstance(key.material, Ed25519PublicKey)  # noqa: S101 - a bug of ours, not bad luck
    return _okp(key.material)["x"]


def parse_public_key(kid: str, text: str) -> VerifyKey:
    """The key of that text; ValueError where it is none."""
    return VerifyKey(kid, "EdDSA", Ed25519PublicKey.from_public_bytes(_unb64(text)))


def _ed25519(private: Ed25519PrivateKey) -> SigningKey:
    # RFC 7638 thumbprint: the id follows from the key, so that nobody has to hand out ids
    thumbprint = json.dumps(_okp(private.public_key()), sort_keys=True, separators=(",", ":")).encode()
    return SigningKey(_b64(hashlib.sha256(thumbprint).digest()), "EdDSA", private)


def _okp(public: Ed25519PublicKey) -> dict[str, str]:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": _b64(raw)}


# --- key sets ----------------------------------------------------------------------------------------------------


def render_jwks(keys: Iterable[VerifyKey]) -> dict[str, object]:
    """The public half of the Ed25519 keys; a shared secret can never be part of it."""
    rendered = []
    for key in keys:
        if not isinstance(key.material, Ed25519PublicKey):
            raise Refused("only public keys belong into a key set")
        rendered.append({**_okp(key.material), "use": "sig", "alg": "EdDSA", "kid": key.kid})
    return {"keys": rendered}


def parse_jwks(body: bytes) -> tuple[VerifyKey, ...]:
    """The Ed25519 keys of a key set; keys of other kinds are passed over, a set without any is Refused."""
    try:
        entries = json.loads(body)["keys"]
        keys = tuple(_parse_jwk(entry) for entry in entries if _is_ours(entry))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused("the key set cannot be read") from error
    if not keys:
        raise Refused("the key set holds no Ed25519 signing key")
    return keys


def _is_ours(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    kid = entry.get("kid")
    named = isinstance(kid, str) and _KID.fullmatch(kid) is not None
    return named and (entry.get("kty"), entry.get("crv")) == ("OKP", "Ed25519")


def _parse_jwk(entry: Mapping[str, object]) -> VerifyKey:
    return parse_public_key(str(entry["kid"]), str(entry["x"]))


# --- tokens ------------------------------------------------------------------------------------------------------


def render_token(
    key: SigningKey,
    *,
    subject: str,
    audience: Audience,
    now_s: float,
    ttl_s: float,
    claims: Mapping[str, object] | None = None,
) -> str:
    """A signed token for one audience."""
    issued = int(now_s)
    payload = {**(claims or {}), "iss": ISSUER, "sub": subject, "aud": str(audience)}
    payload |= {"iat": issued, "nbf": issued, "exp": issued + max(1, int(ttl_s))}
    return jwt.encode(payload, key.material, algorithm=key.algorithm, headers={"kid": key.kid})


def verify_token(token: str, keys: Iterable[VerifyKey], *, audience: Audience, now_s: float) -> Claims:
    """What a valid token says; Unauthorized otherwise, without telling the sender which byte was wrong."""
    header, known = _parse_header(token), tuple(keys)
    if all(header.get("alg") != key.algorithm for key in known):
        raise Unauthorized("the token's algorithm is none that is used here")
    kid = header.get("kid")
    if kid is None:
        return _check_claims(_try_secrets(token, header, known), audience, now_s)
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise Unauthorized("the token's key id is malformed")
    key = {each.kid: each for each in known}.get(kid)
    if key is None:
        _check_claims(_peek_payload(token), audience, now_s)  # of what no key could make good, no key is looked for
        raise UnknownKey("the token was signed with a key that is not known here")
    if header.get("alg") != key.algorithm:
        raise Unauthorized("the token's algorithm is not that of its key")
    return _check_claims(_open_payload(token, key) or _refuse_signature(), audience, now_s)


def _peek_payload(token: str) -> Mapping[str, object]:
    """What the token claims, unverified: good for nothing but to refuse it."""
    try:
        payload = json.loads(_unb64(token.split(".")[1]))
    except (ValueError, RecursionError) as error:
        raise Unauthorized("the token is not valid") from error
    if not isinstance(payload, dict):
        raise Unauthorized("the token is not valid")
    return cast("Mapping[str, object]", payload)


def _try_secrets(token: str, header: Mapping[str, object], keys: Sequence[VerifyKey]) -> Mapping[str, object]:
    """Another program signs with the shared secret and knows no id of ours: each is tried, whichever fits."""
    secrets = [key for key in keys if isinstance(key.material, bytes)]
    if all(header.get("alg") != key.algorithm for key in secrets):
        raise Unauthorized("the token names no key")
    opened = [_open_payload(token, key) for key in secrets]  # all of them: the time says nothing of which one it was
    return next((each for each in opened if each is not None), None) or _refuse_signature()


def _refuse_signature() -> NoReturn:
    raise Unauthorized("the token is not valid")


def _open_payload(token: str, key: VerifyKey) -> Mapping[str, object] | None:
    """What the token holds where this key signed it. The claims are checked against the caller's clock, later."""
    try:
        jwt.decode(token, key.material, algorithms=[key.algorithm], options=_SIGNATURE_ONLY)
        payload = _read_object(token.split(".")[1])
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    return cast("Mapping[str, object]", payload)


_SIGNATURE_ONLY = jwt.types.Options(
    verify_exp=False, verify_nbf=False, verify_iat=False, verify_aud=False, verify_iss=False,
    verify_sub=False, verify_jti=False,
)  # fmt: skip


def _parse_header(token: str) -> Mapping[str, object]:
    segments = token.split(".") if len(token) <= MAX_TOKEN_CHARS else []
    if len(segments) != 3 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise Unauthorized("a signed token (three dotted parts) is needed; a secret itself is never a token")
    try:
        header = _read_object(segments[0])
    except (ValueError, RecursionError) as error:
        raise Unauthorized("the token's header cannot be read") from error
    if not isinstance(header, dict) or not set(header) <= _HEADER_FIELDS:
        raise Unauthorized("the token's header holds fields that are not accepted")
    return cast("Mapping[str, object]", header)


def _read_object(segment: str) -> object:
    """A segment's JSON. A name that stands there twice is an error: another reader might believe the other one."""

    def read_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands there twice")
        return dict(pairs)

    return json.loads(_unb64(segment), object_pairs_hook=read_pairs)


def _check_claims(payload: Mapping[str, object], audience: Audience, now_s: float) -> Claims:
    expires = _seconds(payload, "exp")
    if expires is None:
        raise Unauthorized("the token never expires: it needs exp")
    if now_s >= expires + SKEW_S:
        raise Unauthorized("the token has expired: ask for a new one")
    for name in ("nbf", "iat"):
        moment = _seconds(payload, name)
        if moment is not None and moment > now_s + SKEW_S:
            raise Unauthorized(f"the token is not valid yet ({name})")
    subject = payload.get("sub")
    if payload.get("iss") != ISSUER or payload.get("aud") != str(audience):
        raise Unauthorized(f"the token was made for another service: this one wants aud={audience}")
    if not isinstance(subject, str) or not 0 < len(subject) <= 256 or not subject.isprintable():
        raise Unauthorized("the token names no subject")
    return Claims(subject, audience, expires, payload)


def _seconds(payload: Mapping[str, object], name: str) -> int | None:
    value = payload.get(name)
    if value is None and name not in payload:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise Unauthorized(f"the token's {name} is no time")
    return value


def parse_machine_claims(claims: Claims) -> MachineClaims:
    """The machine that a token of audience nimbus-logs speaks for."""
    org_id, machine_id, fence = (claims.integer(name) for name in ("org_id", "machine_id", "fence"))
    agent_id = claims.extra.get("agent_id")
    if org_id is None or machine_id is None or fence is None or not isinstance(agent_id, str) or not agent_id:
        raise Unauthorized("the token names no machine")
    return MachineClaims(org_id, machine_id, fence, agent_id)


def parse_bearer(header: str | None) -> str:
    """The token of an Authorization header."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("send the header Authorization: Bearer <token>")
    return token.strip()


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64url") from error
