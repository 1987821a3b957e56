"""The routes of people and services: submit, find and cancel a job, status. Thin: reads the token and the body, calls
jobs.py, renders. Lists stand in joblist_api.py.
"""

from __future__ import annotations

from quart import Blueprint, request

from nimbus.control_plane.access import read_caller, read_service, read_writer
from nimbus.control_plane.hosts.hosts import list_seen
from nimbus.control_plane.jobs.jobs import cancel_job, count_queue, find_job, find_output, find_outputs, submit_job
from nimbus.control_plane.jobs.submission import parse_submission
from nimbus.control_plane.openapi.jobs import (
    CANCEL_JOB,
    GET_JOB,
    GET_STATUS,
    LIST_JOB_LEASES,
    SUBMIT_JOB,
)
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.openapi.outputs import LIST_JOBS_LEASES
from nimbus.control_plane.services import Services
from nimbus.model.errors import Refused
from nimbus.runtime.serving import Response, json_response, read_body
from nimbus.wire.fields import MAX_BIGINT

MAX_JOBS = 200  # of one question; an address has its bounds


def build_jobs_api(services: Services) -> Blueprint:
    """The routes under /api/jobs, /api/status and /api/internal."""
    blueprint = Blueprint("jobs", __name__)
    access = services.access

    @blueprint.post("/api/jobs")
    @declare(SUBMIT_JOB)
    async def submit() -> Response:
        caller = await read_writer(services)
        submission = parse_submission(await read_body(), services.job_rules)
        submitted = await submit_job(services, submission, caller)
        body = {
            "job_id": submitted.job_id,
            "state": submitted.state,
            "machine_id": submitted.machine_id,
            "idempotency_key": submission.idempotency_key,
        }
        return json_response(body, 201 if submitted.created else 200)

    @blueprint.get("/api/jobs/<int:job_id>")
    @declare(GET_JOB)
    async def find(job_id: int) -> Response:
        caller = read_caller(access)
        return json_response(await find_job(services, job_id, caller.org_id))

    @blueprint.post("/api/jobs/<int:job_id>/cancel")
    @declare(CANCEL_JOB)
    async def cancel(job_id: int) -> Response:
        caller = await read_writer(services)
        return json_response(await cancel_job(services, job_id, caller))

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

    @blueprint.get("/api/internal/jobs/machines")
    @declare(LIST_JOBS_LEASES)
    async def outputs() -> Response:
        read_service(access)
        return json_response({"jobs": await find_outputs(services, parse_ids(request.args.get("ids", "")))})

    return blueprint


def parse_ids(text: str) -> list[int]:
    """Job ids as a query lists them; Refused where one is none, or where there are too many."""
    words = text.split(",") if len(text) <= MAX_JOBS * 20 else []
    known = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) <= 19]
    if not 0 < len(known) == len(words) <= MAX_JOBS or max(known) > MAX_BIGINT:
        raise Refused(f"ids must be 1 to {MAX_JOBS} of our job ids, separated by commas")
    return known
