"""The routes of masks: what an org registers to be hidden, and the one route that tells it, to services.

Thin: reads the token and the body, calls masks.py, renders.
"""

from __future__ import annotations

from quart import Blueprint

from nimbus.control_plane.access import read_caller, read_service, read_writer
from nimbus.control_plane.openapi.masks import LIST_MASKS, READ_MASKS, REMOVE_MASK, SET_MASK
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.orgs.masks import drop_mask, list_masks, parse_mask, read_masks, set_mask
from nimbus.control_plane.services import Services
from nimbus.runtime.serving import Response, json_response, read_body


def build_masks_api(services: Services) -> Blueprint:
    """The routes under /api/orgs/<org>/masks, and the services' own."""
    blueprint = Blueprint("masks", __name__)

    @blueprint.get("/api/orgs/<name>/masks")
    @declare(LIST_MASKS)
    async def index(name: str) -> Response:
        caller = read_caller(services.access)
        return json_response({"masks": await list_masks(services, name, caller)})

    @blueprint.put("/api/orgs/<name>/masks/<mask>")
    @declare(SET_MASK)
    async def put(name: str, mask: str) -> Response:
        caller = await read_writer(services)
        return json_response(await set_mask(services, name, parse_mask(await read_body(), mask), caller))

    @blueprint.delete("/api/orgs/<name>/masks/<mask>")
    @declare(REMOVE_MASK)
    async def delete(name: str, mask: str) -> Response:
        caller = await read_writer(services)
        await drop_mask(services, name, mask, caller)
        return json_response({"name": mask, "removed": True})

    @blueprint.get("/api/internal/orgs/<int:org_id>/masks")
    @declare(READ_MASKS)
    async def read(org_id: int) -> Response:
        read_service(services.access)
        return json_response({"org_id": org_id, "values": await read_masks(services, org_id)})

    return blueprint
