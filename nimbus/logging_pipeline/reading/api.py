"""GET /logs/...: pages of output by job or by machine, and a job's annotations, for one org or, for operators, any."""

from __future__ import annotations

from dataclasses import replace

from quart import Blueprint, Response, request

from nimbus.logging_pipeline.reading.annotations import ANNOTATED, render_annotation
from nimbus.logging_pipeline.reading.answers import answer
from nimbus.logging_pipeline.reading.cursor import render_cursor, render_row
from nimbus.logging_pipeline.reading.filtering import read_filter
from nimbus.logging_pipeline.reading.pager import Page, Pager
from nimbus.logging_pipeline.reading.scopes import (
    ask_for_job,
    find_machine_scope,
    read_limit,
    read_number,
    read_place,
    read_places,
    scope_of,
)
from nimbus.logging_pipeline.rows import ReadScope
from nimbus.logging_pipeline.services import Services
from nimbus.model.errors import Refused

_FROM = ("after", "before", "around", "tail")


def build_read_api(services: Services) -> Blueprint:
    """The pages under /logs."""
    blueprint = Blueprint("logs", __name__)

    @blueprint.get("/logs/jobs/<job>")
    async def job_page(job: str) -> Response:
        reader = services.access.read_reader()
        return await _answer_page(services, scope_of(await ask_for_job(services, reader, job)()))

    @blueprint.get("/logs/jobs/<job>/annotations")
    async def job_annotations(job: str) -> Response:
        reader = services.access.read_reader()
        return await _answer_annotations(services, scope_of(await ask_for_job(services, reader, job)()))

    @blueprint.get("/logs/machines/<machine>")
    async def machine_page(machine: str) -> Response:
        scope = await find_machine_scope(services, services.access.read_reader(), machine)
        return await _answer_page(services, scope)

    return blueprint


async def _answer_page(services: Services, scope: ReadScope) -> Response:
    wanted = read_filter()
    if wanted.phrase is None:
        pager = Pager(services.table, scope, wanted, services.bounds.of_pages)
        return _render_page(await _read_page(pager))
    pager = Pager(services.table, scope, wanted, services.bounds)
    async with services.turns.take(scope.org_id):
        return _render_page(await _read_page(pager))


async def _read_page(pager: Pager) -> Page:
    given = [name for name in _FROM if name in request.args]
    if len(given) > 1:
        raise Refused(f"{given[0]} and {given[1]} exclude each other")
    if "tail" in given:
        return await pager.backward(None, read_number("tail"))
    if "before" in given:
        return await pager.backward(read_place(pager.scope, request.args["before"]), read_limit())
    if "around" in given:
        return await pager.around(read_place(pager.scope, request.args["around"]), read_limit())
    return await pager.forward(read_places(pager.scope, request.args.get("after")), read_limit())


def _render_page(page: Page) -> Response:
    body = {
        "rows": [render_row(read) for read in page.rows],
        "next": render_cursor(page.places) or None,
        "prev": render_cursor([page.rows[0].place]) if page.rows else None,
        "more": page.more,
    }
    return answer(body)


async def _answer_annotations(services: Services, scope: ReadScope) -> Response:
    wanted = replace(read_filter(), streams=ANNOTATED.streams)
    wanted = replace(wanted, levels=wanted.levels or ANNOTATED.levels)
    pager = Pager(services.table, scope, wanted, services.bounds.of_pages)
    page = await pager.forward(read_places(scope, request.args.get("after")), read_limit())
    told = [annotation for read in page.rows if (annotation := render_annotation(read)) is not None]
    body = {"annotations": told, "next": render_cursor(page.places) or None, "more": page.more}
    return answer(body)
