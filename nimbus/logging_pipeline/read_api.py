"""GET /logs/...: pages and streams of output by job or by machine, for one org or, for operators, any.

A job of another org does not exist for the reader. Every id is a number, every statement is fixed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio
from quart import Blueprint, Response, request

from nimbus.logging_pipeline.access import Reader
from nimbus.logging_pipeline.cursor import Reading, check_cursor, parse_cursor, render_row
from nimbus.logging_pipeline.directory import JobEntry
from nimbus.logging_pipeline.follow import FollowRequest
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.table import LogTable, Place, ReadRow, ReadScope
from nimbus.model.errors import NotFound, Refused
from nimbus.runtime.serving import json_response
from nimbus.wire.fields import MAX_BIGINT

DEFAULT_ROWS, MAX_ROWS = 1000, 10_000
MAX_PAGE_CHARS = 8 * 2**20  # a page ends early beyond it: rows may hold 64 Ki characters each
_CHUNK_ROWS = 500
Ask = Callable[[], Awaitable[JobEntry]]


def build_read_api(services: Services) -> Blueprint:
    """The routes under /logs."""
    blueprint = Blueprint("logs", __name__)

    @blueprint.get("/logs/jobs/<job>")
    async def job_page(job: str) -> Response:
        reader = services.access.read_reader()
        entry = await services.directory.job(_read_id(job), reader.org_id)
        return await _answer_page(services.table, _scope_of(entry))

    @blueprint.get("/logs/jobs/<job>/follow")
    async def job_follow(job: str) -> Response:
        reader = services.access.read_reader()
        ask = partial(services.directory.job, _read_id(job), reader.org_id)
        entry = await ask()
        return _answer_follow(services, _scope_of(entry), reader, ask)

    @blueprint.get("/logs/machines/<machine>")
    async def machine_page(machine: str) -> Response:
        scope = await _machine_scope(services, services.access.read_reader(), _read_id(machine))
        return await _answer_page(services.table, scope)

    @blueprint.get("/logs/machines/<machine>/follow")
    async def machine_follow(machine: str) -> Response:
        reader = services.access.read_reader()
        scope = await _machine_scope(services, reader, _read_id(machine))
        return _answer_follow(services, scope, reader, None)

    return blueprint


def _scope_of(entry: JobEntry) -> ReadScope:
    return ReadScope(entry.org_id, tuple(sorted({machine.machine_id for machine in entry.machines})))


async def _machine_scope(services: Services, reader: Reader, machine_id: int) -> ReadScope:
    """A machine of the reader's org. One that never printed and one of another org look the same."""
    text = request.args.get("fence")
    fence = None if text is None else _read_id(text, "fence")
    org_id = reader.org_id if reader.org_id is not None else await services.table.org_of(machine_id)
    if org_id is None:
        raise NotFound(f"no output of machine {machine_id} is stored")
    return ReadScope(org_id, (machine_id,), fence)


def _answer_follow(services: Services, scope: ReadScope, reader: Reader, ask: Ask | None) -> Response:
    places = _read_places(scope, request.headers.get("Last-Event-ID") or request.args.get("after"))
    wanted = FollowRequest(scope, places, reader.expires_at_s, ask)
    services.hub.require_room(scope.org_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    body = "" if request.method == "HEAD" else services.follow(wanted)
    return Response(body, headers=headers, content_type="text/event-stream; charset=utf-8")


async def _answer_page(table: LogTable, scope: ReadScope) -> Response:
    limit = _read_limit()
    reading = Reading(_read_places(scope, request.args.get("after")))
    rows: list[ReadRow] = []
    chars, more = 0, True
    while more and len(rows) < limit and chars < MAX_PAGE_CHARS:
        wanted = min(_CHUNK_ROWS, limit - len(rows))
        chunk = await table.page(scope, reading.places, wanted)
        for read in chunk:
            reading.advance(read)
            chars += len(read.row.message)
        rows += chunk
        more = len(chunk) == wanted
        await trio.lowlevel.checkpoint()
    body = {"rows": [render_row(read) for read in rows], "next": reading.cursor or None, "more": more}
    return json_response(body, headers={"Cache-Control": "no-store"})


def _read_places(scope: ReadScope, text: str | None) -> tuple[Place, ...]:
    places = parse_cursor(text)
    check_cursor(places, scope.machines)
    return places


def _read_id(text: str, name: str = "id") -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_BIGINT):
        raise Refused(f"the {name} must be a whole number")
    return int(text)


def _read_limit() -> int:
    text = request.args.get("limit", str(DEFAULT_ROWS))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_ROWS):
        raise Refused(f"limit must be a whole number from 1 to {MAX_ROWS}")
    return int(text)
