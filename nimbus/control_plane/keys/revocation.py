"""Tokens that end before their time: with the lease they are bound to, or because an operator says so.

A lease's standing is asked by services that take its tokens; nothing is written for it, the machine's row is the
answer. Revoked ids are kept in the database until the token would have expired, and in each process's deny list, which
is read anew when the bell rings and every few seconds. Never sees a token, only its id. Called by app.py.
"""

from __future__ import annotations

import re

import structlog
import trio
from quart import Blueprint, request

from nimbus.control_plane.access import read_operator, read_service
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.openapi.tokens import GET_LEASE_STATE, LIST_REVOKED, REVOKE_TOKEN
from nimbus.control_plane.services import DENIALS, Services
from nimbus.model.errors import Refused, Unavailable
from nimbus.runtime.postgres import Transaction, load_queries
from nimbus.runtime.serving import Response, json_response, read_body
from nimbus.wire.fields import parse_object
from nimbus.wire.liveness import LeaseStanding, render_standing

log = structlog.get_logger()

_SQL = load_queries("nimbus.control_plane", "queries", "revocation.sql")
TOKEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
KEPT_LONGER_S = 3600.0  # than the token's own expiry: clocks differ, and tokens are taken for a while after it
_LATEST_S = 2**40


def build_revocation_api(services: Services) -> Blueprint:
    """What services ask about leases, and how an operator revokes a token."""
    blueprint = Blueprint("revocation", __name__)

    @blueprint.get("/api/internal/leases/<int:machine_id>/<int:fence>")
    @declare(GET_LEASE_STATE)
    async def lease(machine_id: int, fence: int) -> Response:
        read_service(services.access)
        return json_response(render_standing(await find_standing(services, machine_id, fence)))

    @blueprint.get("/api/internal/tokens/revoked")
    @declare(LIST_REVOKED)
    async def revoked() -> Response:
        read_service(services.access)
        await trio.lowlevel.checkpoint()
        denied = services.access.denied
        headers = {"ETag": f'"{denied.tag}"', "Cache-Control": "no-cache"}
        if denied.tag in request.if_none_match:
            return Response("", status=304, headers=headers)
        return json_response({"jtis": denied.ids}, headers=headers)

    @blueprint.post("/api/admin/tokens/revoke")
    @declare(REVOKE_TOKEN)
    async def revoke() -> Response:
        caller = await read_operator(services)
        token_id, expires_s = parse_revocation(await read_body())
        await revoke_token(services, token_id, expires_s, caller.subject)
        return json_response({"jti": token_id, "revoked": True})

    return blueprint


# --- leases -------------------------------------------------------------------------------------------------------


async def find_standing(services: Services, machine_id: int, fence: int) -> LeaseStanding:
    """Whether that lease is held right now. One that never was is as dead as one that ended."""
    rows = await services.database.fetch(_SQL["lease_standing"], machine_id, fence)
    if not rows:
        return LeaseStanding(alive=False)
    row = rows[0]
    if not row["alive"]:
        return LeaseStanding(alive=False, org_id=row["org_id"])
    return LeaseStanding(True, row["org_id"], row["until_ms"], max(row["left_s"], 0.0))


# --- revoked ids --------------------------------------------------------------------------------------------------


def parse_revocation(body: bytes) -> tuple[str, int | None]:
    """The token's id and, where the caller knows it, the second in which the token expires."""
    fields = parse_object(body, "revocation")
    fields.refuse_unknown({"jti", "exp"})
    token_id = fields.text("jti", 128)
    if TOKEN_ID.fullmatch(token_id) is None:
        raise Refused("jti is the id of a token: letters, digits and . _ : - only")
    return token_id, fields.integer("exp", 0, _LATEST_S) if fields.has("exp") else None


async def revoke_token(services: Services, token_id: str, expires_s: int | None, by: str) -> None:
    """From now on nobody takes that token: here at once, in other processes with the bell.

    Without an expiry the id is kept for good: a token that outlives it must not come back.
    """
    kept_until_s = None if expires_s is None else expires_s + KEPT_LONGER_S
    await services.database.run(_deny, token_id, kept_until_s, by)
    log.info("token.revoked", jti=token_id, by=by)
    await refresh_denied(services)
    await services.bell.ring(DENIALS)


async def _deny(transaction: Transaction, token_id: str, kept_until_s: float | None, by: str) -> None:
    await transaction.execute(_SQL["forget_expired"])
    await transaction.execute(_SQL["deny"], token_id, kept_until_s, by)


async def refresh_denied(services: Services) -> None:
    """Read the deny list anew."""
    rows = await services.database.fetch(_SQL["denied"])
    services.access.denied.replace(row["jti"] for row in rows)


async def follow_denied(services: Services) -> None:
    """Keep this process's deny list fresh until cancelled. While the database is away, what is known stays.

    Read with the bell, and as often as the keys are (NIMBUS_KEY_REFRESH_INTERVAL): where no bell was heard, another
    process may take a revoked token for as long.
    """
    with services.bell.listen(DENIALS) as ear:
        while True:
            try:
                await refresh_denied(services)
            except Unavailable as error:
                log.warning("denied.not_read", reason=str(error))
            with trio.move_on_after(services.keys.terms.refresh_s):
                await ear.wait()
