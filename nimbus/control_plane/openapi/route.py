"""`GET /api/openapi.json`: the document of the application that serves it. Public: no secret is in it.

Called by app.py.
"""

from __future__ import annotations

import hashlib
from functools import cache

import trio
from quart import Blueprint, request

from nimbus.control_plane.openapi.document import build_document
from nimbus.control_plane.openapi.health import GET_DOCUMENT
from nimbus.control_plane.openapi.operation import declare
from nimbus.runtime.answers import render_json
from nimbus.runtime.serving import App, Response

PATH = "/api/openapi.json"


def build_document_api(app: App) -> Blueprint:
    """The route. The document is made when it is first asked for, when every route is there."""
    blueprint = Blueprint("openapi", __name__)

    @cache
    def render() -> tuple[str, str]:
        text = render_json(build_document(app))
        return text, hashlib.sha256(text.encode()).hexdigest()

    @blueprint.get(PATH)
    @declare(GET_DOCUMENT)
    async def document() -> Response:
        await trio.lowlevel.checkpoint()
        text, digest = render()
        if digest in request.if_none_match:
            response = Response(status=304)
        else:
            response = Response(text, content_type="application/json")
        response.set_etag(digest)
        response.headers["Cache-Control"] = "no-cache"
        return response

    return blueprint
