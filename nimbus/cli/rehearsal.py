"""A workflow on the fake GitHub, watched from outside as a user would: events, our job, its output. Starts no service.

Speaks to the sim's control API and to the control plane's public API only. Called by `nimbus demo`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import trio

from nimbus.cli.stack.rooms import StackPlan
from nimbus.model.errors import NotFound
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.wire.tokens import Audience, hmac_key, render_token

POLL_S = 0.1  # the sim has no event for us; GitHub's own API has none either
TOKEN_TTL_S = 3600.0
OUTPUT_S = 15.0  # for the last lines to arrive once the job has ended
MACHINE_S = 60.0  # for the agent to tear down and report
ENDED = frozenset({"done", "failed", "cancelled", "lost"})
Json = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsed:
    """One run of a workflow, from both sides."""

    run: Json  # GitHub's side
    machines: tuple[Json, ...]  # ours, one for each job, in the run's order

    @property
    def succeeded(self) -> bool:
        return self.run.get("conclusion") == "success"


async def rehearse(plan: StackPlan, workflow: bytes, say: Say, output_fd: int) -> Rehearsed:
    """Post the workflow and follow it to its end. The caller's scope limits how long that may take."""
    control_token = plan.secrets["NIMBUS_SIM_CONTROL_TOKEN"]
    admin = _mint(plan, Audience.ADMIN)
    async with (
        open_http(plan.sim_url, token=control_token) as sim,
        open_http(plan.control_plane_url, token=admin) as us,
    ):
        run = await _call(sim, "POST", "/sim/workflows", "the fake GitHub", workflow)
        say(f"GitHub: run {run['run_id']} of workflow '{run['workflow']}', {len(run['jobs'])} job(s) queued")
        async with trio.open_nursery() as readers:
            for job in run["jobs"]:
                readers.start_soon(_follow_output, us, plan, job, output_fd)
            run = await _watch_run(sim, run, say)
            readers.cancel_scope.deadline = trio.current_time() + OUTPUT_S
        machines = [await _wait_machine(us, job) for job in run["jobs"]]
    return Rehearsed(run, tuple(machines))


async def _watch_run(sim: httpx2.AsyncClient, run: Json, say: Say) -> Json:
    shown: dict[int, int] = {}
    while True:
        for job in run["jobs"]:
            for line in job["history"][shown.get(job["job_id"], 0) :]:
                say(f"GitHub: {job['name']}: {line['what']} (+{line['at_ms'] - run['created_at_ms']:.0f} ms)")
            shown[job["job_id"]] = len(job["history"])
        if run["status"] == "completed":
            return run
        await trio.sleep(POLL_S)
        run = await _call(sim, "GET", f"/sim/runs/{run['run_id']}", "the fake GitHub")


async def _follow_output(us: httpx2.AsyncClient, plan: StackPlan, job: Mapping[str, Any], output_fd: int) -> None:
    """The job's output on `output_fd`, through the logging pipeline: by the very command a user would type."""
    while True:
        with suppress(NotFound):  # until the webhook has been worked in
            known = await _call(us, "GET", f"/api/jobs/{job['job_id']}", "the control plane")
            if known["machines"]:
                break
        await trio.sleep(POLL_S)
    argv = [sys.executable, "-m", "nimbus", "logs", "--logs-url", plan.logs_url]
    argv += ["--job-id", str(known["job_id"]), "--follow"]
    env = {name: plan.environ[name] for name in ("PATH", "HOME", "LANG", "TERM", "LC_ALL") if name in plan.environ}
    env["NIMBUS_JWT_SECRET"] = plan.secrets["NIMBUS_JWT_SECRET"]
    await trio.run_process(argv, env=env, check=False, stdin=subprocess.DEVNULL, stdout=output_fd)


async def _wait_machine(us: httpx2.AsyncClient, job: Mapping[str, Any]) -> Json:
    """The machine that ran the job, when it has ended; what is known of it by then where it does not end."""
    machine: Json = {}
    with trio.move_on_after(MACHINE_S):
        while machine.get("state") not in ENDED:
            with suppress(NotFound):
                known = await _call(us, "GET", f"/api/jobs/{job['job_id']}", "the control plane")
                machine = known["machines"][-1] if known["machines"] else machine
            if machine.get("state") not in ENDED:
                await trio.sleep(POLL_S)
    return machine


async def _call(client: httpx2.AsyncClient, method: str, path: str, service: str, content: bytes | None = None) -> Json:
    with mapped_http_errors(service):
        response = await client.request(method, path, content=content)
    body = check_status(response, service).json()
    return body if isinstance(body, dict) else {}


def _mint(plan: StackPlan, audience: Audience) -> str:
    key = hmac_key(plan.secrets["NIMBUS_JWT_SECRET"])
    claims = {"role": "read"}
    return render_token(key, subject="demo", audience=audience, now_s=time.time(), ttl_s=TOKEN_TTL_S, claims=claims)
