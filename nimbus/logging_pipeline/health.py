"""GET /healthz, /readyz and /metrics: whether we live, whether we can work, and whose trouble it is where not.

The store's trouble is told with who must act; ours is that we do not answer at all, or that a token cannot be checked.
"""

from __future__ import annotations

import trio
from quart import Blueprint, Response

from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.store.trouble import ACTIONS, Standing, Trouble
from nimbus.model.errors import Unavailable
from nimbus.runtime.serving import json_response

PING_S = 5.0
RETRY_AFTER_S = 1


def build_health_api(services: Services) -> Blueprint:
    """The routes that operators and load balancers ask."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    async def healthz() -> Response:
        await trio.lowlevel.checkpoint()  # answers only while the loop turns
        return json_response({"status": "ok"})

    @blueprint.get("/readyz")
    async def readyz() -> Response:
        standing = await find_standing(services)
        body = {
            "store": render_standing(standing),
            "keys": services.access.machine_keys.state,
            "revoked": services.access.revoked.state,
            "relay": services.hub.relay_state,
        }
        if standing.trouble is None:
            return json_response({"status": "ready", **body})
        message = f"the log store is in trouble, this service is not: {ACTIONS[standing.trouble]}"
        told = {"status": "not_ready", "error": "unavailable", "message": message, **body}
        return json_response(told, 503, {"Retry-After": str(RETRY_AFTER_S)})

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        await trio.lowlevel.checkpoint()
        services.access.require_metrics()
        services.metrics.followers.set(services.hub.followers)
        services.metrics.relay_up.set(services.hub.is_whole)
        services.metrics.store_up.set(services.table.health.standing.trouble is None)
        return Response(services.metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return blueprint


async def find_standing(services: Services) -> Standing:
    """How the store stands by its answer now; one that takes reads and no rows is in trouble all the same."""
    before = services.table.health.standing
    with trio.move_on_after(PING_S) as limit:
        try:
            await services.table.ping()
        except Unavailable:
            return services.table.health.standing
    if limit.cancelled_caught:
        return Standing(Trouble.SLOW, before.for_s)
    return services.table.health.standing


def render_standing(standing: Standing) -> dict[str, object]:
    if standing.trouble is None:
        return {"state": "ok"}
    return {"state": str(standing.trouble), "for_s": round(standing.for_s, 1), "do": ACTIONS[standing.trouble]}
