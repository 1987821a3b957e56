"""A control plane for tests: real application, real PostgreSQL, spoken to over a real socket."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import trio

from nimbus.control_plane.app import build_control_plane
from nimbus.control_plane.keys.cachetokens import CacheTerms
from nimbus.control_plane.keys.ring import KeyTerms
from nimbus.control_plane.keys.rotation import open_keychain
from nimbus.control_plane.metrics import Metrics
from nimbus.control_plane.orgs.seals import Seals
from nimbus.control_plane.queue.silence import expire_leases
from nimbus.control_plane.queue.waitroom import run_waitroom
from nimbus.control_plane.services import AccessPolicy, HostTerms, JobRules, LeaseTerms, Services
from nimbus.runtime.http import open_http
from nimbus.runtime.limiter import WithoutRedis, open_limiter
from nimbus.runtime.nonces import open_nonces
from nimbus.runtime.postgres import Row, Transaction, open_database
from nimbus.runtime.proxies import parse_networks
from nimbus.runtime.redis import open_bell
from nimbus.runtime.serving import serve_app
from nimbus.runtime.settings import SharedSecret
from nimbus.wire.cachetokens import derive_cache_key
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.secretwatch import learn
from tests.unit.control_plane.held import hold

ADMIN_SECRET = "admin-secret-" + "x" * 32
AGENT_SECRET = "agent-secret-" + "y" * 32
CACHE_SECRET = "cache-secret-" + "z" * 32


@dataclass(frozen=True)
class Plane:
    """A running control plane and the ways in."""

    services: Services
    http: httpx2.AsyncClient
    url: str

    def admin(self, **claims: object) -> dict[str, str]:
        return bearer(
            render_token(
                self.services.access.admin_keys[0],
                subject="tester",
                audience=Audience.ADMIN,
                now_s=time.time(),
                ttl_s=60,
                claims={"role": "admin"} | claims,
            )
        )

    def service(self) -> dict[str, str]:
        key = self.services.access.admin_keys[0]
        return bearer(
            render_token(key, subject="service:logs", audience=Audience.INTERNAL, now_s=time.time(), ttl_s=60)
        )

    async def enrol(self, agent_id: str = "agent-1", **body: object) -> dict[str, str]:
        key = self.services.access.enrolment_keys[0]
        token = render_token(key, subject=agent_id, audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=60)
        asked = {"version": "0.1.0", "boot_id": "b", "cpus": 8, "mem_mib": 8192} | body
        reply = await self.http.post("/api/agents/enrol", json=asked, headers=bearer(token))
        assert reply.status_code == 200, reply.text
        return bearer(reply.json()["token"])

    async def submit(self, expect: int = 201, **body: object) -> dict[str, Any]:
        reply = await self.http.post("/api/jobs", json={"argv": ["true"]} | body, headers=self.admin())
        assert reply.status_code == expect, reply.text
        return dict(reply.json())

    async def lease(self, agent: dict[str, str], wait_s: float = 0.0, **free: int) -> dict[str, Any] | None:
        room = {"cpus": 8, "mem_mib": 8192, "slots": 8} | free
        body = {"wait_s": wait_s, "free": room, "labels": ["nimbus"]}
        reply = await self.http.post("/api/agents/lease", json=body, headers=agent)
        assert reply.status_code in {200, 204}, reply.text
        return None if reply.status_code == 204 else dict(reply.json())

    async def renew(self, agent: dict[str, str], grant: dict[str, Any], state: str = "running") -> httpx2.Response:
        path = f"/api/machines/{grant['machine_id']}/renew"
        return await self.http.post(path, json=key_of(grant) | {"state": state}, headers=agent)

    async def finish(
        self, agent: dict[str, str], grant: dict[str, Any], ending: str = "done", **more: object
    ) -> httpx2.Response:
        path = f"/api/machines/{grant['machine_id']}/finish"
        return await self.http.post(path, json=key_of(grant) | {"ending": ending} | more, headers=agent)

    async def job(self, job_id: int) -> dict[str, Any]:
        reply = await self.http.get(f"/api/jobs/{job_id}", headers=self.admin())
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def pass_deadlines(self) -> int:
        """Let every lease's deadline be past, as Postgres sees it, and sweep."""
        await self.sql("UPDATE machines SET deadline = clock_timestamp() - interval '1 s' WHERE deadline IS NOT NULL")
        return await expire_leases(self.services)

    async def sql(self, text: str, *args: object) -> list[Row]:
        async def fetch(transaction: Transaction) -> list[Row]:
            return list(await transaction.fetch(text, *args))

        return await self.services.database.run(fetch)


async def add_agents(services: Services, *agent_ids: str) -> None:
    """Hosts that are known without having enrolled: 64 CPUs, 1 TiB. Only such are granted anything."""

    async def add(transaction: Transaction) -> None:
        await transaction.execute(
            "INSERT INTO agents (agent_id, version, boot_id, cpus, mem_mib) "
            "SELECT unnest($1::text[]), '0.1.0', 'b', 64, 1048576 ON CONFLICT (agent_id) DO NOTHING",
            list(agent_ids),
        )

    await services.database.run(add)


def key_of(grant: dict[str, Any]) -> dict[str, object]:
    return {"lease_id": grant["lease_id"], "fence": grant["fence"]}


def bearer(token: str) -> dict[str, str]:
    learn("a token that a test showed", token)
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def open_services(
    dsn: str,
    redis_url: str,
    *,
    terms: LeaseTerms | None = None,
    rules: JobRules | None = None,
    hosts: HostTerms | None = None,
    prefix: str | None = None,
    without_redis: WithoutRedis = WithoutRedis.LOCAL,
) -> AsyncIterator[Services]:
    """The control plane's services on a test's own database and bell."""
    for secret in (ADMIN_SECRET, AGENT_SECRET, CACHE_SECRET):
        learn("a shared secret of the test's control plane", secret)
    access = AccessPolicy((hmac_key(ADMIN_SECRET),), (hmac_key(AGENT_SECRET),), agent_token_rate_limit=100)
    async with open_database(dsn, pool_size=4) as database:
        keys = await open_keychain(database, KeyTerms())
        prefix = prefix or f"test:{uuid.uuid4()}:"
        async with (
            open_bell(redis_url, database.bridge, prefix=prefix) as bell,
            open_nonces(redis_url, database.bridge, prefix=prefix) as nonces,
            open_limiter(redis_url, database.bridge, without_redis, prefix) as limiter,
        ):
            yield Services(
                database, bell, keys, Metrics(), access, nonces, limiter, CacheTerms(derive_cache_key(CACHE_SECRET)),
                Seals(SharedSecret("NIMBUS_JWT_SECRET", ADMIN_SECRET)),
                terms or LeaseTerms(), rules or JobRules(rate_limit=1000),
                hosts or HostTerms(), log_url="http://logs.test/ingest",
            )  # fmt: skip


@asynccontextmanager
async def open_plane(
    dsn: str,
    redis_url: str,
    *,
    terms: LeaseTerms | None = None,
    rules: JobRules | None = None,
    hosts: HostTerms | None = None,
    prefix: str | None = None,
    trusted_proxies: str = "",
    without_redis: WithoutRedis = WithoutRedis.LOCAL,
) -> AsyncIterator[Plane]:
    """A control plane that listens on a free port, without sweepers: tests sweep when they mean to."""
    with trio.fail_after(60):
        async with (
            open_services(
                dsn, redis_url, terms=terms, rules=rules, hosts=hosts, prefix=prefix, without_redis=without_redis
            ) as services,
            serve_plane(services, trusted_proxies) as plane,
        ):
            yield plane


@asynccontextmanager
async def serve_plane(services: Services, trusted_proxies: str = "") -> AsyncIterator[Plane]:
    """The routes on services that the test has opened, and perhaps changed."""
    async with trio.open_nursery() as nursery:
        app = build_control_plane(services, parse_networks(trusted_proxies))
        nursery.start_soon(run_waitroom, services)
        binds = await nursery.start(serve_app, app, ["127.0.0.1:0"], services.stopping)
        async with open_http(binds[0]) as http:
            hold(http, app)
            yield Plane(services, http, binds[0])
        services.stopping.set()
        nursery.cancel_scope.cancel()
