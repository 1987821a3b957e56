"""What the fake GitHub shows of its state: `workflow_job` payloads and REST objects, with GitHub's own keys.

Pure rendering, no I/O, no decision. Called by the world, for webhooks, and by the REST routes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

from nimbus.model.job import JobState
from nimbus.sim.accounts import Account
from nimbus.sim.app_auth import PERMISSIONS
from nimbus.sim.forge import Forge
from nimbus.sim.jobs import Job, Repo, Run, Runner, StepRun

Json = dict[str, object]
WEB = "https://github.example"  # pages that the sim does not have; reserved for examples, so never a real site
API = "https://api.github.example"


def iso_time(at_s: float | None) -> str | None:
    """A moment as GitHub writes it: UTC, whole seconds."""
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def render_workflow_job_event(job: Job, action: str, installation_id: int) -> Json:
    """The body of a `workflow_job` delivery."""
    repo = job.run.repo
    body: Json = {
        "action": action,
        "workflow_job": render_workflow_job(job),
        "repository": render_repo(repo),
        "organization": {"login": repo.owner, "id": repo.owner_id, "url": f"{API}/orgs/{repo.owner}"},
        "sender": _login(repo.owner, repo.owner_id, "User"),
        "installation": {"id": installation_id, "node_id": f"MDIz{installation_id}"},
    }
    if job.spec.environment is not None and job.state is JobState.WAITING:
        body["deployment"] = {"id": job.job_id + 1, "environment": job.spec.environment, "task": "deploy"}
    return body


def render_workflow_job(job: Job) -> Json:
    """A job with all the keys that GitHub's payload always has; the runner's are null until it is assigned."""
    run, runner = job.run, job.runner
    run_url = f"{API}/repos/{run.repo.full_name}/actions/runs/{run.run_id}"
    picked_up = job.started_at_s is not None
    return {
        "id": job.job_id,
        "run_id": run.run_id,
        "run_attempt": job.attempt,
        "run_url": run_url,
        "head_sha": _head_sha(run),
        "node_id": f"CR_sim{job.job_id}",
        "head_branch": "main",
        "url": f"{API}/repos/{run.repo.full_name}/actions/jobs/{job.job_id}",
        "html_url": f"{WEB}/{run.repo.full_name}/actions/runs/{run.run_id}/job/{job.job_id}",
        "check_run_url": f"{API}/repos/{run.repo.full_name}/check-runs/{job.job_id}",
        "status": job.state.value,
        "conclusion": job.conclusion.value if job.conclusion is not None else None,
        "created_at": iso_time(job.created_at_s),
        # GitHub fills `started_at` of a queued job with the time of its creation
        "started_at": iso_time(job.started_at_s or job.created_at_s),
        "completed_at": iso_time(job.completed_at_s),
        "name": job.spec.name,
        "workflow_name": run.workflow_name,
        "labels": list(job.spec.labels),
        "runner_id": runner.runner_id if runner is not None else None,
        "runner_name": runner.name if runner is not None else None,
        "runner_group_id": runner.group_id if runner is not None else None,
        "runner_group_name": "Default" if runner is not None else None,
        "steps": [_step(step) for step in job.steps] if picked_up else [],
    }


def render_installation_event(account: Account, action: str, app_id: str) -> Json:
    """The body of an `installation` delivery: created, deleted, suspend or unsuspend."""
    forge = account.forge
    short = ("id", "node_id", "name", "full_name", "private")
    repos = [render_repo(repo) for repo in forge.repos.values()]
    return {
        "action": action,
        "installation": render_installation(account, app_id),
        "repositories": [{key: repo[key] for key in short} for repo in repos],
        "requester": None,
        "sender": _login(forge.owner, forge.owner_id, "User"),
    }


def render_ping(app_id: str) -> Json:
    """The body of a `ping`: of no installation, and without an action."""
    hook: Json = {"type": "App", "id": 1, "name": "web", "active": True, "events": ["workflow_job"], "app_id": app_id}
    return {"zen": "Rehearse it before you need it.", "hook_id": 1, "hook": hook}


def render_installation(account: Account, app_id: str) -> Json:
    """An installation as the App sees it."""
    forge = account.forge
    return {
        "id": account.installation_id,
        "account": _login(forge.owner, forge.owner_id, "Organization"),
        "app_id": app_id,
        "target_id": forge.owner_id,
        "target_type": "Organization",
        "repository_selection": "all",
        "permissions": dict(PERMISSIONS),
        "events": ["workflow_job"],
        "suspended_at": iso_time(account.suspended_at_s),
        "suspended_by": None if account.suspended_at_s is None else _login(forge.owner, forge.owner_id, "User"),
    }


def render_listed_repo(repo: Repo, forge: Forge) -> Json:
    """A repository as the list of an installation's repositories has it."""
    pushed_at = iso_time(forge.pushed_at_s(repo))
    archived = repo.name.lower() in forge.archived
    return {**render_repo(repo), "archived": archived, "disabled": False, "pushed_at": pushed_at}


def run_status(run: Run) -> str:
    """GitHub's word: a run of which one job has started is in progress, however many are queued."""
    waits = {job.state for job in run.jobs} == {JobState.WAITING}
    return "waiting" if waits else run.state.value


def render_run(run: Run) -> Json:
    """A run as the REST API lists it."""
    url = f"{API}/repos/{run.repo.full_name}/actions/runs/{run.run_id}"
    return {
        "id": run.run_id,
        "node_id": f"WFR_sim{run.run_id}",
        "name": run.workflow_name,
        "display_title": run.workflow_name,
        "head_branch": "main",
        "head_sha": _head_sha(run),
        "run_number": run.run_id,
        "run_attempt": run.attempt,
        "event": "push",
        "status": run_status(run),
        "conclusion": run.conclusion,
        "created_at": iso_time(run.created_at_s),
        "run_started_at": iso_time(max(job.created_at_s for job in run.jobs)),
        "updated_at": iso_time(run.updated_at_s),
        "url": url,
        "html_url": f"{WEB}/{run.repo.full_name}/actions/runs/{run.run_id}",
        "jobs_url": f"{url}/jobs",
        "repository": render_repo(run.repo),
    }


def render_repo(repo: Repo) -> Json:
    return {
        "id": repo.repo_id,
        "node_id": f"R_sim{repo.repo_id}",
        "name": repo.name,
        "full_name": repo.full_name,
        "private": True,
        "owner": _login(repo.owner, repo.owner_id, "Organization"),
        "html_url": f"{WEB}/{repo.full_name}",
        "url": f"{API}/repos/{repo.full_name}",
        "default_branch": "main",
        "visibility": "private",
    }


def render_runner(runner: Runner) -> Json:
    """A runner as the REST API lists it."""
    return {
        "id": runner.runner_id,
        "name": runner.name,
        "os": "linux",
        "status": "online" if runner.online else "offline",
        "busy": runner.busy,
        "ephemeral": True,
        "runner_group_id": runner.group_id,
        "labels": [
            {"id": number, "name": label, "type": "custom"} for number, label in enumerate(runner.labels, start=1)
        ],
    }


def render_run_report(run: Run) -> Json:
    """A run for the rehearsal's own API: states, conclusions and history in milliseconds."""
    return {
        "run_id": run.run_id,
        "attempt": run.attempt,
        "workflow": run.workflow_name,
        "repo": run.repo.full_name,
        "status": run.state.value,
        "conclusion": run.conclusion,
        "created_at_ms": _ms(run.created_at_s),
        "jobs": [_job_report(job) for job in run.jobs],
    }


def _job_report(job: Job) -> Json:
    return {
        "job_id": job.job_id,
        "name": job.spec.name,
        "labels": list(job.spec.labels),
        "status": job.state.value,
        "conclusion": job.conclusion,
        "runner_name": job.runner.name if job.runner is not None else None,
        "created_at_ms": _ms(job.created_at_s),
        "online_at_ms": _ms(job.runner.online_at_s) if job.runner is not None else None,
        "started_at_ms": _ms(job.started_at_s),
        "completed_at_ms": _ms(job.completed_at_s),
        "steps": [
            {
                "number": step.number,
                "name": step.spec.name,
                "status": step.state.value,
                "conclusion": step.conclusion,
                "started_at_ms": _ms(step.started_at_s),
                "completed_at_ms": _ms(step.completed_at_s),
            }
            for step in job.steps
        ],
        "history": [{"at_ms": _ms(line.at_s), "what": line.what} for line in job.history],
    }


def _step(step: StepRun) -> Json:
    return {
        "name": step.spec.name,
        "status": step.state.value,
        "conclusion": step.conclusion.value if step.conclusion is not None else None,
        "number": step.number,
        "started_at": iso_time(step.started_at_s),
        "completed_at": iso_time(step.completed_at_s),
    }


def _login(login: str, account_id: int, kind: str) -> Json:
    return {
        "login": login,
        "id": account_id,
        "node_id": f"O_sim{account_id}",
        "url": f"{API}/users/{login}",
        "html_url": f"{WEB}/{login}",
        "type": kind,
        "site_admin": False,
    }


def _head_sha(run: Run) -> str:
    return sha256(str(run.run_id).encode()).hexdigest()[:40]


def _ms(at_s: float | None) -> int | None:
    return None if at_s is None else int(at_s * 1000)
