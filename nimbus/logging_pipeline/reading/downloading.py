"""GET /logs/.../download: all of a job's or a machine's output as one file: text, gzip or JSON lines.

Plain text has a size and a tag, and can be had in ranges; the others are streamed as they are made. Called by app.py.
"""

from __future__ import annotations

from quart import Blueprint, Response, request

from nimbus.logging_pipeline.reading.byterange import ByteRange, Unsatisfiable, matches_tag, parse_range
from nimbus.logging_pipeline.reading.scopes import ask_for_job, find_machine_scope, scope_of
from nimbus.logging_pipeline.reading.textbody import CONSOLE, PackedStream, TextForm, TextSource, TextStream
from nimbus.logging_pipeline.rows import ReadScope
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.store.extents import Extent, plan_extents
from nimbus.model.errors import Refused

_FORMATS = ("text", "gz", "jsonl")
_TYPES = {"text": "text/plain; charset=utf-8", "gz": "application/gzip", "jsonl": "application/x-ndjson"}
_ENDINGS = {"text": "log", "gz": "log.gz", "jsonl": "jsonl"}
_FLAGS = {"0": False, "1": True}
OK, PARTIAL, NOT_MODIFIED, UNSATISFIABLE = 200, 206, 304, 416


def build_download_api(services: Services) -> Blueprint:
    """The downloads."""
    blueprint = Blueprint("download", __name__)

    @blueprint.get("/logs/jobs/<job>/download")
    async def job_download(job: str) -> Response:
        entry = await ask_for_job(services, services.access.read_viewer(), job)()
        return await _answer(services, scope_of(entry), f"job-{entry.job_id}")

    @blueprint.get("/logs/machines/<machine>/download")
    async def machine_download(machine: str) -> Response:
        scope = await find_machine_scope(services, services.access.read_viewer(), machine)
        return await _answer(services, scope, f"machine-{scope.machines[0]}")

    return blueprint


async def _answer(services: Services, scope: ReadScope, name: str) -> Response:
    kind = request.args.get("format", "text")
    if kind not in _FORMATS:
        raise Refused(f"format must be one of {', '.join(_FORMATS)}")
    form = TextForm(_read_flag("timestamps"), _read_flag("plain"), kind == "jsonl")
    source = await _open_source(services, scope, form)
    ranged = request.headers.get("Range") if kind == "text" and form.is_measured else None
    packed = kind == "gz" or (ranged is None and _accepts_gzip())
    tag = f'"{source.tag}{"-gz" if packed else ""}"'
    headers = {
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{name}.{_ENDINGS[kind]}"',
        "ETag": tag,
        "Vary": "Accept-Encoding",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
    }
    if matches_tag(request.headers.get("If-None-Match"), tag):
        return Response("", status=NOT_MODIFIED, headers=headers)
    if packed:
        return _send_packed(source, kind, headers)
    headers["Accept-Ranges"] = "bytes" if kind == "text" and form.is_measured else "none"
    if not form.is_measured:
        return Response(_stream(source), headers=headers, content_type=_TYPES[kind])
    if "If-Range" in request.headers and request.headers["If-Range"] != tag:
        ranged = None
    return _send_range(source, ranged, headers)


async def _open_source(services: Services, scope: ReadScope, form: TextForm) -> TextSource:
    plan = plan_extents(services.table.name, scope, form.line_bytes, len(CONSOLE))
    async with services.turns.take(scope.org_id):
        extents = await services.table.read(plan, Extent, services.bounds)
    return TextSource(services.table, services.turns, scope.org_id, form, extents)


def _send_packed(source: TextSource, kind: str, headers: dict[str, str]) -> Response:
    encoding = {} if kind == "gz" else {"Content-Encoding": "gzip"}
    body = _stream(source) if request.method == "HEAD" else PackedStream(_stream(source))
    return Response(body, headers=headers | encoding, content_type=_TYPES[kind])


def _send_range(source: TextSource, ranged: str | None, headers: dict[str, str]) -> Response:
    size = source.size
    try:
        wanted = parse_range(ranged, size)
    except Unsatisfiable:
        told = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes", "ETag": headers["ETag"]}
        return Response("", status=UNSATISFIABLE, headers=told)
    part = wanted or ByteRange(0, size)
    headers["Content-Length"] = str(part.end - part.first)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {part.first}-{part.end - 1}/{size}"
    status = OK if wanted is None else PARTIAL
    return Response(_stream(source, part), status=status, headers=headers, content_type=_TYPES["text"])


def _stream(source: TextSource, part: ByteRange | None = None) -> TextStream:
    """The body; one without a byte where only the headers are asked for."""
    return TextStream(source, ByteRange(0, 0) if request.method == "HEAD" else part)


def _accepts_gzip() -> bool:
    return any(
        word.partition(";")[0].strip().lower() == "gzip" and "q=0" not in word.replace(" ", "").replace("q=0.", "")
        for line in request.headers.getlist("Accept-Encoding")
        for word in line.split(",")
    )


def _read_flag(name: str) -> bool:
    text = request.args.get(name, "0")
    if text not in _FLAGS:
        raise Refused(f"{name} must be 1 or 0")
    return _FLAGS[text]
