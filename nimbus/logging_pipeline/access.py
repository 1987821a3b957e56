"""Who is calling the logging pipeline: machines that write, people and services that read, Prometheus.

Reads the request's token, never a body. A reader with an org sees that org and nothing else. Called by the routes.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from dataclasses import dataclass, field

from quart import request

from nimbus.logging_pipeline.keys import KeySet
from nimbus.model.errors import Forbidden, Unauthorized
from nimbus.wire.tokens import (
    Audience,
    MachineClaims,
    SigningKey,
    parse_bearer,
    parse_machine_claims,
    verify_token,
)


@dataclass(frozen=True)
class Reader:
    """A person or program with a read token. `org_id` None reaches all orgs."""

    subject: str
    org_id: int | None
    expires_at_s: int


@dataclass(frozen=True)
class Access:
    """Keys of those who may come in."""

    machine_keys: KeySet
    reader_keys: tuple[SigningKey, ...] = field(repr=False)
    metrics_token: str | None = field(default=None, repr=False)

    async def read_machine(self) -> MachineClaims:
        """The machine whose output the request brings."""
        token = parse_bearer(request.headers.get("Authorization"))
        return parse_machine_claims(await self.machine_keys.verify(token, Audience.LOGS))

    def read_reader(self) -> Reader:
        """Who wants to read."""
        token = parse_bearer(request.headers.get("Authorization"))
        keys = [key.verify_key() for key in self.reader_keys]
        claims = verify_token(token, keys, audience=Audience.LOGS_READ, now_s=time.time())
        return Reader(claims.subject, claims.integer("org_id"), claims.expires_at_s)

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
