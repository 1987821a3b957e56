"""GET /logs/.../follow: output as server-sent events, by job or by machine. What a stream tells is `follow`'s."""

from __future__ import annotations

from quart import Blueprint, Response, request

from nimbus.logging_pipeline.access import Reader
from nimbus.logging_pipeline.live.follow import FollowRequest
from nimbus.logging_pipeline.reading.scopes import Ask, ask_for_job, find_machine_scope, read_places, scope_of
from nimbus.logging_pipeline.rows import ReadScope
from nimbus.logging_pipeline.services import Services


def build_live_api(services: Services) -> Blueprint:
    """The streams under /logs."""
    blueprint = Blueprint("live", __name__)

    @blueprint.get("/logs/jobs/<job>/follow")
    async def job_follow(job: str) -> Response:
        reader = services.access.read_reader()
        ask = ask_for_job(services, reader, job)
        return _answer_follow(services, scope_of(await ask()), reader, ask)

    @blueprint.get("/logs/machines/<machine>/follow")
    async def machine_follow(machine: str) -> Response:
        reader = services.access.read_reader()
        return _answer_follow(services, await find_machine_scope(services, reader, machine), reader, None)

    return blueprint


def _answer_follow(services: Services, scope: ReadScope, reader: Reader, ask: Ask | None) -> Response:
    places = read_places(scope, request.headers.get("Last-Event-ID") or request.args.get("after"))
    wanted = FollowRequest(scope, places, reader.expires_at_s, ask)
    services.hub.require_room(scope.org_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    body = "" if request.method == "HEAD" else services.follow(wanted)
    return Response(body, headers=headers, content_type="text/event-stream; charset=utf-8")
