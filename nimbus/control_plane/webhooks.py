"""GitHub's webhooks: verified, parsed, put into the inbox, then processed. Step 1 of the straight line.

The inbox row is committed before anything else happens. A GUID that was processed is a no-op when it comes
again; one whose processing failed is processed again, by GitHub's redelivery or by the sweeper here. It never
talks to GitHub. app.py registers the routes and runs the sweeper.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field

import structlog
import trio
from quart import Blueprint, Response, request

from nimbus.control_plane.demand import DemandRules, Recorded, record_event
from nimbus.control_plane.services import MACHINES, RUNNERS, Services
from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Transaction, load_queries
from nimbus.runtime.serving import json_response, read_body
from nimbus.wire.github import (
    check_timestamp,
    installation_id,
    parse_json_object,
    parse_webhook_headers,
    parse_workflow_job,
    verify_signature,
)

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "webhooks.sql")

SWEEP_S = 5.0
RETRY_AFTER_S = 5.0  # the first retry; the n-th comes after n*n times that
MAX_ATTEMPTS = 10
_WORKFLOW_JOB = "workflow_job"
_ACTION_CHARS = 64


@dataclass(frozen=True)
class WebhookRules:
    """What a delivery must show before it is believed."""

    secrets: tuple[str, ...] = field(repr=False)  # the current one and, during a rotation, the previous
    timestamp_required: bool = False  # GitHub sends none: only behind a relay that adds it
    timestamp_tolerance_s: float = 300.0


class DeliveryState(enum.StrEnum):
    """Where a delivery stands in the inbox."""

    RECEIVED = "received"
    PROCESSED = "processed"
    FAILED = "failed"
    IGNORED = "ignored"  # recorded, and nothing to do


_SETTLED = frozenset({DeliveryState.PROCESSED, DeliveryState.IGNORED})


@dataclass(frozen=True)
class Outcome:
    """What became of a delivery. `again`: it had been settled before."""

    state: DeliveryState
    again: bool = False
    recorded: Recorded | None = None


def build_webhooks(services: Services, webhook_rules: WebhookRules, demand_rules: DemandRules) -> Blueprint:
    """The webhook's route, under both of its addresses."""
    blueprint = Blueprint("webhooks", __name__)

    @blueprint.post("/webhooks/github")
    @blueprint.post("/api/webhooks/github")
    async def take_delivery() -> Response:
        body = await read_body()
        _verify(webhook_rules, body)
        headers = parse_webhook_headers(dict(request.headers.items()))
        top = parse_json_object(body)
        if headers.event == _WORKFLOW_JOB:
            parse_workflow_job(body)  # what can never be processed is refused, not stored
        action = top.get("action")
        row = (headers.guid, headers.event, _storable(action), body, installation_id(top))
        await services.database.run(_store, row)
        outcome = await process_delivery(services, headers.guid, demand_rules)
        return json_response({"delivery": headers.guid, "state": outcome.state, "duplicate": outcome.again})

    return blueprint


def _verify(rules: WebhookRules, body: bytes) -> None:
    """Unauthorized before a byte of the body is believed or stored."""
    verify_signature(rules.secrets, body, request.headers.get("X-Hub-Signature-256"))
    timestamp = request.headers.get("X-Hub-Signature-Timestamp")
    check_timestamp(timestamp, time.time(), rules.timestamp_tolerance_s, required=rules.timestamp_required)


def _storable(action: object) -> str | None:
    return action[:_ACTION_CHARS] if isinstance(action, str) and action.isascii() and action.isprintable() else None


async def _store(transaction: Transaction, row: tuple[object, ...]) -> None:
    await transaction.execute(_SQL["store"], *row)


async def process_delivery(services: Services, guid: str, rules: DemandRules) -> Outcome:
    """Process one delivery of the inbox in one transaction; a failure is noted and comes out again."""
    problem: Exception | None = None
    try:
        outcome = await services.database.run(_process, guid, rules)
    except Unavailable:
        raise  # the row stays as it is, for the sweeper
    except Exception as error:  # noqa: BLE001 -- raised again below, once the inbox knows of it
        problem = error
    if problem is not None:
        # whatever went wrong, the inbox says so for the operator; a redelivery or the sweeper tries again
        await services.database.run(_fail, guid, f"{type(problem).__name__}: {problem}"[:500])
        raise problem
    if outcome.again:
        services.metrics.webhook_replays_blocked.inc()
        log.info("webhook.seen_before", guid=guid)
        return outcome
    await _announce(services, guid, outcome)
    return outcome


async def _announce(services: Services, guid: str, outcome: Outcome) -> None:
    recorded = outcome.recorded
    if recorded is None:
        log.info("webhook.ignored", guid=guid)
        return
    log.info(
        "webhook.processed", guid=guid, job=recorded.job_id, state=str(recorded.state), queued=recorded.queued,
        cancelled=recorded.cancelled,
    )  # fmt: skip
    if recorded.queued:
        await services.bell.ring(MACHINES)
    await services.bell.ring(RUNNERS)


async def _process(transaction: Transaction, guid: str, rules: DemandRules) -> Outcome:
    row = await transaction.fetchrow(_SQL["lock"], guid)
    if row is None:
        raise LookupError(f"delivery {guid} is not in the inbox")
    if DeliveryState(row["state"]) in _SETTLED:
        return Outcome(DeliveryState(row["state"]), again=True)
    recorded = None
    if row["event"] == _WORKFLOW_JOB:
        event = parse_workflow_job(bytes(row["body"]))
        if event.told is not None and rules.owns(event):
            recorded = await record_event(transaction, event, event.told, row["received_at"], rules)
    state = DeliveryState.IGNORED if recorded is None else DeliveryState.PROCESSED
    await transaction.execute(_SQL["settle"], guid, state)
    return Outcome(state, recorded=recorded)


async def _fail(transaction: Transaction, guid: str, error: str) -> None:
    await transaction.execute(_SQL["fail"], guid, error.replace("\0", " "))


async def retry_deliveries(services: Services, rules: DemandRules) -> int:
    """Process again what was left unfinished and is due; how many succeeded."""
    rows = await services.database.run(_unfinished)
    done = 0
    for guid in rows:
        try:
            await process_delivery(services, guid, rules)
            done += 1
        except Unavailable:
            raise
        except Exception:
            # at the task's edge: one delivery that cannot be processed must not keep the others back
            log.exception("webhook.failed_again", guid=guid)
    return done


async def _unfinished(transaction: Transaction) -> list[str]:
    return [row["guid"] for row in await transaction.fetch(_SQL["unfinished"], MAX_ATTEMPTS, RETRY_AFTER_S)]


async def sweep_deliveries(services: Services, rules: DemandRules) -> None:
    """Retry unfinished deliveries until cancelled."""
    while True:
        try:
            await retry_deliveries(services, rules)
        except Unavailable as error:
            log.warning("webhook.retry_postponed", reason=str(error))
        await trio.sleep(SWEEP_S)
