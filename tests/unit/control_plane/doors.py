"""Every way into Nimbus by token, side by side: what one test tries at each of them.

The routes of the control plane are its own. Those of the logging pipeline and of the stores stand on a small
application here, which reads tokens by the services' own code and does nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx2
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from quart import request

from nimbus.control_plane.app import build_control_plane
from nimbus.control_plane.keys.ring import Purpose
from nimbus.control_plane.services import Services
from nimbus.logging_pipeline.access import Access
from nimbus.logging_pipeline.keys import KeySet
from nimbus.logging_pipeline.plane import Plane as Asked
from nimbus.logging_pipeline.revoked import RevokedTokens
from nimbus.model.errors import Forbidden, NotFound, Refused
from nimbus.model.scope import Action, Scope, parse_scope
from nimbus.runtime.http import open_http
from nimbus.runtime.liveness import Liveness
from nimbus.runtime.serving import App, Response, build_app, json_response, serve_app
from nimbus.wire.cachetokens import CacheKey, derive_cache_key, plan_claims, render_cache_token, verify_cache_token
from nimbus.wire.tokens import Audience, SigningKey, hmac_key, parse_bearer, render_token
from tests.unit.control_plane.plane import ADMIN_SECRET, AGENT_SECRET, CACHE_SECRET, Plane, bearer

ENROLMENT = {"version": "0.1.0", "boot_id": "b", "cpus": 8, "mem_mib": 8192}
LOOK = {"wait_s": 0, "free": {"cpus": 1, "mem_mib": 1, "slots": 1}}
RENEWAL = {"lease_id": "6f1f64e4-3d29-4d5c-9a53-0f4a2d8f6c11", "fence": 1, "state": "running"}
CACHE_KEY = derive_cache_key(CACHE_SECRET)
_ACTIONS = {"GET": Action.PULL, "HEAD": Action.PULL, "PUT": Action.PUSH}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def encode(part: object) -> str:
    """A part of a token: JSON of a value, or a text as it is."""
    return b64(part.encode() if isinstance(part, str) else json.dumps(part).encode())


def sign(key: SigningKey, header: object, payload: object) -> str:
    """A token of these very parts with this key's signature, whatever they say."""
    signed = f"{encode(header)}.{encode(payload)}"
    return f"{signed}.{b64(make_signature(key.material, signed.encode()))}"


def make_signature(material: Ed25519PrivateKey | bytes, signed: bytes) -> bytes:
    if isinstance(material, bytes):
        return hmac.new(material, signed, hashlib.sha256).digest()
    return material.sign(signed)


@dataclass(frozen=True)
class Door:
    """One kind of JSON Web Token, and a route that takes it."""

    name: str
    key: SigningKey = field(repr=False)
    audience: Audience
    subject: str
    http: httpx2.AsyncClient = field(repr=False)
    method: str
    path: str
    claims: dict[str, object] = field(default_factory=dict)
    body: dict[str, object] | None = None

    def payload(self, **changes: object) -> dict[str, object]:
        """What a good token says, but for the changes; None takes a claim out."""
        now = int(time.time())
        said = {"iss": "nimbus", "sub": self.subject, "aud": str(self.audience), "iat": now, "nbf": now}
        said |= {"exp": now + 60} | self.claims | changes
        return {name: value for name, value in said.items() if value is not None}

    def header(self, **changes: object) -> dict[str, object]:
        said = {"alg": self.key.algorithm, "typ": "JWT", "kid": self.key.kid} | changes
        return {name: value for name, value in said.items() if value is not None}

    def token(self, **changes: object) -> str:
        """Rightly signed, whatever it says."""
        return sign(self.key, self.header(), self.payload(**changes))

    async def show(self, token: str) -> int:
        return (await self.knock({"Authorization": f"Bearer {token}"})).status_code

    async def knock(self, headers: dict[str, str], path: str | None = None) -> httpx2.Response:
        return await self.http.request(self.method, path or self.path, headers=headers, json=self.body)


@dataclass(frozen=True)
class Doors:
    """All of them. `store` takes cache tokens: `store/org-1`, by GET, PUT and DELETE."""

    plane: Plane
    jwt: tuple[Door, ...]
    side: httpx2.AsyncClient
    cache_keys: list[CacheKey]
    revoked: RevokedTokens  # as the logging pipeline knows them

    async def reach(self, token: str, name: str = "org-1", method: str = "GET") -> int:
        return (await self.side.request(method, f"/store/{name}", headers=bearer(token))).status_code


@asynccontextmanager
async def reopened(services: Services) -> AsyncIterator[Plane]:
    """A control plane on services that a test has changed, beside the one that they are of."""
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(serve_app, build_control_plane(services), ["127.0.0.1:0"], trio.Event())
        async with open_http(binds[0]) as http:
            yield Plane(services, http, binds[0])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_doors(plane: Plane) -> AsyncIterator[Doors]:
    """Every door, for as long as the body runs."""
    cache_keys = [CACHE_KEY]
    async with trio.open_nursery() as nursery:
        revoked = RevokedTokens(Asked(plane.http, "", hmac_key(ADMIN_SECRET)), 1.0, lambda: None)
        nursery.start_soon(revoked.run)
        while revoked.state == "none":  # noqa: ASYNC110 - readers are let in once the first list is here
            await trio.sleep(0.01)
        app = build_side(plane, cache_keys, revoked)
        binds = await nursery.start(serve_app, app, ["127.0.0.1:0"], plane.services.stopping)
        async with open_http(binds[0]) as side:
            yield Doors(plane, tuple(plan_doors(plane, side)), side, cache_keys, revoked)
        nursery.cancel_scope.cancel()


def plan_doors(plane: Plane, side: httpx2.AsyncClient) -> list[Door]:
    admin, enrolment = hmac_key(ADMIN_SECRET), hmac_key(AGENT_SECRET)
    ring = plane.services.keys.current
    machine: dict[str, object] = {"org_id": 1, "machine_id": 1, "fence": 1, "agent_id": "a"}
    http = plane.http
    agent, log = ring.signing(Purpose.AGENT), ring.signing(Purpose.MACHINE)
    return [
        Door("admin", admin, Audience.ADMIN, "alice", http, "GET", "/api/status", {"role": "read"}),
        Door("internal", admin, Audience.INTERNAL, "service:x", http, "GET", "/api/internal/leases/1/1"),
        Door("enrolment", enrolment, Audience.AGENT_ENROLMENT, "a", http, "POST", "/api/agents/enrol", {}, ENROLMENT),
        Door("agent", agent, Audience.AGENT, "a", http, "POST", "/api/machines/1/renew", {}, RENEWAL),
        Door("machine", log, Audience.LOGS, "machine:1", side, "POST", "/machine", machine),
        Door("reader", admin, Audience.LOGS_READ, "alice", side, "GET", "/reader"),
        Door("lease", agent, Audience.AGENT, "a", http, "POST", "/api/agents/lease", {}, LOOK),  # past the framework
    ]  # fmt: skip


def build_side(plane: Plane, cache_keys: list[CacheKey], revoked: RevokedTokens) -> App:
    """What the logging pipeline and a store do with a token before anything else."""
    app = build_app("tests.doors")
    access = Access(KeySet(plane.http, "/.well-known/jwks.json"), revoked, (hmac_key(ADMIN_SECRET),))
    liveness = Liveness(plane.http, mint_question, cache_s=0)

    @app.post("/machine")
    async def machine() -> Response:
        return json_response({"machine_id": (await access.read_machine()).machine_id})

    @app.get("/reader")
    async def reader() -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"subject": access.read_reader().subject})

    @app.route("/store/<path:name>", methods=["GET", "PUT", "DELETE"])
    async def store(name: str) -> Response:
        token = parse_bearer(request.headers.get("Authorization"))
        claims = verify_cache_token(token, cache_keys, audience=Audience.CACHE, now_s=time.time())
        claims.require(find_wanted(request.method, name))
        await liveness.require(claims, writes=request.method != "GET")
        return json_response({"org_id": claims.org_id})

    return app


def mint_question() -> str:
    key = hmac_key(ADMIN_SECRET)
    return render_token(key, subject="service:cache", audience=Audience.INTERNAL, now_s=time.time(), ttl_s=60)


def find_wanted(method: str, name: str) -> Scope:
    """What the request wants, as a scope that must be held."""
    if method not in _ACTIONS:
        raise Forbidden(f"no scope includes {method}")
    try:
        return parse_scope(f"{_ACTIONS[method]}:{name}")
    except Refused as error:
        raise NotFound("there is no such store") from error


def cache_token(org_id: int = 1, **changes: object) -> str:
    claims = plan_claims(org_id, now_s=time.time(), ttl_s=60)
    return render_cache_token(CACHE_KEY, replace(claims, **changes))  # type: ignore[arg-type]


def forge_cache_token(payload: object, kid: str = CACHE_KEY.kid) -> str:
    """The right MAC over a payload that we would not write."""
    signed = f"v1.{kid}.{encode(payload)}"
    return f"{signed}.{b64(make_signature(CACHE_KEY.material, signed.encode()))}"


def cache_payload(**changes: object) -> dict[str, object]:
    now = int(time.time())
    said = {"scopes": ["pull:org-1"], "org_id": 1, "aud": ["nimbus-cache"], "nbf": now, "exp": now + 60} | changes
    return {name: value for name, value in said.items() if value is not None}


async def statuses(doors: Doors, **changes: object) -> dict[str, int]:
    """What each door answers to its own token with these changes."""
    return {door.name: await door.show(door.token(**changes)) for door in doors.jwt}


def everywhere(doors: Doors, status: int) -> dict[str, int]:
    return {door.name: status for door in doors.jwt}
