"""The routes of keys: the public key set for whoever verifies, and the operator's list, rotation and revocation.

Thin: reads the token and the body, calls rotation.py, renders. Never shows a private key or a shared secret.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import trio
from quart import Blueprint, request

from nimbus.control_plane.access import read_caller, read_operator
from nimbus.control_plane.keys.ring import KeyRing, Purpose, RingKey, Role
from nimbus.control_plane.keys.rotation import Revocation, Rotation, revoke_key, rotate_keys
from nimbus.control_plane.openapi.keys import GET_PUBLIC_KEYS, LIST_KEYS, MAX_KID_CHARS, REVOKE_KEY, ROTATE_KEYS
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.services import Services
from nimbus.model.errors import Forbidden
from nimbus.runtime.answers import render_json
from nimbus.runtime.serving import Response, json_response, read_body
from nimbus.wire.fields import parse_object
from nimbus.wire.tokens import render_jwks

Json = dict[str, Any]
_TIMELESS = {"since_ms": None, "until_ms": None}  # of what is given: nobody told us when it came


def build_keys_api(services: Services) -> Blueprint:
    """The key set, and the routes under /api/admin/keys."""
    blueprint = Blueprint("keys", __name__)

    @blueprint.get("/.well-known/jwks.json")
    @declare(GET_PUBLIC_KEYS)
    async def jwks() -> Response:
        await trio.lowlevel.checkpoint()
        body = render_json(render_jwks(services.keys.current.published())).encode()
        tag = hashlib.sha256(body).hexdigest()[:32]
        headers = {"Cache-Control": f"public, max-age={services.keys.terms.jwks_max_age_s}", "ETag": f'"{tag}"'}
        if request.if_none_match.contains_weak(tag):
            return Response(status=304, headers=headers)
        return Response(body, headers=headers, content_type="application/json")

    @blueprint.get("/api/admin/keys")
    @declare(LIST_KEYS)
    async def index() -> Response:
        caller = read_caller(services.access)
        if caller.org_id is not None or not caller.may_write:
            raise Forbidden("keys are for the operator: a token with role=admin and of no org is needed")
        await services.keys.refresh()
        return json_response(render_keys(services))

    @blueprint.post("/api/admin/keys/rotate")
    @declare(ROTATE_KEYS)
    async def rotate() -> Response:
        await read_operator(services)
        purposes = parse_rotation(await read_body())
        rotations = await rotate_keys(services, purposes)
        return json_response({"rotations": [render_rotation(each) for each in rotations]})

    @blueprint.post("/api/admin/keys/revoke")
    @declare(REVOKE_KEY)
    async def revoke() -> Response:
        await read_operator(services)
        revocation = await revoke_key(services, parse_revocation(await read_body()))
        return json_response(render_revocation(revocation))

    return blueprint


# --- bodies ------------------------------------------------------------------------------------------------------


def parse_rotation(body: bytes) -> tuple[Purpose, ...]:
    """The families to rotate: the one that is named, or all."""
    fields = parse_object(body or b"{}", "the rotation")
    fields.refuse_unknown({"family"})
    return (fields.choice("family", Purpose),) if fields.has("family") else tuple(Purpose)


def parse_revocation(body: bytes) -> str:
    """The id of the key to revoke."""
    fields = parse_object(body, "the revocation")
    fields.refuse_unknown({"kid"})
    return fields.text("kid", MAX_KID_CHARS)


def render_keys(services: Services) -> Json:
    """Every key by what it is now, the shared secrets' too. Times are Unix milliseconds."""
    ring = services.keys.current
    shared = [
        {"family": key.family, "kid": key.kid, "role": key.role, "source": key.variable} | _TIMELESS
        for key in services.access.shared_keys
    ]
    source = "NIMBUS_SIGNING_KEY" if services.keys.given else "database"
    return {"keys": [render_key(ring, key, source) for key in ring.keys] + shared}


def render_key(ring: KeyRing, key: RingKey, source: str) -> Json:
    """A key with when it began or will begin to sign, and when nothing of it is accepted any more."""
    role = ring.role(key)
    given = source != "database"
    return {
        "family": key.purpose,
        "kid": key.verify.kid,
        "role": role,
        "source": source + {Role.NEXT: "_NEXT", Role.PREVIOUS: "_PREVIOUS"}.get(role, "") if given else source,
        "since_ms": None if given else _unix_ms(key.signs_from_s),
        "until_ms": _unix_ms(key.accepted_until_s),
    }


def render_rotation(rotation: Rotation) -> Json:
    """What comes, and in how many seconds."""
    return {
        "family": rotation.purpose,
        "kid": rotation.kid,
        "signs_in_s": max(rotation.signs_in_s, 0.0),
        "made": rotation.made,
    }


def render_revocation(revocation: Revocation) -> Json:
    """What is over, and what signs in its stead."""
    return {
        "family": revocation.purpose,
        "kid": revocation.kid,
        "was": revocation.was,
        "signs": revocation.signs,
    }


def _unix_ms(moment_s: float | None) -> int | None:
    return None if moment_s is None or math.isinf(moment_s) else round(moment_s * 1000)
