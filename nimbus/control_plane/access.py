"""Who is calling: agents, people, services, Prometheus. Reads the request's token, never a body.

Every route asks here first. A caller with an org sees that org and nothing else. A route that changes something asks
`read_writer` or `read_operator`, which also use up a token that is good once. Called by the *_api modules.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from dataclasses import dataclass

from quart import request

from nimbus.control_plane.keys.ring import Purpose
from nimbus.control_plane.services import AccessPolicy, Services
from nimbus.model.errors import Conflict, Forbidden, Unauthorized
from nimbus.wire.tokens import SKEW_S, Audience, Claims, UnknownKey, parse_bearer, verify_token

_WORD = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # of jti and nonce: UUIDs, digests, counters


@dataclass(frozen=True)
class OneUse:
    """What a token is used up by: its `nonce`, remembered for as long as the token could be shown again."""

    nonce: str
    expires_at_s: int


@dataclass(frozen=True)
class Caller:
    """A person or program with an admin token. `org_id` None reaches all orgs; `once` None changes any number."""

    subject: str
    org_id: int | None
    may_write: bool
    once: OneUse | None = None


def read_caller(policy: AccessPolicy) -> Caller:
    """The caller of an admin route that changes nothing."""
    claims = _verify_hmac(policy, Audience.ADMIN)
    if policy.allowed_subjects and claims.subject not in policy.allowed_subjects:
        raise Forbidden("this token's subject is not among NIMBUS_ADMIN_ALLOWED_SUBJECTS")
    nonce = _read_word(claims, "nonce")
    once = None if nonce is None else OneUse(nonce, claims.expires_at_s)
    return Caller(claims.subject, claims.integer("org_id"), claims.extra.get("role") == "admin", once)


async def read_writer(services: Services) -> Caller:
    """The caller of an admin route that changes something.

    Forbidden for a token that only reads, Conflict for one that was good once, Unavailable where nobody can tell that.
    """
    return await _use_up(services, _require_role(read_caller(services.access)))


async def read_operator(services: Services) -> Caller:
    """The caller of a route that changes what belongs to no org: an admin of the whole service."""
    caller = _require_role(read_caller(services.access))
    if caller.org_id is not None:
        raise Forbidden("this is for the operator of the whole service: a token of one org does not reach it")
    return await _use_up(services, caller)


def _require_role(caller: Caller) -> Caller:
    if not caller.may_write:
        raise Forbidden("this token only reads: mint one with role=admin")
    return caller


async def _use_up(services: Services, caller: Caller) -> Caller:
    if caller.once is not None:
        ttl_s = caller.once.expires_at_s + 2 * SKEW_S - time.time()
        whose = "all" if caller.org_id is None else f"org-{caller.org_id}"
        if not await services.nonces.spend(f"{Audience.ADMIN}:{whose}:{caller.once.nonce}", ttl_s):
            raise Conflict("this token was good for one call, and that was made: mint another")
    return caller


def read_service(policy: AccessPolicy) -> str:
    """The calling service of an internal route."""
    claims = _verify_hmac(policy, Audience.INTERNAL)
    if not claims.subject.startswith("service:"):
        raise Forbidden("this route is for services")
    return claims.subject


async def read_agent(services: Services) -> str:
    """The id of the calling agent."""
    return await check_agent(services, request.headers.get("Authorization"))


async def check_agent(services: Services, authorization: str | None) -> str:
    """The id of the agent that sent this header. A key that is not known may have been made a moment ago, by another
    process.
    """
    token = parse_bearer(authorization)
    try:
        return _verify_agent(services, token)
    except UnknownKey:
        await services.keys.look_for_unknown()
        return _verify_agent(services, token)


def _verify_agent(services: Services, token: str) -> str:
    keys, now_s = services.keys.current.accepted(Purpose.AGENT), time.time()
    known = services.verified.find(token, keys, now_s)
    if known is not None:
        return known
    claims = verify_token(token, keys, audience=Audience.AGENT, now_s=now_s)
    services.verified.keep(token, claims)
    return claims.subject


async def read_enrolment(services: Services) -> str:
    """The id of the agent that enrols, or that renews: a token that is still good may be exchanged for the next.

    So an enrolment token need not outlive the agent's first start, and none has to lie about for years.
    """
    token = parse_bearer(request.headers.get("Authorization"))
    keys = [key.verify_key() for key in services.access.enrolment_keys]
    try:
        claims = verify_token(token, keys, audience=Audience.AGENT_ENROLMENT, now_s=time.time())
        return _refuse_denied(services.access, claims).subject
    except Unauthorized:
        return await read_agent(services)


def _verify_hmac(policy: AccessPolicy, audience: Audience) -> Claims:
    token = parse_bearer(request.headers.get("Authorization"))
    keys = [key.verify_key() for key in policy.admin_keys]
    return _refuse_denied(policy, verify_token(token, keys, audience=audience, now_s=time.time()))


def _refuse_denied(policy: AccessPolicy, claims: Claims) -> Claims:
    token_id = _read_word(claims, "jti")
    if token_id is not None and policy.denied.holds(token_id):
        raise Unauthorized("this token was revoked")
    return claims


def _read_word(claims: Claims, name: str) -> str | None:
    value = claims.extra.get(name)
    if value is not None and not (isinstance(value, str) and _WORD.fullmatch(value)):
        raise Unauthorized(f"the token's {name} is none of ours")
    return value


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
