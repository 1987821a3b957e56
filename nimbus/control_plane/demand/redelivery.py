"""The second source of demand: deliveries that failed are asked for again. GitHub never does that by itself.

A round lists the App's deliveries back to where the last one began, keeps those of our events that failed and never
came, and asks for each of them until it comes: five times, later and later. That it was asked for is written before
it is. What comes of it comes in as a webhook, under the same GUID. forge.py runs it, as a duty; it judges no job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from nimbus.control_plane.duties import Duty
from nimbus.control_plane.github.client import GithubClient
from nimbus.control_plane.services import Services
from nimbus.model.errors import NotFound
from nimbus.model.forge import ForgeTrouble
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.githubrest import DeliverySeen

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "redelivery.sql")

NAME = "redelivery"
EVENTS = frozenset({"workflow_job", "installation", "installation_repositories"})
MAX_PAGES = 100  # ten thousand deliveries in one round; what is older then is found by the poll
OVERLAP = timedelta(minutes=1)  # GitHub lists a delivery once it has ended, which may take half a minute
MAX_ASKS = 5  # of one delivery
BATCH = 25
MAX_BATCHES = 10  # in one round: each ask is a write against the App's limit
_WATERMARK = "watermark"


@dataclass(frozen=True)
class RedeliveryRules:
    """How often to look, and how far back the first look goes. An interval of 0: never."""

    interval_s: float = 120.0
    window_s: float = 259_200.0  # GitHub keeps deliveries for three days


@dataclass(frozen=True)
class Judged:
    """One page of the list: what failed, by GUID, and what came through."""

    failed: tuple[DeliverySeen, ...]
    arrived: frozenset[str]


def judge_page(page: Iterable[DeliverySeen], arrived: frozenset[str]) -> Judged:
    """Pure: the newest failed attempt of each GUID of which no attempt, here or newer (`arrived`), succeeded."""
    ours = sorted((seen for seen in page if seen.event in EVENTS), key=lambda seen: seen.delivery_id)
    arrived |= {seen.guid for seen in ours if seen.ok}
    failed = {seen.guid: seen for seen in ours if seen.guid not in arrived}
    return Judged(tuple(failed.values()), arrived)


def plan_start(notes: object, now: datetime, window_s: float) -> datetime:
    """Pure: how far back to list. The watermark is by GitHub's clock, and the overlap larger than clocks differ."""
    oldest = now - timedelta(seconds=window_s)
    if not isinstance(notes, str):
        return oldest
    return max(oldest, datetime.fromisoformat(notes) - OVERLAP)


async def ask_again(services: Services, github: GithubClient, rules: RedeliveryRules, duty: Duty) -> int:
    """One round: list, keep what was missed, ask for it; how many were asked for."""
    start = plan_start(duty.notes.get(_WATERMARK), datetime.now(UTC), rules.window_s)
    newest = await _list_missed(services, github, start, duty)
    asked = await _ask(services, github, rules, duty)
    await services.database.run(_tidy, rules.window_s)
    if newest is not None:
        duty.notes = {_WATERMARK: newest.isoformat()}
    return asked


async def _list_missed(services: Services, github: GithubClient, start: datetime, duty: Duty) -> datetime | None:
    """Keep every missed delivery since `start`; when GitHub made the newest attempt of all."""
    cursor: str | None = None
    newest: datetime | None = None
    arrived: frozenset[str] = frozenset()
    for _ in range(MAX_PAGES):
        await duty.keep()
        try:
            page, cursor = await github.list_deliveries(cursor)
        except NotFound:  # the App has no webhook: nothing was to be delivered
            return newest
        newest = newest or max((seen.delivered_at for seen in page), default=None)
        judged = judge_page((seen for seen in page if seen.delivered_at >= start), arrived)
        arrived = judged.arrived
        await services.database.run(_note_missed, judged)
        if cursor is None or any(seen.delivered_at < start for seen in page):
            return newest
    log.warning("redelivery.list_too_long", pages=MAX_PAGES, since=start.isoformat())
    return newest


async def _note_missed(transaction: Transaction, judged: Judged) -> None:
    failed = judged.failed
    columns = (
        [seen.guid for seen in failed],
        [seen.delivery_id for seen in failed],
        [seen.delivered_at for seen in failed],
    )
    await transaction.execute(_SQL["note_missed"], *columns)
    await transaction.execute(_SQL["forget_arrived"], list(judged.arrived))


async def _ask(services: Services, github: GithubClient, rules: RedeliveryRules, duty: Duty) -> int:
    """Ask for what is due. Where GitHub stops us the round has still listed: the next one asks for the rest."""
    asked = 0
    for _ in range(MAX_BATCHES):
        batch = await services.database.run(_find_due, rules.interval_s)
        for row in batch:
            await duty.keep()
            trouble = await _redeliver(services, github, row)
            if trouble is not None:
                log.warning("redelivery.postponed", reason=str(trouble), asked=asked)
                return asked
            asked += 1
        if len(batch) < BATCH:
            break
    if asked:
        log.info("redelivery.asked", deliveries=asked)
    return asked


async def _redeliver(services: Services, github: GithubClient, row: Row) -> ForgeTrouble | None:
    guid = row["guid"]
    await services.database.run(_write, "note_asked", guid)
    trouble: ForgeTrouble | None = None
    try:
        await github.redeliver(row["delivery_id"])
    except NotFound:
        after = "forget"  # GitHub keeps it no longer
    except ForgeTrouble as error:
        after, trouble = "take_back", error  # none of its five times is lost to an outage
    else:
        services.metrics.redeliveries_asked.inc()
        return None
    await services.database.run(_write, after, guid)
    return trouble


async def _find_due(transaction: Transaction, interval_s: float) -> Sequence[Row]:
    return await transaction.fetch(_SQL["due"], MAX_ASKS, interval_s, BATCH)


async def _write(transaction: Transaction, query: str, guid: str) -> None:
    await transaction.execute(_SQL[query], guid)


async def _tidy(transaction: Transaction, window_s: float) -> None:
    await transaction.execute(_SQL["drop_came"])
    await transaction.execute(_SQL["drop_given_up"], MAX_ASKS, window_s)
    await transaction.execute(_SQL["drop_old"], 2 * window_s)
