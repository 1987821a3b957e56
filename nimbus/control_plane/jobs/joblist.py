"""Lists of jobs: filters read from a query, and pages that a cursor continues. Newest first, by our own number.

A cursor names the last job of its page and the list that it belongs to, so pages are stable while jobs come in: what
is new stands before the first one. It grants nothing: what a caller may see is decided by its token each time. Never
an offset, never a count. Called by jobs_api.py.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from nimbus.control_plane.jobs.jobs import describe_jobs
from nimbus.control_plane.services import JobRules, Services
from nimbus.model.errors import NotFound, Refused
from nimbus.model.job import JobSource, JobState, Learned
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import MAX_BIGINT, is_storable
from nimbus.wire.vmjson import Json

_SQL = load_queries("nimbus.control_plane", "queries", "jobs.sql")
DEFAULT_LIMIT, MAX_LIMIT = 20, 200
MAX_NAME = 64  # characters of a name that a filter may give: the index holds no more
_MAX_WORD = 256
_YEARS = (1970, 9000)  # what every step of the way takes
_CURSOR = re.compile(r"([1-9][0-9]{0,18})\.([0-9a-f]{16})", re.ASCII)
_LIKE = str.maketrans({each: f"\\{each}" for each in "\\%_"})
Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True)
class JobFilter:
    """Which jobs; a part that is None leaves none out. Names of these fields are those of the query."""

    state: tuple[JobState, ...] | None = None
    source: JobSource | None = None
    repo: str | None = None  # our id of it, or owner/name
    org: str | None = None  # our id of it, or its login
    label: str | None = None
    name: str | None = None  # what it begins with
    conclusion: str | None = None
    learned_by: Learned | None = None
    since: datetime | None = None  # queued then or later
    until: datetime | None = None  # queued before then


@dataclass(frozen=True)
class Asked:
    """One page of a list."""

    wanted: JobFilter
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None


_PARAMETERS = frozenset({field.name for field in fields(JobFilter)} | {"limit", "cursor"})


# --- reading -------------------------------------------------------------------------------------------------------


def parse_asked(query: Sequence[tuple[str, str]]) -> Asked:
    """The page that a query string asks for; Refused with the parameter's name where it is wrong."""
    given: dict[str, str] = {}
    for name, text in query:
        if name not in _PARAMETERS:
            raise Refused(f"{_show(name)} is no parameter of this list; known: {', '.join(sorted(_PARAMETERS))}")
        if name in given and name != "state":
            raise Refused(f"{name} is given twice")
        given[name] = f"{given[name]},{text}" if name in given else text
    since, until = _read_moment(given, "since"), _read_moment(given, "until")
    if since is not None and until is not None and since >= until:
        raise Refused("since must be before until: nothing lies between them")
    wanted = JobFilter(
        state=_read_states(given),
        source=_read_choice(given, "source", JobSource),
        repo=_read_text(given, "repo"),
        org=_read_text(given, "org"),
        label=_read_text(given, "label"),
        name=_read_text(given, "name", MAX_NAME),
        conclusion=_read_text(given, "conclusion", MAX_NAME),
        learned_by=_read_choice(given, "learned_by", Learned),
        since=since,
        until=until,
    )
    return Asked(wanted, parse_limit(given.get("limit")), _read_text(given, "cursor"))


def parse_limit(text: str | None) -> int:
    """How many rows a page may have; Refused for what is no number of 1 to 200."""
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_LIMIT):
        raise Refused(f"limit must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _read_text(given: Mapping[str, str], name: str, most: int = _MAX_WORD) -> str | None:
    text = given.get(name)
    if text is not None and not (text and is_storable(text, most)):
        raise Refused(f"{name} must be text of 1 to {most} characters without NUL")
    return text


def _read_choice(given: Mapping[str, str], name: str, words: type[Word]) -> Word | None:
    text = given.get(name)
    return None if text is None else _choose(name, text, words)


def _choose(name: str, text: str, words: type[Word]) -> Word:
    for word in words:
        if text == word.value:
            return word
    raise Refused(f"{name} must be one of {', '.join(sorted(words))}")


def _read_states(given: Mapping[str, str]) -> tuple[JobState, ...] | None:
    text = given.get("state")
    if text is None:
        return None
    return tuple(sorted({_choose("state", word, JobState) for word in text.split(",")}))


def _read_moment(given: Mapping[str, str], name: str) -> datetime | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not _YEARS[0] <= moment.year <= _YEARS[1]:
        raise Refused(f"{name} must be a moment with its time zone, like 2026-11-21T08:00:00Z")
    return moment.astimezone(UTC)


def _show(text: str) -> str:
    return repr(text[:64])


# --- the cursor ----------------------------------------------------------------------------------------------------


def render_cursor(job_id: int, wanted: JobFilter, caller_org: int | None) -> str:
    """Pure: where the next page of this list begins."""
    text = f"{job_id}.{_digest(wanted, caller_org)}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def parse_cursor(cursor: str, wanted: JobFilter, caller_org: int | None) -> int:
    """Pure: the job before which the page begins; Refused for what is no cursor of this very list."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None or int(match[1]) > MAX_BIGINT:
        raise Refused("cursor is none that this list gave: begin again without one")
    if match[2] != _digest(wanted, caller_org):
        raise Refused("cursor is of a list with other filters, or of another token's org: begin again without one")
    return int(match[1])


def _digest(wanted: JobFilter, caller_org: int | None) -> str:
    """What tells one list from another. No secret: a made-up cursor leads to nothing but the caller's own jobs."""
    parts = [str(getattr(wanted, field.name)) for field in fields(JobFilter)]
    return hashlib.sha256(json.dumps([caller_org, *parts]).encode()).hexdigest()[:16]


# --- the list ------------------------------------------------------------------------------------------------------


async def list_jobs(services: Services, asked: Asked, caller_org: int | None) -> Json:
    """One page: `jobs`, and `next`, the cursor of the page after it; null where there is none."""
    before = None if asked.cursor is None else parse_cursor(asked.cursor, asked.wanted, caller_org)
    jobs, last = await services.database.run(_list, asked, before, caller_org, services.job_rules)
    return {"jobs": jobs, "next": None if last is None else render_cursor(last, asked.wanted, caller_org)}


async def _list(
    transaction: Transaction, asked: Asked, before: int | None, caller_org: int | None, rules: JobRules
) -> tuple[list[Json], int | None]:
    """The page, and its last job where there are more after it."""
    wanted = asked.wanted
    org_id, repo_id = await _find_scope(transaction, wanted, caller_org)
    # planned anew for these very filters: which index is the right one depends on how rare their values are
    await transaction.execute(_SQL["plan_anew"])
    rows = await transaction.fetch(
        _SQL["list_jobs"],
        org_id,
        repo_id,
        None if wanted.state is None else [str(state) for state in wanted.state],
        wanted.source,
        None if wanted.label is None else wanted.label.lower(),
        None if wanted.name is None else f"{wanted.name.translate(_LIKE)}%",
        wanted.conclusion,
        wanted.learned_by,
        wanted.since,
        wanted.until,
        before,
        asked.limit + 1,
        wanted.state is not None and JobState.COMPLETED not in wanted.state,
    )
    page = rows[: asked.limit]
    return await describe_jobs(transaction, page, rules), page[-1]["job_id"] if len(rows) > len(page) else None


async def _find_scope(
    transaction: Transaction, wanted: JobFilter, caller_org: int | None
) -> tuple[int | None, int | None]:
    """Our ids of the org and the repository that are asked for; NotFound for one that the caller does not have."""
    org_id = caller_org
    if wanted.org is not None:
        org_id = _require(await transaction.fetchrow(_SQL["org_by_name"], wanted.org, caller_org), "org", wanted.org)
    if wanted.repo is None:
        return org_id, None
    row = await transaction.fetchrow(_SQL["repo_by_name"], wanted.repo, org_id)
    return org_id, _require(row, "repository", wanted.repo)


def _require(row: Row | None, what: str, name: str) -> int:
    if row is None:
        raise NotFound(f"there is no {what} {name[:64]}")
    found: int = row["id"]
    return found
