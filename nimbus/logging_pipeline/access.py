"""Who is calling the logging pipeline: machines that write, people and services that read, Prometheus.

Reads the request's token, never a body. A reader with an org sees that org and nothing else. Called by the routes.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from dataclasses import dataclass, field

from quart import request

from nimbus.logging_pipeline.keys import KeySet
from nimbus.logging_pipeline.revoked import RevokedTokens
from nimbus.logging_pipeline.tickets import Reader, Ticket, read_ticket, render_ticket
from nimbus.model.errors import Forbidden, Refused, Unauthorized
from nimbus.runtime.hidden import find_hidden
from nimbus.wire.tokens import (
    Audience,
    MachineClaims,
    SigningKey,
    parse_bearer,
    parse_machine_claims,
    verify_token,
)

HIDDEN = frozenset({"ticket", "token"})  # of an address: taken out before anything can write it down
_TOKEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Access:
    """Keys of those who may come in."""

    machine_keys: KeySet
    revoked: RevokedTokens
    reader_keys: tuple[SigningKey, ...] = field(repr=False)
    metrics_token: str | None = field(default=None, repr=False)

    async def read_machine(self) -> MachineClaims:
        """The machine whose output the request brings."""
        token = parse_bearer(request.headers.get("Authorization"))
        return parse_machine_claims(await self.machine_keys.verify(token, Audience.LOGS))

    def read_reader(self) -> Reader:
        """Who wants to read. By the header alone: an address ends in logs."""
        hidden = find_hidden(request.scope)
        if "ticket" in hidden:
            raise Refused("a ticket opens streams and downloads only: send the header Authorization: Bearer <token>")
        return self._read_token()

    def read_viewer(self) -> Reader:
        """Who wants to read what a browser opens by its address alone: a header as everywhere, or a ticket."""
        ticket = find_hidden(request.scope).get("ticket")
        if ticket is None:
            return self._read_token()
        if "Authorization" in request.headers:
            raise Refused("a token or a ticket, not both")
        return self._check_revoked(read_ticket(ticket, self.reader_keys, request.path, time.time()))

    def make_ticket(self, reader: Reader, path: str) -> Ticket:
        """A way in to that path for a minute, for this reader."""
        return render_ticket(self.reader_keys[0], reader, path, time.time())

    def _read_token(self) -> Reader:
        if "token" in find_hidden(request.scope):
            raise Refused("a token never stands in an address: POST /logs/tickets gives a ticket that may")
        token = parse_bearer(request.headers.get("Authorization"))
        keys = [key.verify_key() for key in self.reader_keys]
        claims = verify_token(token, keys, audience=Audience.LOGS_READ, now_s=time.time())
        token_id = claims.extra.get("jti")
        if token_id is not None and not (isinstance(token_id, str) and _TOKEN_ID.fullmatch(token_id)):
            raise Unauthorized("the token's jti is none of ours")
        return self._check_revoked(Reader(claims.subject, claims.integer("org_id"), claims.expires_at_s, token_id))

    def _check_revoked(self, reader: Reader) -> Reader:
        self.revoked.require_known()
        if self.revoked.holds(reader.token_id):
            raise Unauthorized("this token was revoked")
        return reader

    def require_metrics(self) -> None:
        """Let in the bearer of NIMBUS_METRICS_TOKEN; without one set, loopback only."""
        if self.metrics_token is not None:
            token = parse_bearer(request.headers.get("Authorization"))
            if not hmac.compare_digest(token.encode(), self.metrics_token.encode()):
                raise Unauthorized("the metrics token is not the right one")
            return
        # headers of a trusted proxy are used up by now; those that are left speak for somebody who is not this host
        forwarded = "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
        if forwarded or not _is_loopback(request.remote_addr or ""):
            raise Forbidden("metrics are for this host only: set NIMBUS_METRICS_TOKEN to read them from elsewhere")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
