"""A control plane and a live fake GitHub that know each other, without sweepers: tests sweep when they mean to."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import trio

from nimbus.control_plane.app import build_control_plane
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.demand.inbox import drain_inbox
from nimbus.control_plane.demand.webhooks import WebhookRules
from nimbus.control_plane.forge import Forge
from nimbus.control_plane.github.client import AppCredentials, open_github
from nimbus.control_plane.queue.waitroom import run_waitroom
from nimbus.control_plane.runners.registrations import RunnerRules
from nimbus.control_plane.services import JobRules
from nimbus.runtime.http import open_http
from nimbus.runtime.limiter import WithoutRedis
from nimbus.runtime.postgres import Row
from nimbus.runtime.serving import serve_app
from nimbus.sim.deliveries import WebhookTarget
from nimbus.wire.github import render_signature
from tests.forge import APP_ID, INSTALLATION_ID, Sim, app_key, open_sim
from tests.services import free_port
from tests.unit.control_plane.held import hold
from tests.unit.control_plane.plane import Plane, key_of, open_services

SECRET = "webhook-secret"
PREVIOUS = "webhook-secret-before"


@dataclass(frozen=True)
class GithubPlane:
    """Both sides, and GitHub's events as a test writes them."""

    plane: Plane
    sim: Sim
    forge: Forge

    async def deliver(
        self,
        body: bytes | dict[str, Any],
        *,
        guid: str | None = None,
        event: str = "workflow_job",
        secret: str = SECRET,
        **headers: str,
    ) -> httpx2.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": guid or str(uuid.uuid4()),
            "X-Hub-Signature-256": render_signature(secret, raw),
        } | headers
        return await self.plane.http.post("/webhooks/github", content=raw, headers=sent)

    async def drain(self) -> int:
        """Process what is in the inbox, as the control plane does by itself; how many."""
        return await drain_inbox(self.plane.services, self.forge.demand)

    async def tell(self, action: str, job_id: int = 1, **job: Any) -> httpx2.Response:
        """Deliver an event of a job, and have it processed."""
        answer = await self.deliver(job_event(action, job_id, **job))
        assert answer.status_code == 202, answer.text
        await self.drain()
        return answer

    async def machines(self) -> list[Row]:
        return await self.plane.sql("SELECT * FROM machines ORDER BY machine_id")

    async def states(self) -> list[str]:
        return [row["state"] + ("!" if row["cancel_requested"] else "") for row in await self.machines()]

    async def jobs(self) -> list[Row]:
        return await self.plane.sql("SELECT * FROM jobs ORDER BY forge_job_id")

    async def delivery_states(self) -> list[str]:
        return [row["state"] for row in await self.plane.sql("SELECT state FROM deliveries ORDER BY received_at")]

    async def mint(self, agent: dict[str, str], grant: dict[str, Any]) -> httpx2.Response:
        path = f"/api/machines/{grant['machine_id']}/runner"
        return await self.plane.http.post(path, json=key_of(grant), headers=agent)

    async def name_of(self, grant: dict[str, Any], fence: int = 1) -> str:
        """The name that the machine's runner has under one lease."""
        [deployment] = await self.plane.sql("SELECT deployment_id FROM deployment")
        return f"nimbus-{deployment['deployment_id']}-{grant['machine_id']}-{fence}"

    async def lease(self, agent: dict[str, str]) -> dict[str, Any]:
        grant = await self.plane.lease(agent)
        assert grant is not None
        return grant


def job_event(action: str, job_id: int = 1, **job: Any) -> dict[str, Any]:
    """A `workflow_job` payload; `owner` and `repo` may be replaced too."""
    owner = job.pop("owner", {"id": 501, "login": "octo-org"})
    repo = job.pop("repo", {"id": 601, "name": "hello", "full_name": "octo-org/hello", "private": True})
    workflow_job = {
        "id": job_id, "run_id": 10, "run_attempt": 1, "name": "build", "workflow_name": "CI",
        "head_branch": "main", "head_sha": "0" * 40, "html_url": "https://github.example/x", "conclusion": None,
        "status": action, "created_at": "2026-11-21T08:00:00Z", "started_at": "2026-11-21T08:00:00Z",
        "completed_at": None, "labels": ["nimbus"], "runner_id": None, "runner_name": None, "steps": [],
    } | job  # fmt: skip
    return {
        "action": action,
        "workflow_job": workflow_job,
        "repository": repo | {"owner": owner},
        "installation": {"id": INSTALLATION_ID},
    }


@asynccontextmanager
async def open_github_plane(
    dsn: str,
    redis_url: str,
    *,
    demand: DemandRules | None = None,
    webhooks: WebhookRules | None = None,
    runners: RunnerRules | None = None,
    rules: JobRules | None = None,
    prefix: str | None = None,
    without_redis: WithoutRedis = WithoutRedis.LOCAL,
) -> AsyncIterator[GithubPlane]:
    """A control plane and a sim, each on a free port; the sim's webhooks reach the control plane."""
    address = f"127.0.0.1:{free_port()}"  # the sim is told of it before the control plane has a client for the sim
    with trio.fail_after(120):
        async with (
            open_services(dsn, redis_url, rules=rules, prefix=prefix, without_redis=without_redis) as services,
            open_sim(WebhookTarget(f"http://{address}/webhooks/github", SECRET)) as sim,
            open_github(sim.url, AppCredentials(APP_ID, app_key().private_pem)) as github,
            trio.open_nursery() as nursery,
        ):
            forge = Forge(github, webhooks or WebhookRules((SECRET, PREVIOUS)), demand or DemandRules())
            forge = replace(forge, runners=runners or RunnerRules())
            app = build_control_plane(services)
            forge.register(app, services)
            nursery.start_soon(forge.intake.run, services)
            nursery.start_soon(run_waitroom, services)
            urls = await nursery.start(serve_app, app, [address], services.stopping)
            async with open_http(urls[0]) as http:
                hold(http, app)
                yield GithubPlane(Plane(services, http, urls[0]), sim, forge)
            services.stopping.set()
            nursery.cancel_scope.cancel()
