"""GET /logs/...: pages of output by job or by machine, for one org or, for operators, any. Every statement is fixed."""

from __future__ import annotations

import trio
from quart import Blueprint, Response, request

from nimbus.logging_pipeline.reading.cursor import Reading, render_row
from nimbus.logging_pipeline.reading.scopes import (
    ask_for_job,
    find_machine_scope,
    read_limit,
    read_places,
    scope_of,
)
from nimbus.logging_pipeline.rows import ReadRow, ReadScope
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.store.table import LogTable
from nimbus.runtime.serving import json_response

MAX_PAGE_CHARS = 8 * 2**20  # a page ends early beyond it: rows may hold 64 Ki characters each
_CHUNK_ROWS = 500


def build_read_api(services: Services) -> Blueprint:
    """The pages under /logs."""
    blueprint = Blueprint("logs", __name__)

    @blueprint.get("/logs/jobs/<job>")
    async def job_page(job: str) -> Response:
        reader = services.access.read_reader()
        return await _answer_page(services.table, scope_of(await ask_for_job(services, reader, job)()))

    @blueprint.get("/logs/machines/<machine>")
    async def machine_page(machine: str) -> Response:
        scope = await find_machine_scope(services, services.access.read_reader(), machine)
        return await _answer_page(services.table, scope)

    return blueprint


async def _answer_page(table: LogTable, scope: ReadScope) -> Response:
    limit = read_limit()
    reading = Reading(read_places(scope, request.args.get("after")))
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
