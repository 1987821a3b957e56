"""What the routes of leases' and tokens' standing take and answer. Called by revocation.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from nimbus.control_plane.openapi.fields import CLOSED, Id, UnixMs, said, within
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation

_TOKEN_ID = Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")


@dataclass(frozen=True)
class LeaseState:
    """Whether a lease is held right now."""

    alive: bool
    org_id: Id | None
    until_ms: UnixMs | None
    left_s: Annotated[float, said("seconds until it runs out; 0 where it is not held")]


@dataclass(frozen=True)
class TokenRevocation:
    """The token that nobody may take any more."""

    __pydantic_config__: ClassVar = CLOSED

    jti: Annotated[str, _TOKEN_ID]
    exp: (
        Annotated[int, within(0, 2**40, "the second in which it expires; left out, it is kept as revoked for good")]
        | None
    ) = None


@dataclass(frozen=True)
class TokenRevoked:
    """The token that was revoked."""

    jti: str
    revoked: bool


@dataclass(frozen=True)
class RevokedHeaders:
    """What the caller knows already."""

    if_none_match: Annotated[str | None, said("the ETag of the last answer")] = None


@dataclass(frozen=True)
class RevokedTokens:
    """The tokens that nobody may take any more."""

    jtis: list[Annotated[str, _TOKEN_ID]]


_TAGGED = {"ETag": "of this list", "Cache-Control": "ask each time"}
GET_LEASE_STATE = Operation(
    "getLeaseState",
    "Whether a lease is held right now",
    Access.SERVICE,
    {
        200: Answer(
            "its state; a lease that never was is as dead as one that ended",
            LeaseState,
            {"alive": True, "org_id": 1, "until_ms": 1795291500000, "left_s": 287.5},
        )
    },
    paths={"machine_id": "of the lease", "fence": "of the lease"},
)
LIST_REVOKED = Operation(
    "listRevokedTokens",
    "The ids of tokens that ended before their time",
    Access.SERVICE,
    {
        200: Answer("all that have not expired meanwhile", RevokedTokens, {"jtis": ["5b6f2c"]}, headers=_TAGGED),
        304: Answer("still the same as by If-None-Match", headers=_TAGGED),
    },
    headers=RevokedHeaders,
)
REVOKE_TOKEN = Operation(
    "revokeToken",
    "End a token before its time",
    Access.WRITE,
    {200: Answer("no service takes it any more", TokenRevoked, {"jti": "5b6f2c", "revoked": True})},
    body=Body(TokenRevocation, {"jti": "5b6f2c", "exp": 1795291500}),
)
