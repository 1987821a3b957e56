"""Who is calling: agents, people, services, Prometheus. Reads the request's token, never a body.

Every route asks here first. A caller with an org sees that org and nothing else. Called by the *_api modules.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import deque
from dataclasses import dataclass

from quart import request

from nimbus.control_plane.services import AccessPolicy, Services
from nimbus.model.errors import Forbidden, RateLimited, Unauthorized
from nimbus.wire.tokens import Audience, Claims, parse_bearer, verify_token

_MAX_COUNTED = 10_000  # subjects whose mints are remembered at once


@dataclass(frozen=True)
class Caller:
    """A person or program with an admin token. `org_id` None reaches all orgs."""

    subject: str
    org_id: int | None
    may_write: bool

    def require_write(self) -> None:
        """Forbidden for a token that only reads."""
        if not self.may_write:
            raise Forbidden("this token only reads: mint one with role=admin")


def read_caller(policy: AccessPolicy) -> Caller:
    """The caller of an admin route."""
    claims = _verify_hmac(policy, Audience.ADMIN)
    if policy.allowed_subjects and claims.subject not in policy.allowed_subjects:
        raise Forbidden("this token's subject is not among NIMBUS_ADMIN_ALLOWED_SUBJECTS")
    return Caller(claims.subject, claims.integer("org_id"), claims.extra.get("role") == "admin")


def read_service(policy: AccessPolicy) -> str:
    """The calling service of an internal route."""
    claims = _verify_hmac(policy, Audience.INTERNAL)
    if not claims.subject.startswith("service:"):
        raise Forbidden("this route is for services")
    return claims.subject


def read_agent(services: Services) -> str:
    """The id of the calling agent."""
    token = parse_bearer(request.headers.get("Authorization"))
    return verify_token(token, services.keys.accepted, audience=Audience.AGENT, now_s=time.time()).subject


def read_enrolment(services: Services) -> str:
    """The id of the agent that enrols, or that renews: a token that is still good may be exchanged for the next.

    So an enrolment token need not outlive the agent's first start, and none has to lie about for years.
    """
    token = parse_bearer(request.headers.get("Authorization"))
    key = services.access.enrolment_key.verify_key()
    try:
        return verify_token(token, (key,), audience=Audience.AGENT_ENROLMENT, now_s=time.time()).subject
    except Unauthorized:
        return read_agent(services)


def _verify_hmac(policy: AccessPolicy, audience: Audience) -> Claims:
    token = parse_bearer(request.headers.get("Authorization"))
    return verify_token(token, (policy.admin_key.verify_key(),), audience=audience, now_s=time.time())


def require_metrics_access(policy: AccessPolicy) -> None:
    """Unauthorized unless the metrics token comes along, or the client is this host itself.

    A trusted proxy's client is the request's client by now, and its headers are gone; those that are left were written
    by somebody who is not trusted, so whoever stands behind them is not this host.
    """
    given = request.headers.get("Authorization")
    if given is not None and policy.metrics_token is not None:
        if hmac.compare_digest(parse_bearer(given).encode(), policy.metrics_token.encode()):
            return
        raise Unauthorized("this is not NIMBUS_METRICS_TOKEN")
    forwarded = "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
    if forwarded or not _is_loopback(request.remote_addr or ""):
        raise Unauthorized("metrics are for loopback, or for the bearer of NIMBUS_METRICS_TOKEN")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class MintLimit:
    """At most so many tokens for one agent in an interval (NIMBUS_AGENT_TOKEN_RATE_LIMIT), in this process."""

    def __init__(self, limit: int, interval_s: float) -> None:
        self._limit = limit
        self._interval_s = interval_s
        self._minted: dict[str, deque[float]] = {}

    def count(self, agent_id: str, now_s: float) -> None:
        """Note one mint; RateLimited where it is one too many."""
        if agent_id not in self._minted and len(self._minted) >= _MAX_COUNTED:
            self._minted.clear()
        times = self._minted.setdefault(agent_id, deque())
        while times and times[0] <= now_s - self._interval_s:
            times.popleft()
        if len(times) >= self._limit:
            wait_s = times[0] + self._interval_s - now_s
            raise RateLimited(f"agent {agent_id} enrols too often: wait {wait_s:.0f} seconds", wait_s)
        times.append(now_s)
