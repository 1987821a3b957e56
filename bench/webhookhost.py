"""What `make bench-webhook` measures: PostgreSQL that flushes each commit, Redis, and two Hypercorn workers.

Everything is started for this run on free ports and stopped with it. Called by webhook.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from nimbus.cli.stack import postgres, redis
from nimbus.cli.stack.child import log_tail, open_child
from nimbus.cli.stack.credentials import ensure_app_key
from nimbus.cli.stack.service import LOOPBACK, Service, answers_http, free_port
from nimbus.runtime.postgres import Database, Transaction, open_database

SECRET = "bench-webhook-secret"  # noqa: S105 - of this run alone
POOL_SIZE = 8  # of each worker, as it is by default
WORKERS = 2
READY_S = 90.0
PASSWORD = "bench"  # noqa: S105 - loopback, and gone with the run


@dataclass(frozen=True)
class WebhookHost:
    """Where to send deliveries, and where they end."""

    port: int
    dsn: str = field(repr=False)
    database: Database
    pid: int

    async def unfinished(self) -> int:
        """Deliveries that the inbox has not worked on to the end."""
        return await self.database.run(_count, "state IN ('received', 'failed')")

    async def stored(self, prefix: str) -> int:
        return await self.database.run(_count, f"starts_with(guid, '{prefix}-')")

    async def clear(self) -> None:
        """Begin a round as the one before began: without the rows that the others left."""
        await self.database.run(_clear)


async def _count(transaction: Transaction, which: str) -> int:
    count: int = await transaction.fetchval(f"SELECT count(*) FROM deliveries WHERE {which}")  # noqa: S608 - our words
    return count


async def _clear(transaction: Transaction) -> None:
    await transaction.execute("TRUNCATE deliveries")
    await transaction.execute("CHECKPOINT")


@asynccontextmanager
async def open_webhook_host(folder: Path) -> AsyncIterator[WebhookHost]:
    """The servers, for as long as the body runs."""
    ports = {name: free_port() for name in ("postgres", "redis", "plane")}
    cluster = await trio.to_thread.run_sync(postgres.open_cluster, folder / "postgres", PASSWORD)
    dsn = postgres.render_dsn(PASSWORD, ports["postgres"])
    async with AsyncExitStack() as running:
        running.callback(os.close, cluster.folder_fd)
        await start_service(running, postgres.plan_server(cluster, ports["postgres"]), folder)
        await start_service(running, redis.plan_server(ports["redis"], PASSWORD), folder)
        environment = {"NIMBUS_DATABASE_URL": dsn, "PATH": os.environ["PATH"]}
        migrate = [sys.executable, "-m", "nimbus.control_plane.migrate"]
        await trio.run_process(migrate, env=environment, stdout=subprocess.DEVNULL)
        plane = plan_plane(ports["plane"], dsn, redis.render_url(PASSWORD, ports["redis"]), ensure_app_key(folder))
        pid = await start_service(running, plane, folder)
        database = await running.enter_async_context(open_database(dsn, 1))
        yield WebhookHost(ports["plane"], dsn, database, pid)


async def start_service(running: AsyncExitStack, service: Service, folder: Path) -> int:
    """Its process, once it answers."""
    child = await running.enter_async_context(open_child(service, folder))
    with trio.move_on_after(READY_S):
        while service.ready is not None and not await service.ready():  # noqa: ASYNC110 - nothing but a look tells it
            await trio.sleep(0.1)
        return child.pid
    sys.exit(f"{service.name} did not start: {log_tail(folder, service.name)}")


def plan_plane(port: int, dsn: str, redis_url: str, app_key: str) -> Service:
    """The control plane as the documents start it, with two workers."""
    hypercorn = [sys.executable, "-m", "hypercorn", "-k", "trio", "-w", str(WORKERS), "-b", f"{LOOPBACK}:{port}"]
    env = {
        "PATH": os.environ["PATH"],
        "NIMBUS_DATABASE_URL": dsn,
        "NIMBUS_DATABASE_POOL_SIZE": str(POOL_SIZE),
        "NIMBUS_REDIS_URL": redis_url,
        "NIMBUS_GITHUB_APP_ID": "1",
        "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key,
        "NIMBUS_GITHUB_WEBHOOK_SECRET": SECRET,
        "NIMBUS_GITHUB_API_URL": f"http://{LOOPBACK}:9",  # nobody: no call of the repairs leaves this machine
        "NIMBUS_JWT_SECRET": "j" * 32,
        "NIMBUS_AGENT_TOKEN_SECRET": "a" * 32,
        "NIMBUS_CACHE_SHARED_SECRET": "c" * 32,
        "NIMBUS_PUBLIC_BASE_URL": f"http://{LOOPBACK}:{port}",
        "NIMBUS_ORG_JOB_RATE_LIMIT": "10000000",  # all are worked in, as fast as may be
        "NIMBUS_LOG_LEVEL": "WARNING",
    }
    argv = (*hypercorn, "nimbus.control_plane.main:app")
    checkout = str(Path(__file__).parents[1])
    return Service("control-plane", argv, env, answers_http(port, "/readyz"), cwd=checkout, stop_s=20.0)
