"""What the control plane's benches measure: PostgreSQL that flushes each commit, Redis, and some control planes.

Everything is started for this run on free ports and stopped with it. Called by control.py and controlwait.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bench.webhookhost import start_service
from nimbus.cli.stack import postgres, redis
from nimbus.cli.stack.credentials import ensure_app_key
from nimbus.cli.stack.service import LOOPBACK, Service, answers_http, free_port
from nimbus.wire.tokens import Audience, hmac_key, render_token

PASSWORD = "bench"  # noqa: S105 - loopback, and gone with the run
JWT_SECRET, AGENT_SECRET, CACHE_SECRET = "j" * 32, "a" * 32, "c" * 32
TOKEN_S = 3600.0
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class PlaneProcess:
    """One control plane."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """What it has used of a core so far, all its threads together."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / _TICKS_S


@dataclass(frozen=True)
class ControlHost:
    """The processes of a run. `environment`: the first control plane's."""

    planes: tuple[PlaneProcess, ...]
    dsn: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)


@asynccontextmanager
async def open_control_host(folder: Path, planes: int) -> AsyncIterator[ControlHost]:
    """The servers, for as long as the body runs."""
    ports = {name: free_port() for name in ("postgres", "redis")}
    cluster = await trio.to_thread.run_sync(postgres.open_cluster, folder / "postgres", PASSWORD)
    dsn = postgres.render_dsn(PASSWORD, ports["postgres"])
    async with AsyncExitStack() as running:
        running.callback(os.close, cluster.folder_fd)
        await start_service(running, postgres.plan_server(cluster, ports["postgres"]), folder)
        await start_service(running, redis.plan_server(ports["redis"], PASSWORD), folder)
        await migrate(dsn)
        redis_url, app_key = redis.render_url(PASSWORD, ports["redis"]), ensure_app_key(folder)
        started = []
        at = [free_port() for _ in range(planes)]
        planned = [_plan_plane(f"plane-{number}", port, dsn, redis_url, app_key) for number, port in enumerate(at)]
        for service, port in zip(planned, at, strict=True):
            started.append(PlaneProcess(port, await start_service(running, service, folder)))
        yield ControlHost(tuple(started), dsn, planned[0].env)


async def migrate(dsn: str) -> None:
    """Give this database the control plane's schema."""
    environment = {"NIMBUS_DATABASE_URL": dsn, "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-m", "nimbus.control_plane.migrate"]
    await trio.run_process(argv, env=environment, stdout=subprocess.DEVNULL)


def _plan_plane(name: str, port: int, dsn: str, redis_url: str, app_key: str) -> Service:
    env = {
        "PATH": os.environ["PATH"],
        "NIMBUS_DATABASE_URL": dsn,
        "NIMBUS_REDIS_URL": redis_url,
        "NIMBUS_GITHUB_APP_ID": "1",
        "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key,
        "NIMBUS_GITHUB_WEBHOOK_SECRET": "w" * 32,
        "NIMBUS_GITHUB_API_URL": f"http://{LOOPBACK}:9",  # nobody: no call of the repairs leaves this machine
        "NIMBUS_JWT_SECRET": JWT_SECRET,
        "NIMBUS_AGENT_TOKEN_SECRET": AGENT_SECRET,
        "NIMBUS_CACHE_SHARED_SECRET": CACHE_SECRET,
        "NIMBUS_PUBLIC_BASE_URL": f"http://{LOOPBACK}:{port}",
        "NIMBUS_CONTROL_PLANE_BIND": f"{LOOPBACK}:{port}",
        "NIMBUS_ORG_JOB_RATE_LIMIT": "1000000",
        "NIMBUS_LOG_LEVEL": "WARNING",
    }
    argv = (sys.executable, "-m", "nimbus.control_plane.main")
    checkout = str(Path(__file__).parents[1])
    return Service(name, argv, env, answers_http(port, "/readyz"), cwd=checkout, stop_s=20.0)


def mint_enrolment(agent_id: str) -> str:
    """The token with which this agent enrols."""
    key = hmac_key(AGENT_SECRET)
    return render_token(key, subject=agent_id, audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=TOKEN_S)


def mint_admin() -> str:
    """The token of an operator."""
    return render_token(
        hmac_key(JWT_SECRET),
        subject="bench",
        audience=Audience.ADMIN,
        now_s=time.time(),
        ttl_s=TOKEN_S,
        claims={"role": "admin"},
    )
