"""REST for an installation's repositories and what runs in them: what the poll asks (facts 5.5).

Paths, bodies and errors are GitHub's. It holds no state; `github_api.py` adds the routes.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

from quart import Blueprint, Response, request

from nimbus.model.errors import Forbidden, NotFound, Refused
from nimbus.sim.accounts import Account, Refusal
from nimbus.sim.jobs import Job, Repo, Run
from nimbus.sim.payloads import render_listed_repo, render_run, render_workflow_job, run_status
from nimbus.sim.rest import IP_ALLOW_LIST, enter_actions, enter_installation, page_of, reply
from nimbus.sim.world import World

_STATUSES = frozenset({"queued", "in_progress", "completed", "waiting"})
_CONCLUSIONS = frozenset({"success", "failure", "cancelled", "skipped"})
_RUNS = "/repos/<owner>/<repo>/actions/runs"


def add_run_routes(blueprint: Blueprint, world: World) -> None:
    """Repositories, runs and jobs."""

    @blueprint.get("/installation/repositories")
    async def list_repositories() -> Response:
        token, account = enter_installation(world)
        if account.refuses(Refusal.IP_ALLOW_LIST, ""):
            raise Forbidden(IP_ALLOW_LIST.format(owner=account.owner))
        forge = account.forge
        found = [
            repo
            for repo in forge.repos.values()
            if token.reaches(repo.name) and not account.refuses(Refusal.NO_PERMISSION, repo.name)
        ]
        page, links = page_of(found)
        listed = [render_listed_repo(repo, forge) for repo in page]
        return reply({"total_count": len(found), "repositories": listed}, headers=links)

    @blueprint.get(_RUNS)
    async def list_runs(owner: str, repo: str) -> Response:
        account, there = _repo(world, owner, repo)
        wanted = request.args.get("status")
        if wanted is not None and wanted not in _STATUSES | _CONCLUSIONS:
            raise Refused("Validation Failed")
        runs = [run for run in reversed(account.forge.runs.values()) if run.repo == there]
        found = [run for run in runs if wanted in {None, run_status(run), run.conclusion}]
        page, links = page_of(found)
        return reply({"total_count": len(found), "workflow_runs": [render_run(run) for run in page]}, headers=links)

    @blueprint.get(f"{_RUNS}/<int:run_id>")
    async def show_run(owner: str, repo: str, run_id: int) -> Response:
        return reply(render_run(_run(world, owner, repo, run_id)))

    @blueprint.get(f"{_RUNS}/<int:run_id>/jobs")
    async def list_jobs(owner: str, repo: str, run_id: int) -> Response:
        run = _run(world, owner, repo, run_id)
        return _job_page([*run.past, *run.jobs] if request.args.get("filter") == "all" else run.jobs)

    @blueprint.get(f"{_RUNS}/<int:run_id>/attempts/<int:attempt>/jobs")
    async def list_attempt(owner: str, repo: str, run_id: int, attempt: int) -> Response:
        run = _run(world, owner, repo, run_id)
        if not 1 <= attempt <= run.attempt:
            raise NotFound("Not Found")
        return _job_page(run.jobs_of(attempt))

    @blueprint.get("/repos/<owner>/<repo>/actions/jobs/<int:job_id>")
    async def show_job(owner: str, repo: str, job_id: int) -> Response:
        account, there = _repo(world, owner, repo)
        job = account.forge.jobs.get(job_id)
        if job is None or job.run.repo != there:
            raise NotFound("Not Found")
        return reply(render_workflow_job(job))


def _repo(world: World, owner: str, repo: str) -> tuple[Account, Repo]:
    account = enter_actions(world, owner, repo, "actions")
    if repo.lower() not in account.forge.repos:
        raise NotFound("Not Found")
    return account, account.forge.repo(repo)


def _run(world: World, owner: str, repo: str, run_id: int) -> Run:
    account, there = _repo(world, owner, repo)
    run = account.forge.runs.get(run_id)
    if run is None or run.repo != there:
        raise NotFound("Not Found")
    return run


def _job_page(jobs: list[Job]) -> Response:
    page, links = page_of(jobs)
    return reply({"total_count": len(jobs), "jobs": [render_workflow_job(job) for job in page]}, headers=links)
