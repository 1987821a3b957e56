"""GET /logs/search: the newest lines that hold a text, in the reader's org, one of its repos or jobs.

Every hit has a permalink: a cursor with which the page of its job shows the lines about it (`around`). The search's
own cursor is bound to what was searched. Called by app.py.
"""

from __future__ import annotations

import hashlib
import re

from quart import Blueprint, Response, request

from nimbus.logging_pipeline.reading.answers import answer
from nimbus.logging_pipeline.reading.cursor import render_cursor
from nimbus.logging_pipeline.reading.filtering import read_filter, require_wide_enough
from nimbus.logging_pipeline.reading.scopes import ask_for_job, find_machine_scope, read_id, read_number, scope_of
from nimbus.logging_pipeline.rows import MAX_SEQ, Place
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.store.filters import RowFilter
from nimbus.logging_pipeline.store.pages import drop_repeated
from nimbus.logging_pipeline.store.search import (
    SHOWN_CHARS,
    Hit,
    Link,
    Owner,
    SearchScope,
    plan_links,
    plan_repo_owner,
    plan_search,
)
from nimbus.logging_pipeline.tickets import Reader
from nimbus.model.errors import Forbidden, NotFound, Refused

DEFAULT_HITS, MAX_HITS = 100, 1000
_CURSOR = re.compile(r"([0-9a-f]{16})\.([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,19})", re.ASCII)


def build_search_api(services: Services) -> Blueprint:
    """The search."""
    blueprint = Blueprint("search", __name__)

    @blueprint.get("/logs/search")
    async def search() -> Response:
        scope = await find_search_scope(services, services.access.read_reader())
        wanted = read_filter()
        if wanted.phrase is None:
            raise Refused("a search needs q: the text to look for")
        if scope.machines is None:
            require_wide_enough(wanted.phrase)
        return await _answer_hits(services, scope, wanted)

    return blueprint


async def find_search_scope(services: Services, reader: Reader) -> SearchScope:
    """What is searched or counted, within the reader's org. An operator's token must name an org, a repo or a job."""
    args = request.args
    named = [name for name in ("job", "machine", "repo") if name in args]
    if len(named) > 1:
        raise Refused(f"{named[0]} and {named[1]} exclude each other")
    org_id = _read_org(reader)
    if "job" in args:
        entry = await ask_for_job(services, reader, args["job"])()
        if org_id not in (None, entry.org_id):
            raise NotFound(f"there is no job {args['job']}")
        return SearchScope(entry.org_id, machines=scope_of(entry).machines)
    if "machine" in args:
        scope = await find_machine_scope(services, reader, args["machine"])
        return SearchScope(scope.org_id if org_id is None else org_id, machines=scope.machines)
    repo_id = read_id(args["repo"], "repo") if "repo" in args else None
    if org_id is None and repo_id is not None:
        org_id = await _find_owner(services, repo_id)
    if org_id is None:
        raise Refused("this token reaches all orgs: name one by org=, or a job or a repo")
    return SearchScope(org_id, repo_id)


def _read_org(reader: Reader) -> int | None:
    text = request.args.get("org")
    if text is None:
        return reader.org_id
    org_id = read_id(text, "org")
    if reader.org_id not in (None, org_id):
        raise NotFound(f"there is no org {org_id}")
    return org_id


async def _find_owner(services: Services, repo_id: int) -> int:
    found = await services.table.read(plan_repo_owner(services.table.name, repo_id), Owner, services.bounds.of_pages)
    if not found:
        raise NotFound(f"no output of repo {repo_id} is stored")
    return found[0].org_id


async def _answer_hits(services: Services, scope: SearchScope, wanted: RowFilter) -> Response:
    limit = read_number("limit", DEFAULT_HITS, MAX_HITS)
    mark = _mark(scope)
    after = _read_place(request.args.get("after"), mark)
    table, bounds = services.table, services.bounds
    async with services.turns.take(scope.org_id):
        told = await table.read(plan_search(table.name, scope, wanted, after, limit), Hit, bounds)
        hits = drop_repeated(told)
        early = sorted({hit.machine_id for hit in hits if not hit.job_id})
        links = await table.read(plan_links(table.name, scope.org_id, early), Link, bounds) if early else []
    known = {(link.machine_id, link.fence): link for link in links}
    body = {
        "hits": [_render_hit(hit, hit if hit.job_id else known.get((hit.machine_id, hit.fence))) for hit in hits],
        "next": _render_place(hits[-1].place, mark) if hits else None,
        "more": len(told) == limit,
    }
    return answer(body)


def _render_hit(hit: Hit, link: Hit | Link | None) -> dict[str, object]:
    return {
        "job_id": link.job_id if link else None,
        "repo_id": (link.repo_id or None) if link else None,
        "machine_id": hit.machine_id,
        "fence": hit.fence,
        "seq": hit.seq,
        "cursor": render_cursor([hit.place]),
        "ts_ms": hit.ts_ms,
        "step": hit.step,
        "stream": hit.stream,
        "level": hit.level,
        "message": hit.shown,
        "cut": hit.chars > SHOWN_CHARS,
    }


def _mark(scope: SearchScope) -> str:
    """What a cursor of this search begins with."""
    return hashlib.blake2b(repr(scope).encode(), digest_size=8).hexdigest()


def _render_place(place: Place, mark: str) -> str:
    return f"{mark}.{place.machine_id}.{place.fence}.{place.seq}"


def _read_place(text: str | None, mark: str) -> Place | None:
    if text is None:
        return None
    found = _CURSOR.fullmatch(text)
    if found is None or max(map(int, found.groups()[1:])) > MAX_SEQ:
        raise Refused("the cursor is none of this search: pass on what the last answer gave in `next`, unchanged")
    if found[1] != mark:
        raise Forbidden("the cursor belongs to another search: start without one")
    return Place(*map(int, found.groups()[1:]))
