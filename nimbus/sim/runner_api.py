"""The fake GitHub's side of the runner: plain lines of text that a busybox shell can read.

The real runner's protocol is not public and not small; this one exists for `nimbus-runner`, the script in
the base image. Every request carries the token of the runner's JIT config, or the one it got when it registered
itself; a runner reaches its own job only. The first word of an answer says what to do. `app.py` registers it.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import shlex

import trio
from quart import Blueprint, Response, request

from nimbus.model.errors import NimbusError, NotFound, Refused, Unauthorized
from nimbus.sim.callers import read_bearer, read_body
from nimbus.sim.forge import Forge
from nimbus.sim.jobs import Conclusion, Job, Runner
from nimbus.sim.runner_registration import add_registration_routes, say
from nimbus.sim.world import World

MAX_WAIT_S = 30.0
_PREFIX = "/_runner"


def _wait_s() -> float:
    return min(max(request.args.get("wait", 0.0, type=float), 0.0), MAX_WAIT_S)


async def _conclusion() -> Conclusion:
    raw = await read_body()
    try:
        return Conclusion(raw.decode("ascii", "replace").strip())
    except ValueError:
        raise Refused(f"a conclusion is one of {', '.join(Conclusion)}") from None


def runner_blueprint(world: World) -> Blueprint:
    """The runner protocol over one world."""
    blueprint = Blueprint("runner", __name__, url_prefix=_PREFIX)

    @blueprint.errorhandler(NimbusError)
    async def refuse(error: NimbusError) -> Response:
        status = 401 if isinstance(error, Unauthorized) else 404 if isinstance(error, NotFound) else 409
        return say(f"refused {error}", status=status)

    add_registration_routes(blueprint, world)
    _add_session_routes(blueprint, world)
    _add_job_routes(blueprint, world)
    _add_step_routes(blueprint, world)
    return blueprint


def _runner(world: World) -> tuple[Forge, Runner]:
    return world.accounts.of_runner(read_bearer())


def _job(world: World, job_id: int) -> tuple[Forge, Job]:
    forge, runner = _runner(world)
    return forge, forge.job_of(runner, job_id)


def _add_session_routes(blueprint: Blueprint, world: World) -> None:
    @blueprint.post("/session")
    async def open_session() -> Response:
        forge, runner = _runner(world)
        forge.go_online(runner)
        return say("ok", f"name {runner.name}")

    @blueprint.post("/offline")
    async def close_session() -> Response:
        forge, runner = _runner(world)
        forge.go_offline(runner)
        return say("ok")

    @blueprint.get("/job")
    async def wait_job() -> Response:
        forge, runner = _runner(world)
        forge.go_online(runner)  # a runner that the sim had given up as offline is back
        with trio.move_on_after(_wait_s()):
            while forge.offer(runner) is None and runner.runner_id in forge.runners:
                await world.bell.wait()
        job = forge.offer(runner)
        if runner.runner_id not in forge.runners:
            return say("gone")
        return say("none") if job is None else say(f"job {job.job_id}", f"steps {len(job.steps)}", job.spec.name)


def _add_job_routes(blueprint: Blueprint, world: World) -> None:
    @blueprint.post("/jobs/<int:job_id>/accept")
    async def accept(job_id: int) -> Response:
        forge, runner = _runner(world)
        forge.accept(runner, job_id)
        return say("ok")

    @blueprint.get("/jobs/<int:job_id>/state")
    async def wait_state(job_id: int) -> Response:
        _, job = _job(world, job_id)
        with trio.move_on_after(_wait_s()):
            while job.cancelled_at_s is None and job.completed_at_s is None:
                await world.bell.wait()
        if job.completed_at_s is not None:
            return say("completed")
        return say("running" if job.cancelled_at_s is None else "cancelled")

    @blueprint.post("/jobs/<int:job_id>/complete")
    async def complete(job_id: int) -> Response:
        conclusion = await _conclusion()
        forge, runner = _runner(world)
        forge.complete(runner, job_id, conclusion)
        return say("ok")


def _add_step_routes(blueprint: Blueprint, world: World) -> None:
    root = "/jobs/<int:job_id>/steps/<int:number>"

    @blueprint.get(root)
    async def show(job_id: int, number: int) -> Response:
        forge, job = _job(world, job_id)
        spec = forge.step(job, number).spec
        return say(f"if {spec.condition}", spec.name)

    @blueprint.get(f"{root}/script")
    async def script(job_id: int, number: int) -> Response:
        forge, job = _job(world, job_id)
        spec = forge.step(job, number).spec
        return say(spec.run.removesuffix("\n"))

    @blueprint.get(f"{root}/env")
    async def environment(job_id: int, number: int) -> Response:
        forge, job = _job(world, job_id)
        values = {**_context(job), **forge.step(job, number).spec.env}
        return say(*(f"export {name}={shlex.quote(value)}" for name, value in values.items()))

    @blueprint.post(f"{root}/start")
    async def start(job_id: int, number: int) -> Response:
        forge, job = _job(world, job_id)
        forge.start_step(job, number)
        return say("ok" if job.cancelled_at_s is None else "cancelled")

    @blueprint.post(f"{root}/finish")
    async def finish(job_id: int, number: int) -> Response:
        conclusion = await _conclusion()
        forge, job = _job(world, job_id)
        forge.finish_step(job, number, conclusion)
        return say("ok")


def _context(job: Job) -> dict[str, str]:
    """What GitHub sets for every step and a script may rely on."""
    run = job.run
    return {
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_JOB": job.spec.key,
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_REPOSITORY": run.repo.full_name,
        "GITHUB_REPOSITORY_OWNER": run.repo.owner,
        "GITHUB_RUN_ATTEMPT": str(run.attempt),
        "GITHUB_RUN_ID": str(run.run_id),
        "GITHUB_WORKFLOW": run.workflow_name,
        "RUNNER_NAME": job.runner.name if job.runner is not None else "",
        "RUNNER_OS": "Linux",
    }
