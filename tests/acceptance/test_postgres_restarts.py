"""PostgreSQL stops and comes back under a control plane at work: clients wait, nothing that was confirmed is lost.

A load of everything at once, each caller trying again as the answer says, while the server is shut down and while it is
killed. Whatever is asked is answered by what the document knows, and the service goes on by itself.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from nimbus.wire.github import render_signature
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.acceptance.fleet import Fleet, running_fleet, show
from tests.acceptance.stack import LIMIT_S
from tests.services import PostgresServer, open_postgres, open_schema
from tests.unit.control_plane.github_plane import job_event

pytestmark = [pytest.mark.services, pytest.mark.slow]

Json = dict[str, Any]
JOBS = 60
DELIVERIES = 60
AGENTS = 3
AWAY_ANSWERS = 20  # as many 503s are seen before the server may come back
PAUSE_S = 0.1  # of a caller whose answer was 503: Retry-After tells people's programs more, and tests wait less
NOT_LIMITED = "1000000000"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, which it may stop."""
    with open_postgres() as own:
        yield own


@dataclass
class Load:
    """Everybody who calls, and what they saw."""

    fleet: Fleet
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)  # by idempotency key
    finished: set[int] = field(default_factory=set)  # machines
    deliveries: set[str] = field(default_factory=set)
    busy: trio.Event = field(default_factory=trio.Event)  # a part of the jobs is submitted, and one is done
    away: trio.Event = field(default_factory=trio.Event)  # enough of them were told so, and /readyz said so as well
    unready: int = 0

    @property
    def url(self) -> str:
        return self.fleet.env["NIMBUS_CONTROL_PLANE_URL"]

    def admin(self) -> dict[str, str]:
        return self._bearer(self.fleet.env["NIMBUS_JWT_SECRET"], "tester", Audience.ADMIN, role="admin")

    def enrolment(self, agent_id: str) -> dict[str, str]:
        return self._bearer(self.fleet.secret, agent_id, Audience.AGENT_ENROLMENT)

    def _bearer(self, secret: str, subject: str, audience: Audience, **claims: object) -> dict[str, str]:
        token = render_token(
            hmac_key(secret), subject=subject, audience=audience, now_s=time.time(), ttl_s=3600, claims=claims
        )
        return {"Authorization": f"Bearer {token}"}

    async def ask(self, http: httpx2.AsyncClient, what: str, method: str, path: str, **more: Any) -> httpx2.Response:
        """Ask until the answer is not that something is away."""
        while True:
            answer = await http.request(method, path, **more)
            self._note(what, answer)
            if answer.status_code != 503:
                return answer
            await trio.sleep(PAUSE_S)

    def _note(self, what: str, answer: httpx2.Response) -> None:
        status = answer.status_code
        self.answers[what, status] += 1
        if status == 503:
            if not answer.headers.get("Retry-After", "").isdigit():
                self.wrong.append(f"{what}: 503 without Retry-After")
        elif status >= 500 or answer.status_code in {400, 401, 403}:
            self.wrong.append(f"{what}: {status} {answer.text[:200]}")
        if self.unready and sum(count for (_, told), count in self.answers.items() if told == 503) >= AWAY_ANSWERS:
            self.away.set()

    async def submit(self, http: httpx2.AsyncClient) -> None:
        for _ in range(JOBS):
            key = str(uuid.uuid4())
            body = {"argv": ["true"], "idempotency_key": key}
            answer = await self.ask(http, "submit", "POST", "/api/jobs", json=body, headers=self.admin())
            if answer.status_code in {200, 201}:
                self.jobs[key] = answer.json()["job_id"]
            await trio.sleep(PAUSE_S)

    async def deliver(self, http: httpx2.AsyncClient, secret: str) -> None:
        for number in range(DELIVERIES):
            guid = str(uuid.uuid4())
            raw = httpx2.Request("POST", "http://x", json=job_event("queued", number + 1, labels=["other"])).content
            headers = {
                "X-GitHub-Event": "workflow_job",
                "X-GitHub-Delivery": guid,
                "X-Hub-Signature-256": render_signature(secret, raw),
            }
            answer = await self.ask(http, "webhook", "POST", "/webhooks/github", content=raw, headers=headers)
            if answer.status_code in {200, 202}:
                self.deliveries.add(guid)
            await trio.sleep(PAUSE_S)

    async def work(self, http: httpx2.AsyncClient, agent_id: str) -> None:
        """An agent that leases, renews and finishes until it is cancelled."""
        who = {"version": "0.1.0", "boot_id": "b", "cpus": 4, "mem_mib": 4096}
        headers = self.enrolment(agent_id)
        reply = await self.ask(http, "enrol", "POST", "/api/agents/enrol", json=who, headers=headers)
        headers = {"Authorization": f"Bearer {reply.json()['token']}"}
        asked = {"wait_s": 1.0, "free": {"cpus": 4, "mem_mib": 4096, "slots": 1}, "labels": ["nimbus"]}
        while True:
            reply = await self.ask(http, "lease", "POST", "/api/agents/lease", json=asked, headers=headers)
            if reply.status_code != 200:
                continue
            grant = reply.json()
            path, key = f"/api/machines/{grant['machine_id']}", {name: grant[name] for name in ("lease_id", "fence")}
            renewal = key | {"state": "running"}
            reply = await self.ask(http, "renew", "POST", f"{path}/renew", json=renewal, headers=headers)
            if reply.status_code == 200:
                end = key | {"ending": "done", "exit_code": 0}
                reply = await self.ask(http, "finish", "POST", f"{path}/finish", json=end, headers=headers)
            if reply.status_code == 200:
                self.finished.add(grant["machine_id"])
                if len(self.jobs) >= JOBS // 4:
                    self.busy.set()

    async def watch(self, http: httpx2.AsyncClient) -> None:
        """Look at health and at what operators look at, until cancelled."""
        while True:
            alive = await http.get("/healthz")
            if alive.status_code != 200:
                self.wrong.append(f"/healthz: {alive.status_code}")
            ready = await http.get("/readyz")
            self.unready += ready.status_code == 503
            self._note("ready", ready)
            self._note("status", await http.get("/api/status", headers=self.admin()))
            await trio.sleep(PAUSE_S)

    async def settled(self, http: httpx2.AsyncClient) -> None:
        """Return once every job that was confirmed has ended well."""
        for job_id in self.jobs.values():
            while True:
                answer = await self.ask(http, "job", "GET", f"/api/jobs/{job_id}", headers=self.admin())
                assert answer.status_code == 200, f"job {job_id} was confirmed: {answer.text}"
                if answer.json()["state"] == "completed":
                    assert answer.json()["conclusion"] == "success", answer.text
                    break
                await trio.sleep(PAUSE_S)


async def _run(load: Load, server: PostgresServer, how: signal.Signals) -> None:
    secret = load.fleet.plane.env["NIMBUS_GITHUB_WEBHOOK_SECRET"]
    limits = httpx2.Timeout(LIMIT_S)
    with trio.fail_after(3 * LIMIT_S):
        async with (
            httpx2.AsyncClient(base_url=load.url, timeout=limits, trust_env=False) as http,
            trio.open_nursery() as others,
        ):
            for number in range(AGENTS):
                others.start_soon(load.work, http, f"host-{number}-{secrets.token_hex(4)}")
            others.start_soon(load.watch, http)
            async with trio.open_nursery() as callers:
                callers.start_soon(load.submit, http)
                callers.start_soon(load.deliver, http, secret)
                await load.busy.wait()
                await trio.to_thread.run_sync(server.stop, how)
                await load.away.wait()
                await trio.to_thread.run_sync(server.start)
            await load.settled(http)
            others.cancel_scope.cancel()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut down", "crashed"])
def test_while_postgres_restarts_clients_are_told_to_wait_and_nothing_that_was_confirmed_is_lost(
    tmp_path: Path, server: PostgresServer, redis_url: str, how: signal.Signals
) -> None:
    settings = {
        "NIMBUS_ORG_JOB_RATE_LIMIT": NOT_LIMITED,
        "NIMBUS_GITHUB_API_URL": "http://127.0.0.1:9",
        "NIMBUS_JOB_LEASE_TTL": "20",
    }
    with open_schema(server) as dsn:
        name = dsn.removeprefix("postgresql://nimbus@/").partition("?")[0]
        server.sql(f"ALTER DATABASE {name} SET synchronous_commit = on")  # what a crash must not take was written down
        with running_fleet(tmp_path, dsn, redis_url, logs=False, **settings) as fleet:
            load = Load(fleet)
            trio.run(_run, load, server, how)
            pid_lives = fleet.plane.is_running()
            crashes = fleet.plane.events("request.crashed")
            kept = _column(server, name, "SELECT guid FROM deliveries")

    show(", ".join(f"{what} {status}: {count}" for (what, status), count in sorted(load.answers.items())))
    assert [crash["exception"][-2500:] for crash in crashes] == []
    assert load.wrong == []
    assert pid_lives
    assert len(set(load.jobs.values())) == JOBS
    assert load.deliveries <= kept
    assert len(load.deliveries) == DELIVERIES


def _column(server: PostgresServer, database: str, query: str) -> set[str]:
    command = [str(server.bin / "psql"), "-qXAt", "-h", str(server.folder), "-U", "nimbus", "-c", query, database]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(told.split())
