"""GET /logs/.../follow: output as server-sent events, by job or by machine; POST /logs/tickets: a browser's way in.

What a stream tells is `follow`'s, what a ticket opens is `tickets`'.
"""

from __future__ import annotations

import trio
from quart import Blueprint, Response, request

from nimbus.logging_pipeline.directory import JobEntry
from nimbus.logging_pipeline.live.follow import Follow, FollowRequest
from nimbus.logging_pipeline.reading.scopes import ask_for_job, find_machine_scope, read_places, scope_of
from nimbus.logging_pipeline.rows import ReadScope
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.tickets import Reader
from nimbus.model.errors import Refused
from nimbus.runtime.serving import json_response, read_body
from nimbus.wire.fields import Fields, parse_object

USES = ("follow", "download")


def build_live_api(services: Services) -> Blueprint:
    """The streams under /logs, and the tickets for them."""
    blueprint = Blueprint("live", __name__)

    @blueprint.get("/logs/jobs/<job>/follow")
    async def job_follow(job: str) -> Response:
        reader = services.access.read_viewer()
        entry = await ask_for_job(services, reader, job)()
        return _answer_follow(services, scope_of(entry), reader, entry)

    @blueprint.get("/logs/machines/<machine>/follow")
    async def machine_follow(machine: str) -> Response:
        reader = services.access.read_viewer()
        return _answer_follow(services, await find_machine_scope(services, reader, machine), reader, None)

    @blueprint.post("/logs/tickets")
    async def make_ticket() -> Response:
        reader = services.access.read_reader()
        path = await _find_path(services, reader, parse_object(await read_body(), "the wish for a ticket"))
        ticket = services.access.make_ticket(reader, path)
        told = {
            "ticket": ticket.text,
            "path": path,
            "url": f"{path}?ticket={ticket.text}",
            "expires_at": ticket.expires_at_s,
        }
        return json_response(told, 201, {"Cache-Control": "no-store"})

    return blueprint


def _answer_follow(services: Services, scope: ReadScope, reader: Reader, job: JobEntry | None) -> Response:
    places = read_places(scope, request.headers.get("Last-Event-ID") or request.args.get("after"))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    seat = services.hub.take_seat(scope.org_id)  # before the head is sent: a stream too many is a 429
    if request.method == "HEAD":
        seat.leave()
        return Response("", headers=headers, content_type="text/event-stream; charset=utf-8")
    body = Follow(services.tails, FollowRequest(scope, places, reader, seat, job))
    return Response(body, headers=headers, content_type="text/event-stream; charset=utf-8")


async def _find_path(services: Services, reader: Reader, wish: Fields) -> str:
    """The one address that is wished for; a job that the reader does not see is not found, as everywhere."""
    wish.refuse_unknown({"job_id", "machine_id", "use"})
    use = wish.text("use", 16) if wish.has("use") else USES[0]
    if use not in USES or wish.has("job_id") == wish.has("machine_id"):
        raise Refused(f"name a job_id or a machine_id, and as use one of {', '.join(USES)}")
    if wish.has("machine_id"):
        await trio.lowlevel.checkpoint()
        return f"/logs/machines/{wish.integer('machine_id')}/{use}"
    job_id = wish.integer("job_id")
    await ask_for_job(services, reader, str(job_id))()
    return f"/logs/jobs/{job_id}/{use}"
