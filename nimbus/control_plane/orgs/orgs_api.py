"""The routes of orgs: caps, runner group, labels. Thin: reads the token and the body, calls orgs.py, renders."""

from __future__ import annotations

from quart import Blueprint

from nimbus.control_plane.access import read_caller, read_writer
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.openapi.orgs import GET_ORG, LIMIT_ORG, LIST_LABELS, LIST_ORGS, REMOVE_LABEL, SET_LABEL
from nimbus.control_plane.orgs.orgs import (
    drop_label,
    limit_org,
    list_labels,
    list_orgs,
    parse_alias,
    parse_change,
    set_label,
    show_org,
)
from nimbus.control_plane.services import Services
from nimbus.runtime.serving import Response, json_response, read_body


def build_orgs_api(services: Services, rules: DemandRules) -> Blueprint:
    """The routes under /api/orgs. `name` is our id of the org or its login."""
    blueprint = Blueprint("orgs", __name__)
    access = services.access

    @blueprint.get("/api/orgs")
    @declare(LIST_ORGS)
    async def index() -> Response:
        caller = read_caller(access)
        return json_response({"orgs": await list_orgs(services, caller)})

    @blueprint.get("/api/orgs/<name>")
    @declare(GET_ORG)
    async def show(name: str) -> Response:
        caller = read_caller(access)
        return json_response(await show_org(services, name, caller))

    @blueprint.patch("/api/orgs/<name>")
    @declare(LIMIT_ORG)
    async def limit(name: str) -> Response:
        caller = await read_writer(services)
        return json_response(await limit_org(services, name, parse_change(await read_body()), caller))

    @blueprint.get("/api/orgs/<name>/labels")
    @declare(LIST_LABELS)
    async def labels(name: str) -> Response:
        caller = read_caller(access)
        return json_response({"labels": await list_labels(services, name, caller)})

    @blueprint.put("/api/orgs/<name>/labels/<alias>")
    @declare(SET_LABEL)
    async def put_label(name: str, alias: str) -> Response:
        caller = await read_writer(services)
        capped = parse_alias(await read_body(), alias, rules.labels)
        return json_response(await set_label(services, name, capped, rules, caller))

    @blueprint.delete("/api/orgs/<name>/labels/<alias>")
    @declare(REMOVE_LABEL)
    async def delete_label(name: str, alias: str) -> Response:
        caller = await read_writer(services)
        await drop_label(services, name, alias, rules, caller)
        return json_response({"label": alias.lower(), "removed": True})

    return blueprint
