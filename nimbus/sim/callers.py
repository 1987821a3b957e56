"""What every route of the sim reads from its caller: the bearer token and the raw body."""

from __future__ import annotations

from typing import cast

from quart import request

from nimbus.model.errors import Unauthorized


def read_bearer() -> str:
    """The token of the Authorization header, under either word that GitHub takes."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() not in {"bearer", "token"} or not token.strip():
        raise Unauthorized("Requires authentication")
    return token.strip()


async def read_body() -> bytes:
    return cast("bytes", await request.get_data())  # it is text only where text is asked for
