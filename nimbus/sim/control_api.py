"""The rehearsal's own API: start a workflow, watch it, cancel or approve a job. GitHub has no such routes.

Only who holds the control token may call it or, where none is set, who connects from this machine: a guest
reaches the sim's port too and must not start or cancel anything. `app.py` registers the blueprint.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import hmac
import ipaddress
import json
import re

from quart import Blueprint, Response, request

from nimbus.model.errors import Conflict, Forbidden, NimbusError, NotFound, Refused, Unauthorized
from nimbus.sim.callers import read_bearer, read_body
from nimbus.sim.payloads import render_run_report
from nimbus.sim.workflow import MAX_WORKFLOW_BYTES, parse_workflow
from nimbus.sim.world import World
from nimbus.wire.github import parse_json_object

_REPO = re.compile(r"[A-Za-z0-9._-]{1,100}")
_STATUS: tuple[tuple[type[NimbusError], int, str], ...] = (
    (Unauthorized, 401, "unauthorized"),
    (Forbidden, 403, "forbidden"),
    (NotFound, 404, "not_found"),
    (Conflict, 409, "conflict"),
    (Refused, 400, "refused"),
)


def _reply(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, content_type="application/json")


def control_blueprint(world: World) -> Blueprint:
    """The rehearsal's routes over one world."""
    blueprint = Blueprint("control", __name__, url_prefix="/sim")

    @blueprint.before_request
    async def guard() -> None:
        _check_caller(world.plan.control_token)

    @blueprint.errorhandler(NimbusError)
    async def refuse(error: NimbusError) -> Response:
        status, code = next(((s, c) for kind, s, c in _STATUS if isinstance(error, kind)), (500, "bug"))
        return _reply({"error": code, "message": str(error)}, status)

    _add_run_routes(blueprint, world)
    _add_change_routes(blueprint, world)
    return blueprint


def _add_run_routes(blueprint: Blueprint, world: World) -> None:
    forge = world.forge

    @blueprint.post("/workflows")
    async def start_workflow() -> Response:
        repo = request.args.get("repo", world.plan.repo)
        if not _REPO.fullmatch(repo) or repo in {".", ".."}:
            raise Refused("repo: the name of a repository without its owner is needed")
        raw = await read_body()
        if len(raw) > MAX_WORKFLOW_BYTES:
            raise Refused(f"the workflow is larger than {MAX_WORKFLOW_BYTES // 1024} KiB")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise Refused("the workflow is not UTF-8 text") from None
        run = forge.start_run(parse_workflow(text), repo)
        return _reply(render_run_report(run), 201)

    @blueprint.get("/runs")
    async def list_runs() -> Response:
        newest = list(reversed(forge.runs.values()))[:100]
        return _reply({"runs": [render_run_report(run) for run in newest]})

    @blueprint.get("/runs/<int:run_id>")
    async def show_run(run_id: int) -> Response:
        if run_id not in forge.runs:
            raise NotFound(f"there is no run {run_id}: without NIMBUS_SIM_STATE_DIR the sim forgets all when it stops")
        return _reply(render_run_report(forge.runs[run_id]))


def _add_change_routes(blueprint: Blueprint, world: World) -> None:
    forge = world.forge

    @blueprint.post("/jobs/<int:job_id>/cancel")
    async def cancel_job(job_id: int) -> Response:
        return _reply(render_run_report(forge.cancel(job_id).run), 202)

    @blueprint.post("/jobs/<int:job_id>/approve")
    async def approve_job(job_id: int) -> Response:
        return _reply(render_run_report(forge.approve(job_id).run), 202)

    @blueprint.post("/installation")
    async def set_installation() -> Response:
        suspended = parse_json_object(await read_body()).get("suspended")
        if not isinstance(suspended, bool):
            raise Refused("suspended: true or false is needed")
        world.auth.suspended = suspended
        world.memory.note()
        return _reply({"installation_id": world.plan.installation_id, "suspended": suspended})


def _check_caller(control_token: str | None) -> None:
    if control_token is not None:
        if not hmac.compare_digest(read_bearer().encode(), control_token.encode()):
            raise Unauthorized("the sim's control token is needed: Authorization: Bearer <NIMBUS_SIM_CONTROL_TOKEN>")
        return
    try:
        local = ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        local = False
    if not local:
        raise Forbidden("without NIMBUS_SIM_CONTROL_TOKEN only this machine may control the sim")
