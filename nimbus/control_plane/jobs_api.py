"""The routes of people and services: jobs, status. Thin: reads the token and the query, calls jobs.py, renders."""

from __future__ import annotations

from quart import Blueprint, request

from nimbus.control_plane.access import read_caller, read_service, read_writer
from nimbus.control_plane.hosts import list_seen
from nimbus.control_plane.jobs import (
    cancel_job,
    count_queue,
    find_job,
    find_output,
    parse_submission,
    recent_jobs,
    submit_job,
)
from nimbus.control_plane.openapi.jobs import (
    CANCEL_JOB,
    GET_JOB,
    GET_STATUS,
    LIST_JOB_LEASES,
    LIST_RECENT_JOBS,
    SUBMIT_JOB,
)
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.services import Services
from nimbus.model.errors import Refused
from nimbus.runtime.serving import Response, json_response, read_body

_MAX_LISTED = 200


def build_jobs_api(services: Services) -> Blueprint:
    """The routes under /api/jobs, /api/status and /api/internal."""
    blueprint = Blueprint("jobs", __name__)
    access = services.access

    @blueprint.post("/api/jobs")
    @declare(SUBMIT_JOB)
    async def submit() -> Response:
        caller = await read_writer(services)
        submission = parse_submission(await read_body(), services.job_rules)
        submitted = await submit_job(services, submission, caller.org_id)
        body = {"job_id": submitted.job_id, "state": submitted.state, "machine_id": submitted.machine_id}
        return json_response(body, 201 if submitted.created else 200)

    @blueprint.get("/api/jobs/recent")
    @declare(LIST_RECENT_JOBS)
    async def recent() -> Response:
        caller = read_caller(access)
        return json_response({"jobs": await recent_jobs(services, _read_limit(), caller.org_id)})

    @blueprint.get("/api/jobs/<int:job_id>")
    @declare(GET_JOB)
    async def find(job_id: int) -> Response:
        caller = read_caller(access)
        return json_response(await find_job(services, job_id, caller.org_id))

    @blueprint.post("/api/jobs/<int:job_id>/cancel")
    @declare(CANCEL_JOB)
    async def cancel(job_id: int) -> Response:
        caller = await read_writer(services)
        return json_response(await cancel_job(services, job_id, caller.org_id))

    @blueprint.get("/api/status")
    @declare(GET_STATUS)
    async def status() -> Response:
        caller = read_caller(access)
        counts = await count_queue(services, caller.org_id)
        # hosts belong to the operator: a tenant's token does not see them
        agents = await list_seen(services) if caller.org_id is None else []
        return json_response({**counts, "bell": services.bell.state, "agents": agents})

    @blueprint.get("/api/internal/jobs/<int:job_id>/machines")
    @declare(LIST_JOB_LEASES)
    async def output(job_id: int) -> Response:
        read_service(access)
        return json_response(await find_output(services, job_id))

    return blueprint


def _read_limit() -> int:
    text = request.args.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= _MAX_LISTED):
        raise Refused(f"limit must be a whole number from 1 to {_MAX_LISTED}")
    return int(text)
