"""REST for the App itself, by its JWT: its installations, their tokens, its webhook's deliveries (facts 5.1, 5.2).

Paths, bodies and errors are GitHub's. It holds no state; `github_api.py` adds the routes.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

from quart import Blueprint, Response, request

from nimbus.model.errors import Forbidden, Refused
from nimbus.sim.deliveries import Delivery
from nimbus.sim.payloads import Json, iso_time, render_installation
from nimbus.sim.rest import SUSPENDED, enter_app, link_header, page_of, page_size, read_json, reply
from nimbus.sim.world import World

_CURSOR = "v1_"


def add_app_routes(blueprint: Blueprint, world: World) -> None:
    """Installations, tokens and deliveries."""
    _add_installation_routes(blueprint, world)
    _add_hook_routes(blueprint, world)


def _add_installation_routes(blueprint: Blueprint, world: World) -> None:
    app_id = world.plan.app_id

    @blueprint.get("/app/installations")
    async def list_installations() -> Response:
        enter_app(world)
        there = [account for account in world.accounts if not account.removed]
        page, links = page_of([render_installation(account, app_id) for account in there])
        return reply(page, headers=links)

    @blueprint.get("/app/installations/<int:installation_id>")
    async def show_installation(installation_id: int) -> Response:
        enter_app(world)
        return reply(render_installation(world.accounts.installation(installation_id), app_id))

    @blueprint.get("/orgs/<owner>/installation")
    @blueprint.get("/repos/<owner>/<repo>/installation")
    async def find_installation(owner: str, repo: str = "") -> Response:
        del repo  # the App is installed on all repositories
        enter_app(world)
        return reply(render_installation(world.accounts.installed(owner), app_id))

    @blueprint.post("/app/installations/<int:installation_id>/access_tokens")
    async def mint_token(installation_id: int) -> Response:
        enter_app(world)
        account = world.accounts.installation(installation_id)
        if account.suspended_at_s is not None:
            raise Forbidden(SUSPENDED)
        asked = await read_json()
        minted = world.auth.mint(installation_id, asked.get("permissions"), asked.get("repositories"))
        body = {
            "token": minted.token,
            "expires_at": iso_time(minted.expires_at_s),
            "permissions": dict(minted.permissions),
            "repository_selection": "all" if minted.repositories is None else "selected",
        }
        return reply(body, 201)


def _add_hook_routes(blueprint: Blueprint, world: World) -> None:
    deliveries = world.deliveries

    @blueprint.get("/app/hook/deliveries")
    async def list_deliveries() -> Response:
        enter_app(world)
        count = page_size()
        found = deliveries.newest(count + 1, _before())
        page = found[:count]
        links = link_header({"next": {"cursor": f"{_CURSOR}{page[-1].delivery_id}"}} if len(found) > count else {})
        return reply([_render_delivery(each) for each in page], headers=links)

    @blueprint.post("/app/hook/deliveries/<int:delivery_id>/attempts")
    async def redeliver(delivery_id: int) -> Response:
        enter_app(world)
        deliveries.redeliver(delivery_id)
        return reply({}, 202)


def _before() -> int | None:
    """The delivery after which the page begins: a cursor is opaque to its reader, and an id will do too."""
    cursor = request.args.get("cursor", "").removeprefix(_CURSOR)
    if not cursor:
        return None
    if not cursor.isascii() or not cursor.isdigit():
        raise Refused("Invalid cursor")
    return int(cursor)


def _render_delivery(delivery: Delivery) -> Json:
    return {
        "id": delivery.delivery_id,
        "guid": delivery.guid,
        "delivered_at": iso_time(delivery.delivered_at_s),
        "redelivery": delivery.redelivery,
        "duration": round(delivery.duration_s, 3),
        "status": delivery.status,
        "status_code": delivery.status_code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation_id,
        "repository_id": None,
    }
