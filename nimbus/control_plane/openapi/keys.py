"""What the routes of keys take and answer. Called by keys/api.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from nimbus.control_plane.keys.ring import Purpose, Role
from nimbus.control_plane.openapi.fields import CLOSED, JsonObject, UnixMs, said, storable
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation

MAX_KID_CHARS = 64


@dataclass(frozen=True)
class PublicKey:
    """One Ed25519 key."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    use: Literal["sig"]
    alg: Literal["EdDSA"]
    kid: str


@dataclass(frozen=True)
class PublicKeys:
    """The keys that agent and machine tokens are signed with, as RFC 7517 writes them."""

    keys: list[PublicKey]


@dataclass(frozen=True)
class KeySetHeaders:
    """What a verifier knows already."""

    if_none_match: Annotated[str | None, said("the ETag of the last answer")] = None


@dataclass(frozen=True)
class KeyView:
    """A key by what it is now. The key itself is never shown."""

    family: Annotated[str, said("agent, machine, or the variable of a shared secret")]
    kid: str
    role: Role
    source: Annotated[str, said("database, or the variable that gives it")]
    since_ms: Annotated[UnixMs | None, said("since when it signs, or when it will")]
    until_ms: Annotated[UnixMs | None, said("when nothing of it is accepted any more")]


@dataclass(frozen=True)
class KeyList:
    """Every key, also those whose time is over."""

    keys: list[KeyView]


@dataclass(frozen=True)
class RotationOrder:
    """Which family; left out: all."""

    __pydantic_config__: ClassVar = CLOSED

    family: Purpose | None = None


@dataclass(frozen=True)
class RotationView:
    """A family's next key. `made` false: there was one already, and it stays."""

    family: Purpose
    kid: str
    signs_in_s: float
    made: bool


@dataclass(frozen=True)
class RotationList:
    """What was published."""

    rotations: list[RotationView]


@dataclass(frozen=True)
class RevocationOrder:
    """Which key."""

    __pydantic_config__: ClassVar = CLOSED

    kid: Annotated[str, storable(MAX_KID_CHARS)]


@dataclass(frozen=True)
class RevocationView:
    """What the key was, and the key of its family that signs now."""

    family: Purpose
    kid: str
    was: Role
    signs: str


_KEY: JsonObject = {
    "kty": "OKP",
    "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    "use": "sig",
    "alg": "EdDSA",
    "kid": "k1",
}
_KID = "wRc0GQkDH9nBTdAJdWRzYbkWYoCwyOFYQjzQe_JkJQs"
_HOW_LONG = {"Cache-Control": "how long they may be kept", "ETag": "of this set"}
GET_PUBLIC_KEYS = Operation(
    "getPublicKeys",
    "The public keys of agent and machine tokens",
    Access.PUBLIC,
    {
        200: Answer("the keys", PublicKeys, {"keys": [_KEY]}, headers=_HOW_LONG),
        304: Answer("they are as they were", headers=_HOW_LONG),
    },
    headers=KeySetHeaders,
    away=False,
)
LIST_KEYS = Operation(
    "listKeys",
    "The keys that sign tokens, and what each is now",
    Access.WRITE,
    {
        200: Answer(
            "the keys",
            KeyList,
            {
                "keys": [
                    {"family": "agent", "kid": _KID, "role": "current", "source": "database",
                     "since_ms": 1760000000000, "until_ms": None},
                ]
            },
        )
    },
    details="For the operator of the whole service: a token of one org does not reach it.",
)  # fmt: skip
ROTATE_KEYS = Operation(
    "rotateKeys",
    "Publish the next key of a family, or of all",
    Access.WRITE,
    {
        200: Answer(
            "what comes",
            RotationList,
            {"rotations": [{"family": "agent", "kid": _KID, "signs_in_s": 600.0, "made": True}]},
        )
    },
    body=Body(RotationOrder, {"family": "agent"}, required=False),
    errors=frozenset({409}),
    details="It signs after NIMBUS_KEY_PUBLISH_LEAD seconds. Where a next key is published already, nothing changes.",
)
REVOKE_KEY = Operation(
    "revokeKey",
    "Accept nothing more of a key, at once",
    Access.WRITE,
    {200: Answer("what is over", RevocationView, {"family": "agent", "kid": _KID, "was": "current", "signs": "k2"})},
    body=Body(RevocationOrder, {"kid": _KID}),
    errors=frozenset({404, 409}),
    details="Whatever it signed is refused from now on. Where it signed, another key does at once.",
)
