"""The routes that read lists of jobs, a job's events and its wait. Thin: reads the token and the query, renders.

Called by app.py. What changes a job, and one job by itself, stand in jobs_api.py.
"""

from __future__ import annotations

from quart import Blueprint, request

from nimbus.control_plane.access import read_caller
from nimbus.control_plane.jobs.jobevents import list_events, parse_asked_events
from nimbus.control_plane.jobs.joblist import Asked, JobFilter, list_jobs, parse_asked, parse_limit
from nimbus.control_plane.jobs.jobwait import explain_job
from nimbus.control_plane.openapi.jobs import LIST_RECENT_JOBS
from nimbus.control_plane.openapi.listings import EXPLAIN_JOB, LIST_JOB_EVENTS, LIST_JOBS
from nimbus.control_plane.openapi.operation import declare
from nimbus.control_plane.services import Services
from nimbus.runtime.serving import Response, json_response


def build_joblist_api(services: Services) -> Blueprint:
    """The reading routes under /api/jobs."""
    blueprint = Blueprint("joblist", __name__)
    access = services.access

    @blueprint.get("/api/jobs")
    @declare(LIST_JOBS)
    async def index() -> Response:
        caller = read_caller(access)
        return json_response(await list_jobs(services, parse_asked(_read_query()), caller.org_id))

    @blueprint.get("/api/jobs/recent")
    @declare(LIST_RECENT_JOBS)
    async def recent() -> Response:
        caller = read_caller(access)
        newest = Asked(JobFilter(), parse_limit(request.args.get("limit")))
        return json_response({"jobs": (await list_jobs(services, newest, caller.org_id))["jobs"]})

    @blueprint.get("/api/jobs/<int:job_id>/wait")
    @declare(EXPLAIN_JOB)
    async def wait(job_id: int) -> Response:
        caller = read_caller(access)
        return json_response(await explain_job(services, job_id, caller.org_id))

    @blueprint.get("/api/jobs/<int:job_id>/events")
    @declare(LIST_JOB_EVENTS)
    async def events(job_id: int) -> Response:
        caller = read_caller(access)
        return json_response(await list_events(services, job_id, parse_asked_events(_read_query()), caller.org_id))

    return blueprint


def _read_query() -> list[tuple[str, str]]:
    """The query string, with every repetition."""
    return list(request.args.items(multi=True))
