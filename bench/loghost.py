"""What `make bench-logs` measures: the pipeline and its engine as they are started, and a control plane's double.

Each is a process of its own, started for this run on free ports and stopped with it. The engine is the embedded one;
it is started here and not by the pipeline, so that the bench may ask it too, and the pipeline is told its address as
that of a server. Called by logs.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import trio

from bench.webhookhost import start_service
from nimbus.cli.stack.service import LOOPBACK, Service, answers_http, free_port
from nimbus.wire.tokens import Audience, SigningKey, hmac_key, load_ed25519_key, new_ed25519_key, render_private_pem
from nimbus.wire.tokens import render_token as sign

SECRET = "bench-logs-secret-0123456789abcdef"  # noqa: S105 - of this run alone
ENGINE_USER, ENGINE_PASSWORD = "nimbus", "bench-engine"
DATABASE, TABLE = "nimbus", "ci_logs"
READY_S = 90.0
TOKEN_S = 6 * 3600.0
CHECKOUT = str(Path(__file__).parents[1])


@dataclass(frozen=True)
class Machine:
    """Who prints: a machine of an org under a fence. Its job has the same number."""

    org_id: int
    machine_id: int
    fence: int = 1


@dataclass(frozen=True)
class LogHost:
    """Where rows go in and come out."""

    port: int
    pid: int
    engine_pid: int
    engine_url: str
    plane_url: str
    key: SigningKey = field(repr=False)

    def machine_token(self, machine: Machine) -> str:
        claims = {
            "org_id": machine.org_id, "machine_id": machine.machine_id, "fence": machine.fence, "agent_id": "agent-1"
        }  # fmt: skip
        return sign(
            self.key, subject="machine", audience=Audience.LOGS, now_s=time.time(), ttl_s=TOKEN_S, claims=claims
        )

    def read_token(self, org_id: int) -> str:
        return sign(
            hmac_key(SECRET),
            subject="bench",
            audience=Audience.LOGS_READ,
            now_s=time.time(),
            ttl_s=TOKEN_S,
            claims={"role": "read", "org_id": org_id},
        )

    @property
    def engine_port(self) -> int:
        return int(self.engine_url.rpartition(":")[2])

    async def ask(self, sql: str) -> list[dict[str, object]]:
        """Rows of the engine, for what only it can tell."""
        async with httpx2.AsyncClient(timeout=120, trust_env=False) as client:
            reply = await client.post(
                self.engine_url,
                content=sql,
                params={"default_format": "JSONEachRow"},
                auth=(ENGINE_USER, ENGINE_PASSWORD),
            )
            if reply.status_code != 200:
                sys.exit(f"the engine refused a question: {reply.text}")
            return [json.loads(line) for line in reply.text.splitlines()]


@asynccontextmanager
async def open_log_host(folder: Path, **settings: str) -> AsyncIterator[LogHost]:
    """The processes, for as long as the body runs. `settings` are variables of the pipeline beside its own."""
    key_file = folder / "key.pem"
    if not key_file.exists():
        key_file.write_text(render_private_pem(new_ed25519_key()))
    async with AsyncExitStack() as running:
        engine, engine_port = await running.enter_async_context(_open_engine(folder / "store"))
        plane_port = free_port()
        double = (sys.executable, "-m", "bench.logplane", str(plane_port), str(key_file))
        plane = Service("plane", double, _environment({}), answers_http(plane_port, "/healthz"), cwd=CHECKOUT)
        await start_service(running, plane, folder)
        port = free_port()
        engine_url, plane_url = f"http://{LOOPBACK}:{engine_port}", f"http://{LOOPBACK}:{plane_port}"
        argv = (sys.executable, "-m", "nimbus.logging_pipeline.main")
        env = {
            "NIMBUS_CLICKHOUSE_URL": engine_url,
            "NIMBUS_CLICKHOUSE_USERNAME": ENGINE_USER,
            "NIMBUS_CLICKHOUSE_PASSWORD": ENGINE_PASSWORD,
            "NIMBUS_CLICKHOUSE_DATABASE": DATABASE,
            "NIMBUS_CLICKHOUSE_TABLE": TABLE,
            "NIMBUS_CONTROL_PLANE_URL": plane_url,
            "NIMBUS_JWT_SECRET": SECRET,
            "NIMBUS_LOGGING_BIND": f"{LOOPBACK}:{port}",
            "NIMBUS_STATE_DIR": str(folder),
            "NIMBUS_LOG_LEVEL": "WARNING",
            **settings,
        }
        pipeline = Service("pipeline", argv, _environment(env), answers_http(port, "/readyz"), cwd=CHECKOUT)
        pid = await start_service(running, pipeline, folder)
        key = load_ed25519_key(key_file.read_text())
        yield LogHost(port, pid, engine.pid, engine_url, plane_url, key)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **more}


@asynccontextmanager
async def _open_engine(folder: Path) -> AsyncIterator[tuple[trio.Process, int]]:
    argv = [sys.executable, "-m", "nimbus.logging_pipeline.engine.main", str(folder)]
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - asked for above
    try:
        await process.stdin.send_all(ENGINE_PASSWORD.encode() + b"\n")
        line = b""
        with trio.fail_after(READY_S):
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some(4096)
                if not piece:
                    sys.exit("the engine did not start")
                line += piece
        yield process, int(json.loads(line)["port"])
    finally:
        with trio.move_on_after(30, shield=True):
            await process.stdin.aclose()  # which ends it
            await process.wait()
        if process.returncode is None:
            process.kill()
