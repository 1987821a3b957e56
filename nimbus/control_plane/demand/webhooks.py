"""GitHub's webhooks: verified, parsed far enough to refuse nonsense, stored, answered. Step 1 of the straight line.

The answer says only that the delivery is committed; inbox.py processes it afterwards, so GitHub's ten seconds are
never spent on our work. A GUID that is in the inbox already changes nothing, unless its processing had failed. It
never talks to GitHub. forge.py registers the routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog
import trio
from quart import Blueprint, Response, request

from nimbus.control_plane.demand.intake import SETTLED, Arrival, DeliveryState, Intake
from nimbus.control_plane.metrics import Metrics
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.openapi.webhooks import TAKE_DELIVERY
from nimbus.control_plane.services import Services
from nimbus.model.errors import Refused, Unauthorized
from nimbus.runtime.direct import DirectRoute
from nimbus.runtime.serving import App, json_response, read_body
from nimbus.wire.github import (
    WebhookHeaders,
    check_timestamp,
    installation_id,
    parse_json_object,
    parse_webhook_headers,
    read_workflow_job,
    verify_signature,
)
from nimbus.wire.installation import read_installation

log = structlog.get_logger()

PATHS = ("/webhooks/github", "/api/webhooks/github")
WORKFLOW_JOB = "workflow_job"
INSTALLATIONS = frozenset({"installation", "installation_repositories"})
_PING = "ping"
_HEARD: Mapping[str, Callable[[dict[str, object]], object]] = {
    WORKFLOW_JOB: read_workflow_job,
    **dict.fromkeys(INSTALLATIONS, read_installation),
}
_REASON = f"Nimbus listens to {', '.join(_HEARD)} and {_PING}: leave the others out in the App's settings"
_ACTION_CHARS = 64


@dataclass(frozen=True)
class WebhookRules:
    """What a delivery must show before it is believed."""

    secrets: tuple[str, ...] = field(repr=False)  # the current one and, during a rotation, the previous
    timestamp_required: bool = False  # GitHub sends none: only behind a relay that adds it
    timestamp_tolerance_s: float = 300.0
    large_at_once: int = 8  # bodies that the direct route leaves alone: anybody may send one, signed or not


def register_webhooks(app: App, services: Services, rules: WebhookRules, intake: Intake) -> None:
    """The webhook's route, under both of its addresses: by the framework, and without it where it may."""
    blueprint = Blueprint("webhooks", __name__)

    async def take_direct(headers: Mapping[str, str], body: bytes) -> tuple[int, object]:
        return await take(services, rules, intake, headers, body)

    places = trio.CapacityLimiter(rules.large_at_once)

    @declare(TAKE_DELIVERY)
    async def take_delivery() -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        async with places:  # while it waits its sender does, too: nothing is read beyond a small buffer
            status, answer = await take(services, rules, intake, headers, await read_body())
        return json_response(answer, status)

    for path in PATHS:
        blueprint.post(path)(take_delivery)
        app.direct[path] = DirectRoute(take_direct)
    app.register_blueprint(blueprint)


async def take(
    services: Services, rules: WebhookRules, intake: Intake, headers: Mapping[str, str], body: bytes
) -> tuple[int, dict[str, object]]:
    """Status and body of the answer to one delivery; what is not believed, or makes no sense, is raised.

    Names of `headers` are in lower case.
    """
    named = _verify(services.metrics, rules, headers, body)
    arrival = _read(services.metrics, named, body)
    if arrival is None:
        # a 4xx would be a failed delivery on GitHub's page, and be asked for again for ever
        answer = {"state": "pong"} if named.event == _PING else {"state": "ignored", "reason": _REASON}
        return 202, {"delivery": named.guid, "duplicate": False, **answer}
    stored = await intake.store(arrival)
    if stored.again:
        services.metrics.webhook_replays_blocked.inc()
        log.info("webhook.seen_before", guid=named.guid, state=str(stored.state))
    else:
        services.metrics.deliveries.labels(DeliveryState.RECEIVED).inc()
    settled = stored.state in SETTLED
    state = stored.state if settled else "stored"
    return (200 if settled else 202), {"delivery": named.guid, "state": state, "duplicate": stored.again}


def _verify(metrics: Metrics, rules: WebhookRules, headers: Mapping[str, str], body: bytes) -> WebhookHeaders:
    """Unauthorized before a byte of the body is believed or stored."""
    reason = "signature"
    try:
        verify_signature(rules.secrets, body, headers.get("x-hub-signature-256"))
        reason = "timestamp"
        timestamp = headers.get("x-hub-signature-timestamp")
        check_timestamp(timestamp, time.time(), rules.timestamp_tolerance_s, required=rules.timestamp_required)
    except Unauthorized:
        metrics.deliveries_refused.labels(reason).inc()
        raise
    try:
        return parse_webhook_headers(headers)
    except Refused:
        metrics.deliveries_refused.labels("headers").inc()
        raise


def _read(metrics: Metrics, named: WebhookHeaders, body: bytes) -> Arrival | None:
    """The delivery to store, None for an event that we don't listen to; Refused for what can never be processed."""
    try:
        top = parse_json_object(body)
        read = _HEARD.get(named.event)
        if read is None:
            return None
        read(top)
        return Arrival(named.guid, named.event, _storable(top.get("action")), body, installation_id(top))
    except Refused:
        metrics.deliveries_refused.labels("body").inc()
        raise


def _storable(action: object) -> str | None:
    return action[:_ACTION_CHARS] if isinstance(action, str) and action.isascii() and action.isprintable() else None
