"""Two organisations in one log pipeline, and everything that one of them may ask for to see the other's output.

Both print under the same machine numbers, fences and row numbers, which no control plane would ever let happen: so a
read that leaves out the organisation shows foreign rows. What may not be shown is a mark that stands in every line and
in no question. Asks over plain HTTP, one connection each. Called by test_log_tenants.py.
"""

from __future__ import annotations

import gzip
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import h11
import trio

from nimbus.runtime.serving import serve_app
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.acceptance.fleet import Room
from tests.acceptance.stack import LIMIT_S, clean_environment
from tests.services import free_port
from tests.unit.logging_pipeline.rig import SECRET, ControlPlane, control_app

HOST = "127.0.0.1"
ANSWER_S = 20.0  # for an answer that ends
STREAM_S = 2.0  # for a stream that may not end, as one of a machine that never printed
RETRY_S = 0.2
TOKEN_S = 600
_CHUNK = 64 * 1024
Params = Mapping[str, str]


@dataclass(frozen=True)
class Tenant:
    """One organisation: what is its own."""

    org_id: int
    job_id: int
    machine_id: int
    repo_id: int
    word: str  # in each of its lines, and what others search for
    lines: int  # of its job
    crossed: int  # lines that it printed under the other's machine number
    mark: str = field(default_factory=lambda: secrets.token_hex(8))  # in each of its lines, and in no question

    def rows(self, count: int) -> list[dict[str, object]]:
        """Lines of every level, and the end."""
        told = [f"::error file=a.py,line={n}::" if n % 4 == 0 else "" for n in range(count)]
        lines = [f"{head}needle {self.word} {self.mark} line {n}" for n, head in enumerate(told)]
        rows = [_row(seq, "stderr" if seq % 3 == 0 else "stdout", line) for seq, line in enumerate(lines)]
        return [*rows, _row(count, "end", "")]


AMBER = Tenant(1, 501, 71, 10, "amber", lines=40, crossed=5)
VIOLET = Tenant(2, 502, 72, 20, "violet", lines=57, crossed=30)
BOTH = ((AMBER, VIOLET), (VIOLET, AMBER))
NOBODY = {"job": "599", "machine": "99"}


def _row(seq: int, stream: str, message: str) -> dict[str, object]:
    return {"seq": seq, "ts_ms": int(time.time() * 1000), "stream": stream, "message": message}


@dataclass(frozen=True)
class Answer:
    """One answer, as far as it came within its time."""

    status: int
    body: bytes
    headers: bytes

    @property
    def all(self) -> bytes:
        """Everything that could show something."""
        plain = gzip.decompress(self.body) if self.body.startswith(b"\x1f\x8b") else b""
        return self.headers + self.body + plain

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def value(self) -> dict[str, object]:
        told = json.loads(self.body) if self.body.startswith(b"{") else {}
        return dict(told)


@dataclass
class World:
    """The pipeline's process and its control plane."""

    port: int
    control: ControlPlane

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """As a reader of this organisation."""
        claims = {"role": "read", "org_id": tenant.org_id, "jti": f"token-of-{tenant.word}"}
        token = render_token(
            hmac_key(SECRET), subject=tenant.word, audience=Audience.LOGS_READ, now_s=time.time(), ttl_s=TOKEN_S,
            claims=claims,
        )  # fmt: skip
        return {"Authorization": f"Bearer {token}"}

    async def ingest(self, tenant: Tenant, machine_id: int, rows: list[dict[str, object]], **claimed: object) -> None:
        """Output of this organisation under that machine number; what it claims besides is not believed."""
        claims = {"org_id": tenant.org_id, "machine_id": machine_id, "fence": 1, "agent_id": "agent"}
        token = render_token(
            self.control.signing_key, subject="machine", audience=Audience.LOGS, now_s=time.time(), ttl_s=TOKEN_S,
            claims=claims,
        )  # fmt: skip
        body = {"rows": [{**row, **claimed} for row in rows], **claimed}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        answer = await self.ask("POST", "/ingest", {}, headers, json.dumps(body).encode())
        assert answer.status == 200, answer

    async def read(self, tenant: Tenant, path: str, params: Params, **headers: str) -> Answer:
        limit_s = STREAM_S if path.endswith("/follow") else ANSWER_S
        return await self.ask("GET", path, params, self.headers(tenant) | headers, limit_s=limit_s)

    async def ask(
        self, method: str, path: str, params: Params, headers: Params, body: bytes = b"", limit_s: float = ANSWER_S
    ) -> Answer:
        """The answer; asked again while the service is too busy or not ready."""
        target = f"{path}?{urlencode(params)}" if params else path
        with trio.fail_after(LIMIT_S):
            while True:
                answer = await self._ask_once(method, target, headers, body, limit_s)
                if answer.status not in (429, 503):
                    return answer
                await trio.sleep(RETRY_S)

    async def _ask_once(self, method: str, target: str, headers: Params, body: bytes, limit_s: float) -> Answer:
        http = h11.Connection(h11.CLIENT)
        told = {"Host": HOST, "Connection": "close", "Content-Length": str(len(body)), **headers}
        request = http.send(h11.Request(method=method, target=target, headers=list(told.items()))) or b""
        sent = request + (http.send(h11.Data(body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
        status, head, parts = 0, b"", list[bytes]()
        with trio.move_on_after(limit_s):
            async with await trio.open_tcp_stream(HOST, self.port) as stream:
                await stream.send_all(sent)
                while not isinstance(event := http.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                    if event is h11.NEED_DATA:
                        http.receive_data(bytes(await stream.receive_some(_CHUNK)))
                    elif isinstance(event, h11.Response):
                        status, head = event.status_code, b"\n".join(b": ".join(pair) for pair in event.headers)
                    elif isinstance(event, h11.Data):
                        parts.append(bytes(event.data))
        assert status, f"no answer to {method} {target}"
        return Answer(status, b"".join(parts), head)


@asynccontextmanager
async def open_world(folder: Path, **settings: str) -> AsyncIterator[World]:
    """A pipeline as operators start it, with the output of both. Two with the same store and Redis are replicas."""
    control, stop = ControlPlane(), trio.Event()
    for tenant in (AMBER, VIOLET):
        control.add_job(tenant.job_id, tenant.org_id, "completed", [(tenant.machine_id, 1)])
        control.jobs[tenant.job_id]["repo_id"] = tenant.repo_id
        control.add_link(tenant.machine_id, 1, tenant.org_id, tenant.job_id, tenant.repo_id)
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(serve_app, control_app(control), [f"{HOST}:0"], stop)
        port = free_port()
        env = clean_environment(
            folder / "state",
            NIMBUS_CONTROL_PLANE_URL=binds[0],
            NIMBUS_JWT_SECRET=SECRET,
            NIMBUS_LOGGING_BIND=f"{HOST}:{port}",
            **settings,
        )
        room = Room("nimbus.logging_pipeline.main", env, "", _log_in(folder))
        world = World(port, control)
        try:
            room.launch()
            await _wait_ready(world)
            for mine, other in BOTH:
                claimed = {"org_id": other.org_id, "job_id": other.job_id, "repo_id": other.repo_id}
                await world.ingest(mine, mine.machine_id, mine.rows(mine.lines), **claimed)
                await world.ingest(mine, other.machine_id, mine.rows(mine.crossed), **claimed)
            yield world
        finally:
            room.kill()
            nursery.cancel_scope.cancel()


def _log_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / "pipeline.log"


async def _wait_ready(world: World) -> None:
    with trio.fail_after(LIMIT_S):
        while True:
            try:
                if (await world.ask("GET", "/readyz", {}, {})).status == 200:
                    return
            except OSError:
                await trio.sleep(RETRY_S)
