"""The rehearsal's own API: start a workflow, watch it, cancel, approve or re-run. GitHub has no such routes.

Only who holds the control token may call it or, where none is set, who connects from this machine: a guest
reaches the sim's port too and must not start or cancel anything. `app.py` registers the blueprint.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import heapq
import hmac
import ipaddress
import json

from quart import Blueprint, Response, request

from nimbus.model.errors import Conflict, Forbidden, NimbusError, NotFound, Refused, Unauthorized
from nimbus.sim.callers import read_bearer, read_body
from nimbus.sim.control_accounts import add_account_routes, check_repo
from nimbus.sim.faults_api import add_fault_routes
from nimbus.sim.payloads import render_run_report
from nimbus.sim.workflow import MAX_WORKFLOW_BYTES, parse_workflow
from nimbus.sim.world import World

NEWEST_RUNS = 100
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
    add_account_routes(blueprint, world)
    add_fault_routes(blueprint, world.faults)
    return blueprint


def _add_run_routes(blueprint: Blueprint, world: World) -> None:
    accounts = world.accounts

    @blueprint.post("/workflows")
    async def start_workflow() -> Response:
        account = accounts.named(request.args.get("owner"))
        repo = check_repo(request.args.get("repo", world.plan.repo))
        raw = await read_body()
        if len(raw) > MAX_WORKFLOW_BYTES:
            raise Refused(f"the workflow is larger than {MAX_WORKFLOW_BYTES // 1024} KiB")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise Refused("the workflow is not UTF-8 text") from None
        run = account.forge.start_run(parse_workflow(text), repo)
        return _reply(render_run_report(run), 201)

    @blueprint.get("/runs")
    async def list_runs() -> Response:
        runs = (run for account in accounts for run in account.forge.runs.values())
        newest = heapq.nlargest(NEWEST_RUNS, runs, key=lambda run: run.run_id)
        return _reply({"runs": [render_run_report(run) for run in newest]})

    @blueprint.get("/runs/<int:run_id>")
    async def show_run(run_id: int) -> Response:
        _, run = accounts.of_run(run_id)
        return _reply(render_run_report(run))

    @blueprint.post("/runs/<int:run_id>/rerun")
    async def rerun(run_id: int) -> Response:
        jobs = request.args.get("jobs", "all")
        if jobs not in {"all", "failed"}:
            raise Refused("jobs: all or failed is needed")
        forge, _ = accounts.of_run(run_id)
        return _reply(render_run_report(forge.rerun(run_id, failed_only=jobs == "failed")), 201)


def _add_change_routes(blueprint: Blueprint, world: World) -> None:
    accounts = world.accounts

    @blueprint.post("/jobs/<int:job_id>/cancel")
    async def cancel_job(job_id: int) -> Response:
        forge, _ = accounts.of_job(job_id)
        return _reply(render_run_report(forge.cancel(job_id).run), 202)

    @blueprint.post("/jobs/<int:job_id>/approve")
    async def approve_job(job_id: int) -> Response:
        forge, _ = accounts.of_job(job_id)
        return _reply(render_run_report(forge.approve(job_id).run), 202)


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
