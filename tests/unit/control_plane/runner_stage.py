"""What the tests of runners share: leased machines, GitHub's runners, and one round of each sweeper."""

from __future__ import annotations

from typing import Any

import trio

from nimbus.control_plane.duties import Duty
from nimbus.control_plane.runners.registrations import Patience, Registrar, Undoing, deregister_ended, release_idle
from nimbus.control_plane.runners.roster import check_rosters
from nimbus.sim.jobs import Run, Runner
from nimbus.sim.workflow import parse_workflow
from tests.unit.control_plane.github_plane import GithubPlane

ONE_JOB = "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}}"


def registered(github: GithubPlane) -> dict[str, Runner]:
    return {runner.name: runner for runner in github.sim.world.forge.runners.values()}


async def leased(github: GithubPlane, jobs: int = 1) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """An agent that holds a machine for each of so many queued jobs."""
    agent = await github.plane.enrol()
    for job_id in range(1, jobs + 1):
        await github.tell("queued", job_id)
    return agent, [await github.lease(agent) for _ in range(jobs)]


async def minted(github: GithubPlane, jobs: int = 1) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The same, each with its runner."""
    agent, grants = await leased(github, jobs)
    for grant in grants:
        assert (await github.mint(agent, grant)).status_code == 200
    return agent, grants


def registrar(github: GithubPlane) -> Registrar:
    return github.forge.registrar(github.plane.services)


async def undo(github: GithubPlane, patience: Patience | None = None) -> tuple[int, int]:
    """How many ended and how many idle runners one round takes away."""
    undoing = Undoing(registrar(github), patience or Patience(), trio.lowlevel.checkpoint)
    return await deregister_ended(undoing), await release_idle(undoing)


async def look(github: GithubPlane, rounds: int = 1) -> None:
    """So many rounds over GitHub's lists, one after the other's notes."""
    duty = Duty(github.plane.services, "runners", ttl_s=3600)
    for _ in range(rounds):
        await check_rosters(registrar(github), duty)


def take_job(github: GithubPlane, runner: Runner) -> Run:
    """GitHub gives the runner a job of its own, which nobody has told us of."""
    forge = github.sim.world.forge
    run = forge.start_run(parse_workflow(ONE_JOB), "hello")
    forge.go_online(runner)
    forge.accept(runner, run.jobs[0].job_id)
    return run
