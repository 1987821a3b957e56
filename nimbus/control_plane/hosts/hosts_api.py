"""The operator's routes of hosts. Thin: reads the token and the body, calls hosts.py, renders.

No token of an org reaches them. The routes of the hosts' own agents are agents_api.py's.
"""

from __future__ import annotations

from quart import Blueprint, request

from nimbus.control_plane.access import Caller, read_caller, read_operator
from nimbus.control_plane.hosts.hosts import PAGE, forget_host, list_hosts, parse_wanted, show_host, want
from nimbus.control_plane.openapi.hosts import FORGET_HOST, GET_HOST, LIST_HOSTS, WANT_HOST
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.services import Services
from nimbus.model.errors import Forbidden, NotFound, Refused
from nimbus.runtime.serving import Response, json_response, read_body
from nimbus.wire.fields import is_storable

MAX_ID_CHARS = 128


def build_hosts_api(services: Services) -> Blueprint:
    """The routes under /api/agents that people use."""
    blueprint = Blueprint("hosts", __name__)

    @blueprint.get("/api/agents")
    @declare(LIST_HOSTS)
    async def index() -> Response:
        _read_viewer(services)
        after = request.args.get("after", "")
        if not is_storable(after, MAX_ID_CHARS):
            raise Refused("after must be the id of a host")
        hosts = await list_hosts(services, after)
        return json_response({"hosts": hosts, "next": hosts[-1]["agent_id"] if len(hosts) == PAGE else None})

    @blueprint.get("/api/agents/<path:agent_id>")
    @declare(GET_HOST)
    async def show(agent_id: str) -> Response:
        _read_viewer(services)
        return json_response(await show_host(services, _check_id(agent_id)))

    @blueprint.put("/api/agents/<path:agent_id>/wanted")
    @declare(WANT_HOST)
    async def wanted(agent_id: str) -> Response:
        caller = await read_operator(services)
        wish = parse_wanted(await read_body())
        return json_response(await want(services, _check_id(agent_id), wish, caller.subject))

    @blueprint.delete("/api/agents/<path:agent_id>")
    @declare(FORGET_HOST)
    async def forget(agent_id: str) -> Response:
        await read_operator(services)
        await forget_host(services, _check_id(agent_id))
        return json_response({"agent_id": agent_id, "forgotten": True})

    return blueprint


def _read_viewer(services: Services) -> Caller:
    """Whoever may look at hosts: the operator, also with a token that only reads."""
    caller = read_caller(services.access)
    if caller.org_id is not None:
        raise Forbidden("hosts belong to the operator: a token of one org does not reach them")
    return caller


def _check_id(agent_id: str) -> str:
    if not is_storable(agent_id, MAX_ID_CHARS):
        raise NotFound("there is no host of that name")
    return agent_id
