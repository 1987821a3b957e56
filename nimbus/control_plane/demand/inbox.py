"""The inbox: deliveries that are stored get processed, each once, in the order of their arrival as far as it goes.

Several processes share it. One takes some at a time: jobs of other hosts are settled together, the others are claimed
and processed one by one, so that a delivery whose process dies is due again when the claim ends. What fails is tried
later and later, and given up after MAX_ATTEMPTS. Settled deliveries are forgotten after a while. It never talks to
GitHub. forge.py runs `serve_inbox` and `sweep_inbox`; tests call `drain_inbox`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog
import trio

from nimbus.control_plane.demand.admission import announce
from nimbus.control_plane.demand.demand import DemandRules, Recorded, find_foreign, record_event
from nimbus.control_plane.demand.installation_events import take_installation
from nimbus.control_plane.demand.intake import SETTLED, DeliveryState
from nimbus.control_plane.demand.webhooks import INSTALLATIONS, WORKFLOW_JOB
from nimbus.control_plane.rounds import begin_round
from nimbus.control_plane.services import DELIVERIES, Services
from nimbus.model.errors import Refused, Unavailable
from nimbus.model.job import Learned
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.github import WorkflowJobEvent, parse_json_object, parse_workflow_job
from nimbus.wire.installation import read_installation

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "webhooks.sql")

AT_ONCE = 3  # of one process: the other connections of its pool are for those who wait for an answer
TAKEN_AT_ONCE = 64
PACE_S = 0.05  # between two looks while deliveries pour in: each look is a transaction, and the answers go first
TAKEN_BODY_BYTES = 256 * 1024  # a larger body is read when its turn comes
MAX_ATTEMPTS = 10
RELEASE_S = 2.0
FORGET_BATCH = 500
ROUND = "inbox"
FAILED_KEPT_S = 30 * 86400.0  # what was given up is worth a look for longer


@dataclass(frozen=True)
class InboxRules:
    """When deliveries are looked for, tried again and forgotten."""

    retention_s: float = 7 * 86400.0  # of settled ones
    look_s: float = 5.0  # a process looks this often though nothing rings: for retries, and for what others left
    claim_s: float = 20.0  # longer than a transaction may last; so late is a delivery at most whose process died
    retry_s: float = 5.0  # the first retry; the n-th comes after n*n times that
    sweep_s: float = 60.0


DEFAULTS = InboxRules()


@dataclass(frozen=True)
class Outcome:
    """What became of a delivery. `again`: somebody else had settled it."""

    state: DeliveryState
    again: bool = False
    recorded: Recorded | None = None


async def serve_inbox(services: Services, rules: DemandRules, inbox: InboxRules = DEFAULTS) -> None:
    """Process what is stored until cancelled: as soon as it is stored, or at the next look."""
    with services.bell.listen(DELIVERIES) as ear:
        async with _open_workers(services, rules, inbox) as feed:
            while True:
                try:
                    taken = await _take_and_feed(services, rules, inbox, feed)
                except Unavailable as error:
                    log.warning("inbox.postponed", reason=str(error))
                    taken = 0
                if taken < TAKEN_AT_ONCE:
                    await trio.sleep(PACE_S if taken else 0)
                    with trio.move_on_after(inbox.look_s):
                        await ear.wait()
                else:
                    await services.bell.ring(DELIVERIES)  # there is more than this process can take at once


async def drain_inbox(services: Services, rules: DemandRules, inbox: InboxRules = DEFAULTS) -> int:
    """Process all that is due now, and return when that is done; how many."""
    drained = 0
    async with _open_workers(services, rules, inbox) as feed:
        while taken := await _take_and_feed(services, rules, inbox, feed):
            drained += taken
    return drained


@asynccontextmanager
async def _open_workers(
    services: Services, rules: DemandRules, inbox: InboxRules
) -> AsyncIterator[trio.MemorySendChannel[str]]:
    """AT_ONCE tasks that process what is fed to them; when the body is done they finish."""
    send, receive = trio.open_memory_channel[str](0)
    async with trio.open_nursery() as nursery, send, receive:
        for _ in range(AT_ONCE):
            nursery.start_soon(_work, services, rules, inbox, receive.clone())
        yield send


async def _work(
    services: Services, rules: DemandRules, inbox: InboxRules, receive: trio.MemoryReceiveChannel[str]
) -> None:
    async with receive:
        async for guid in receive:
            try:
                await process_delivery(services, guid, rules, inbox)
            except Unavailable as error:
                log.warning("inbox.delivery_postponed", guid=guid, reason=str(error))
            except Exception:
                # at the task's edge: one delivery that cannot be processed must not keep the others back
                log.exception("inbox.delivery_failed", guid=guid)


async def _take_and_feed(
    services: Services, rules: DemandRules, inbox: InboxRules, feed: trio.MemorySendChannel[str]
) -> int:
    """Settle or claim the next ones, and hand these to the workers, in the order of their arrival; how many in all."""
    claimed, ignored = await services.database.run(_take, rules, inbox)
    services.metrics.deliveries.labels(DeliveryState.IGNORED).inc(ignored)
    begun = 0
    try:
        for guid in claimed:
            await feed.send(guid)
            begun += 1
    finally:
        if begun < len(claimed):
            with trio.move_on_after(RELEASE_S, shield=True):
                await _release(services, claimed[begun:])
    return len(claimed) + ignored


async def _release(services: Services, guids: Sequence[str]) -> None:
    try:
        await services.database.run(_give_back, list(guids))
    except Unavailable as error:
        log.warning("inbox.not_released", reason=str(error))  # the claims end by themselves


async def _take(transaction: Transaction, rules: DemandRules, inbox: InboxRules) -> tuple[list[str], int]:
    """The GUIDs that are claimed now, and how many were settled at once."""
    rows = await transaction.fetch(_SQL["next"], MAX_ATTEMPTS, TAKEN_AT_ONCE, TAKEN_BODY_BYTES)
    events = {row["guid"]: event for row in rows if (event := _read_job(row)) is not None}
    foreign = {id(event) for event in await find_foreign(transaction, list(events.values()), rules)}
    ignored = [guid for guid, event in events.items() if id(event) in foreign]
    claimed = [row["guid"] for row in rows if row["guid"] not in set(ignored)]
    if ignored:
        await transaction.execute(_SQL["ignore"], ignored)
    if claimed:
        await transaction.execute(_SQL["claim"], claimed, inbox.claim_s, inbox.retry_s)
    return claimed, len(ignored)


def _read_job(row: Row) -> WorkflowJobEvent | None:
    """The event of a `workflow_job`; None where its own transaction has to look at it."""
    if row["event"] != WORKFLOW_JOB or row["body"] is None:
        return None
    try:
        return parse_workflow_job(bytes(row["body"]))
    except Refused:
        return None


async def _give_back(transaction: Transaction, guids: list[str]) -> None:
    await transaction.execute(_SQL["release"], guids)


# --- one delivery -------------------------------------------------------------------------------------------------


async def process_delivery(services: Services, guid: str, rules: DemandRules, inbox: InboxRules = DEFAULTS) -> Outcome:
    """Process one delivery of the inbox in one transaction; a failure is noted and comes out again."""
    problem: Exception | None = None
    try:
        outcome = await services.database.run(_process, guid, rules)
    except Unavailable:
        raise  # the row stays as it is until its claim ends
    except Exception as error:  # noqa: BLE001 -- raised again below, once the inbox knows of it
        problem = error
    if problem is not None:
        services.metrics.deliveries.labels(DeliveryState.FAILED).inc()
        await services.database.run(_fail, guid, f"{type(problem).__name__}: {problem}"[:500], inbox)
        raise problem
    if not outcome.again:
        services.metrics.deliveries.labels(outcome.state).inc()
        return replace(outcome, recorded=await _announce(services, guid, outcome, rules))
    return outcome


async def _announce(services: Services, guid: str, outcome: Outcome, rules: DemandRules) -> Recorded | None:
    if outcome.recorded is None:
        log.info("webhook.processed", guid=guid, state=str(outcome.state))
        return None
    recorded = await announce(services, outcome.recorded, rules)
    log.info(
        "webhook.processed", guid=guid, job=recorded.job_id, state=str(recorded.state), queued=recorded.queued,
        cancelled=recorded.cancelled,
    )  # fmt: skip
    return recorded


async def _process(transaction: Transaction, guid: str, rules: DemandRules) -> Outcome:
    row = await transaction.fetchrow(_SQL["lock"], guid)
    if row is None:
        raise LookupError(f"delivery {guid} is not in the inbox")
    state = DeliveryState(row["state"])
    if state in SETTLED:
        return Outcome(state, again=True)
    recorded, state = None, DeliveryState.IGNORED
    if row["event"] == WORKFLOW_JOB:
        recorded = await _take_job(transaction, row, rules)
        state = DeliveryState.IGNORED if recorded is None else DeliveryState.PROCESSED
    elif row["event"] in INSTALLATIONS:
        await take_installation(transaction, read_installation(parse_json_object(bytes(row["body"]))))
        state = DeliveryState.PROCESSED
    await transaction.execute(_SQL["settle"], guid, state)
    return Outcome(state, recorded=recorded)


async def _take_job(transaction: Transaction, row: Row, rules: DemandRules) -> Recorded | None:
    """None for a job that is not ours, or an action that we don't know."""
    event = parse_workflow_job(bytes(row["body"]))
    if event.told is None:
        return None
    learned = Learned.REDELIVERY if row["asked_again"] else Learned.WEBHOOK
    return await record_event(transaction, event, event.told, row["received_at"], rules, learned)


async def _fail(transaction: Transaction, guid: str, error: str, inbox: InboxRules) -> None:
    attempts = await transaction.fetchval(_SQL["fail"], guid, error.replace("\0", " "), inbox.retry_s)
    if attempts is not None and attempts >= MAX_ATTEMPTS:
        log.error("inbox.given_up", guid=guid, attempts=attempts)


# --- housekeeping -------------------------------------------------------------------------------------------------


async def sweep_inbox(services: Services, rules: InboxRules) -> None:
    """Give up what killed each process that tried it, and forget what is old, until cancelled."""
    while True:
        try:
            if await services.database.run(begin_round, ROUND, rules.sweep_s):
                await forget_deliveries(services, rules)
        except Unavailable as error:
            log.warning("inbox.sweep_postponed", reason=str(error))
        await trio.sleep(rules.sweep_s)


async def forget_deliveries(services: Services, rules: InboxRules) -> int:
    """Delete the deliveries that are older than they are kept, in batches that hold no lock for long; how many."""
    for guid in await services.database.run(_give_up):
        log.error("inbox.given_up", guid=guid, attempts=MAX_ATTEMPTS)
    forgotten = 0
    for query, args in (
        ("forget", (rules.retention_s, FORGET_BATCH)),
        ("forget_failed", (max(rules.retention_s, FAILED_KEPT_S), FORGET_BATCH, MAX_ATTEMPTS)),
    ):
        while count := await services.database.run(_forget, query, args):
            forgotten += count
    return forgotten


async def _give_up(transaction: Transaction) -> list[str]:
    return [row["guid"] for row in await transaction.fetch(_SQL["give_up"], MAX_ATTEMPTS)]


async def _forget(transaction: Transaction, query: str, args: tuple[float, ...]) -> int:
    done = await transaction.execute(_SQL[query], *args)
    return int(done.rpartition(" ")[2])


async def measure_inbox(services: Services) -> None:
    """Put what waits in the inbox into the metrics."""
    row = await services.database.run(_measure)
    for state in (DeliveryState.RECEIVED, DeliveryState.FAILED):
        services.metrics.deliveries_unfinished.labels(state).set(row[state])
    services.metrics.delivery_oldest_s.set(row["oldest_s"])


async def _measure(transaction: Transaction) -> Row:
    row = await transaction.fetchrow(_SQL["unfinished"], MAX_ATTEMPTS)
    assert row is not None  # noqa: S101 -- an aggregate has one row
    return row
