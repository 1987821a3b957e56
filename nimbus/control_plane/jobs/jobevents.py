"""The ledger of one job: every step that it and its machines made, in order, with its cause and who told it.

Reads two append-only tables and writes neither: job_events is written by a trigger beside every change of a job,
machine_events by whoever makes a step. A command, its environment and its output never stand in them. Called by
jobs_api.py.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nimbus.control_plane.jobs.joblist import parse_limit
from nimbus.control_plane.jobs.jobs import require_job
from nimbus.control_plane.queue.endings import Teller
from nimbus.control_plane.services import Services
from nimbus.model.errors import Refused
from nimbus.model.job import JobSource
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import MAX_BIGINT
from nimbus.wire.vmjson import Json

_SQL = load_queries("nimbus.control_plane", "queries", "jobs.sql")
_CURSOR = re.compile(r"([0-9]{1,18})\.(job|machine)\.([1-9][0-9]{0,18})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_US = 221_845_392_000_000_000  # the year 9000
DEFAULT_EVENTS = 200
_BY_HOST = frozenset({Teller.AGENT, Teller.CLOCK, Teller.ENROLMENT})  # a step of a lease: that host held it


@dataclass(frozen=True)
class Place:
    """Where a page of events ended. Steps of a job and of a machine are numbered apart: `about` tells which."""

    at: datetime
    about: str
    event_id: int


@dataclass(frozen=True)
class AskedEvents:
    """One page of a job's events, the oldest first."""

    limit: int = DEFAULT_EVENTS
    after: Place | None = None


def parse_asked_events(query: Sequence[tuple[str, str]]) -> AskedEvents:
    """The page that a query string asks for; Refused with the parameter's name where it is wrong."""
    given = dict(query)
    if len(given) < len(query) or given.keys() - {"limit", "cursor"}:
        raise Refused("events take limit and cursor, each once")
    limit = DEFAULT_EVENTS if "limit" not in given else parse_limit(given["limit"])
    return AskedEvents(limit, None if "cursor" not in given else parse_place(given["cursor"]))


def render_place(place: Place) -> str:
    """Pure: the cursor of what comes after it."""
    text = f"{(place.at - _EPOCH) // timedelta(microseconds=1)}.{place.about}.{place.event_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def parse_place(cursor: str) -> Place:
    """Pure: the inverse; Refused for what is no cursor of events."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None or int(match[1]) > _MOST_US or int(match[3]) > MAX_BIGINT:
        raise Refused("cursor is none that these events gave: begin again without one")
    return Place(_EPOCH + timedelta(microseconds=int(match[1])), match[2], int(match[3]))


async def list_events(services: Services, job_id: int, asked: AskedEvents, caller_org: int | None) -> Json:
    """One page of the job's events; NotFound where the caller's org has no such job."""
    found, rows = await services.database.run(_list, job_id, asked, caller_org)
    page = rows[: asked.limit]
    last = page[-1] if len(rows) > asked.limit else None
    following = None if last is None else render_place(Place(last["at"], last["about"], last["event_id"]))
    return {"job_id": found, "events": [render_event(row) for row in page], "next": following}


async def _list(
    transaction: Transaction, job_id: int, asked: AskedEvents, caller_org: int | None
) -> tuple[int, Sequence[Row]]:
    row = await require_job(transaction, job_id, caller_org)
    after = asked.after or Place(_EPOCH, "job", 0)
    key = (after.at, after.about, after.event_id)
    return row["job_id"], await transaction.fetch(_SQL["events_of_job"], row["job_id"], *key, asked.limit + 1)


def render_event(row: Row) -> Json:
    """Pure: one step as the API tells it: what it was, why, and who told it."""
    kind, _, name = (row["told_by"] or "").partition(":")
    return {
        "at": row["at"].isoformat(),
        "about": row["about"],
        "machine_id": row["machine_id"],
        "fence": row["fence"],
        "event": row["event"],
        "state_from": row["state_from"],
        "state_to": row["state_to"],
        "conclusion": row["conclusion"],
        "cause": row["cause"],
        "told_by": kind or None,
        "agent_id": row["agent_id"] or (name if kind in _BY_HOST else None),
        "subject": name if kind == Teller.USER and name else None,
        "learned": name if kind == JobSource.GITHUB else None,
    }
