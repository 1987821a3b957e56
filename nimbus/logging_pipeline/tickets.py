"""Tickets: what a browser, which cannot send a header with a stream or a download, shows in the address instead.

A ticket opens one path, for one org, for a minute at most, and what it opened ends with the token that it was made
for. It is worth nothing once used up by time, so it may stand in an address; a token itself never may. Sans-IO: the
time and the keys come in. Called by `access`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nimbus.model.errors import Forbidden, Unauthorized
from nimbus.wire.tokens import Audience, SigningKey, render_token, verify_token

TICKET_S = 60.0


@dataclass(frozen=True)
class Reader:
    """A person or program with a read token. `org_id` None reaches all orgs."""

    subject: str
    org_id: int | None
    expires_at_s: int
    token_id: str | None = None  # by which it is revoked; a token without one only expires


@dataclass(frozen=True)
class Ticket:
    """The way in, and until when it is open."""

    text: str = field(repr=False)
    path: str
    expires_at_s: int


def render_ticket(key: SigningKey, reader: Reader, path: str, now_s: float) -> Ticket:
    """A ticket for that path; never good for longer than the token."""
    expires_at_s = min(int(now_s + TICKET_S), reader.expires_at_s)
    claims: dict[str, object] = {"path": path, "until": reader.expires_at_s}
    claims |= {} if reader.org_id is None else {"org_id": reader.org_id}
    claims |= {} if reader.token_id is None else {"of": reader.token_id}
    text = render_token(
        key,
        subject=reader.subject,
        audience=Audience.LOGS_TICKET,
        now_s=now_s,
        ttl_s=expires_at_s - int(now_s),
        claims=claims,
    )
    return Ticket(text, path, expires_at_s)


def read_ticket(text: str, keys: Sequence[SigningKey], path: str, now_s: float) -> Reader:
    """Whose ticket it is; Unauthorized where it is none or its minute is over, Forbidden for another path."""
    claims = verify_token(text, [key.verify_key() for key in keys], audience=Audience.LOGS_TICKET, now_s=now_s)
    if now_s >= claims.expires_at_s:  # no allowance for clocks: all that make and take tickets are this service
        raise Unauthorized("the ticket has expired: POST /logs/tickets for a new one")
    until = claims.integer("until")
    if until is None:
        raise Unauthorized("the ticket is none of ours")
    if claims.extra.get("path") != path:
        raise Forbidden("the ticket is for another address")
    token_id = claims.extra.get("of")
    return Reader(claims.subject, claims.integer("org_id"), until, token_id if isinstance(token_id, str) else None)
