"""Which job a machine runs, for the service that keeps its output. Only reads; a GitHub runner has no job at first.

The answer names the org, so that whoever asks can hold it against the token the output came with. Called by app.py.
"""

from __future__ import annotations

from quart import Blueprint

from nimbus.control_plane.access import read_service
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.openapi.outputs import GET_MACHINE_JOB
from nimbus.control_plane.services import Services
from nimbus.model.errors import NotFound
from nimbus.runtime.postgres import load_queries
from nimbus.runtime.serving import Response, json_response
from nimbus.wire.vmjson import Json

_SQL = load_queries("nimbus.control_plane", "queries", "machinelinks.sql")
_MAX_ID = 2**63 - 1


def build_machinelinks_api(services: Services) -> Blueprint:
    """The one route below /api/internal/machines."""
    blueprint = Blueprint("machinelinks", __name__)

    @blueprint.get("/api/internal/machines/<int:machine_id>/<int:fence>/job")
    @declare(GET_MACHINE_JOB)
    async def job(machine_id: int, fence: int) -> Response:
        read_service(services.access)
        return json_response(await find_link(services, machine_id, fence))

    return blueprint


async def find_link(services: Services, machine_id: int, fence: int) -> Json:
    """The machine's job, null while there is none; NotFound for a lease that never was."""
    within = max(machine_id, fence) <= _MAX_ID
    found = await services.database.fetch(_SQL["link_of_lease"], machine_id, fence) if within else []
    if not found:
        raise NotFound(f"machine {machine_id} was never leased under fence {fence}")
    return dict(found[0])
