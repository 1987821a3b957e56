"""A running logging pipeline for tests: real engine, real HTTP, and a control plane of our own making beside it.

The control plane here knows only what a test tells it: keys, jobs and their machines.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h11
import httpx2
import trio
from pydantic import SecretStr
from quart import Response, request

from nimbus.logging_pipeline.app import build_logging_pipeline, open_services
from nimbus.logging_pipeline.engine.child import USERNAME, Endpoint
from nimbus.logging_pipeline.services import Services
from nimbus.logging_pipeline.settings import Settings
from nimbus.runtime.serving import App, build_app, json_response, serve_app
from nimbus.wire.tokens import (
    Audience,
    SigningKey,
    hmac_key,
    new_ed25519_key,
    parse_bearer,
    render_jwks,
    render_token,
    verify_token,
)

SECRET = "a-secret-that-is-long-enough-for-hs256-0123456789"


@contextmanager
def run_engine(folder: Path) -> Iterator[Endpoint]:
    """The engine's child process without its supervisor."""
    argv = [sys.executable, "-m", "nimbus.logging_pipeline.engine.main", str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"engine-password\n")
        process.stdin.flush()
        port = json.loads(process.stdout.readline())["port"]
        yield Endpoint(f"http://127.0.0.1:{port}", USERNAME, "engine-password")
        process.stdin.close()
        assert process.wait(20) == 0


@dataclass
class ControlPlane:
    """What the pipeline asks the control plane for."""

    signing_key: SigningKey = field(default_factory=new_ed25519_key)
    published: list[SigningKey] = field(default_factory=list)
    jobs: dict[int, dict[str, object]] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    masks: dict[int, list[str]] = field(default_factory=dict)  # registered secrets by org
    links: dict[tuple[int, int], dict[str, object]] = field(default_factory=dict)  # by machine and fence
    link_questions: list[tuple[int, int]] = field(default_factory=list)
    key_set_fetches: int = 0
    job_questions: int = 0
    away: bool = False

    def __post_init__(self) -> None:
        self.published.append(self.signing_key)

    def add_job(self, job_id: int, org_id: int, state: str, machines: list[tuple[int, int]]) -> None:
        listed = [{"machine_id": machine, "fence": fence} for machine, fence in machines]
        self.jobs[job_id] = {"job_id": job_id, "org_id": org_id, "repo_id": None, "state": state, "machines": listed}

    def add_link(self, machine: int, fence: int, org: int, job: int | None, repo: int | None = None) -> None:
        told = {"machine_id": machine, "fence": fence, "org_id": org, "job_id": job, "repo_id": repo}
        self.links[machine, fence] = {**told, "run_attempt": None if repo is None else 2}


@dataclass
class Rig:
    """One pipeline, its address and who may talk to it."""

    url: str
    control: ControlPlane
    services: Services
    client: httpx2.AsyncClient
    control_url: str

    def machine_token(self, org: int = 1, machine: int = 7, fence: int = 1, **other: object) -> str:
        claims = {"org_id": org, "machine_id": machine, "fence": fence, "agent_id": "agent-1"} | other
        return render_token(
            self.control.signing_key, subject="machine", audience=Audience.LOGS, now_s=time.time(), ttl_s=600,
            claims=claims,
        )  # fmt: skip

    def read_token(self, org: int | None = 1, ttl_s: float = 600, jti: str | None = None) -> str:
        claims: dict[str, object] = {"role": "read"} | ({} if org is None else {"org_id": org})
        claims |= {} if jti is None else {"jti": jti}
        return render_token(
            hmac_key(SECRET), subject="tester", audience=Audience.LOGS_READ, now_s=time.time(), ttl_s=ttl_s,
            claims=claims,
        )  # fmt: skip

    async def ingest(self, rows: object, **token: int) -> httpx2.Response:
        """Post rows as a machine."""
        return await self.client.post(
            f"{self.url}/ingest", json={"rows": rows}, headers=bearer(self.machine_token(**token))
        )

    async def read(self, path: str, org: int | None = 1, **params: str) -> httpx2.Response:
        return await self.client.get(f"{self.url}{path}", params=params, headers=bearer(self.read_token(org)))

    async def messages(self, path: str, org: int | None = 1, **params: str) -> list[str]:
        reply = await self.read(path, org, **params)
        assert reply.status_code == 200, reply.text
        return [row["message"] for row in reply.json()["rows"]]

    @asynccontextmanager
    async def follow(
        self,
        path: str,
        *,
        after: str | None = None,
        org: int | None = 1,
        ttl_s: float = 600,
        jti: str | None = None,
        ticket: str | None = None,
    ) -> AsyncIterator[Events]:
        """The events of a stream, each with its kind in `event` and its id in `id`. With a ticket, no header."""
        headers = {} if ticket else bearer(self.read_token(org, ttl_s, jti))
        headers |= {"Last-Event-ID": after} if after else {}
        host, _, port = self.url.removeprefix("http://").partition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            events = Events(stream)
            query = f"?ticket={ticket}" if ticket else ""
            await events.ask(f"{path}/follow{query}", {"Host": host, **headers})
            yield events


class Events:
    """Server-sent events of one connection as dicts. (httpx2's iterators cannot be left before their end.)"""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._text = b""

    async def ask(self, target: str, headers: dict[str, str]) -> None:
        request = h11.Request(method="GET", target=target, headers=list(headers.items()))
        await self._stream.send_all((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        response = await self._next_part()
        assert isinstance(response, h11.Response)
        assert response.status_code == 200

    async def _next_part(self) -> object:
        while (part := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(bytes(await self._stream.receive_some(65536)))
        return part

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while True:
            block, separator, rest = self._text.partition(b"\n\n")
            if not separator:
                part = await self._next_part()
                if not isinstance(part, h11.Data):
                    raise StopAsyncIteration
                self._text += part.data
                continue
            self._text = rest
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                told = {"event": fields.get("event", "message"), "id": fields.get("id", "")}
                return {**json.loads(fields["data"]), **told}


async def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; for what another process or connection does in its own time."""
    while not condition():  # noqa: ASYNC110 - nothing of ours is told of it
        await trio.sleep(0.01)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def row(seq: int, message: str = "", stream: str = "stdout") -> dict[str, object]:
    """A row that is in order."""
    return {"seq": seq, "ts_ms": int(time.time() * 1000), "stream": stream, "message": message or f"line {seq}"}


@asynccontextmanager
async def open_rig(
    state: Path,
    endpoint: Endpoint | None = None,
    timeout_s: float = 10,
    control: ControlPlane | None = None,
    **other: Any,
) -> AsyncIterator[Rig]:
    """A pipeline on `endpoint` with a database of its own, or on an engine of its own below `state`.

    With the `control` and the `clickhouse_database` of another rig it is a replica of that one.
    """
    control = control or ControlPlane()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(serve_app, control_app(control), ["127.0.0.1:0"], stop)
        settings = Settings(
            control_plane_url=binds[0],
            jwt_secret=SecretStr(SECRET),
            state_dir=state,
            clickhouse_database=other.pop("clickhouse_database", f"t{uuid.uuid4().hex[:12]}"),
            clickhouse_timeout=timeout_s,
            clickhouse_url=endpoint.url if endpoint else None,
            clickhouse_username=endpoint.username if endpoint else None,
            clickhouse_password=SecretStr(endpoint.password) if endpoint else None,
            **other,
        )
        async with open_services(settings) as services, httpx2.AsyncClient(timeout=30, trust_env=False) as client:
            await wait_until(lambda: services.access.revoked.state == "fresh")  # until then nobody reads
            app = build_logging_pipeline(services)
            async with trio.open_nursery() as serving:
                serve = partial(serve_app, graceful_s=0.5)
                served = await serving.start(serve, app, ["127.0.0.1:0"], stop)
                yield Rig(served[0], control, services, client, binds[0])
                await client.aclose()
                stop.set()


def control_app(control: ControlPlane):  # type: ignore[no-untyped-def]
    app = build_app("control_plane_of_tests")

    @app.get("/.well-known/jwks.json")
    async def jwks() -> Response:
        await trio.lowlevel.checkpoint()
        control.key_set_fetches += 1
        if control.away:
            return Response("", status=503)
        return json_response(render_jwks([key.verify_key() for key in control.published]))

    @app.get("/api/internal/jobs/<int:job_id>/machines")
    async def machines(job_id: int) -> Response:
        await trio.lowlevel.checkpoint()
        _require_service()
        if job_id not in control.jobs:
            return json_response({"error": "not_found", "message": f"there is no job {job_id}"}, 404)
        return json_response(control.jobs[job_id])

    @app.get("/api/internal/jobs/machines")
    async def machines_of_many() -> Response:
        await trio.lowlevel.checkpoint()
        _require_service()
        control.job_questions += 1
        if control.away:
            return Response("", status=503)
        ids = [int(word) for word in request.args["ids"].split(",")]
        return json_response({"jobs": [control.jobs[each] for each in ids if each in control.jobs]})

    @app.get("/api/internal/machines/<int:machine_id>/<int:fence>/job")
    async def job_of(machine_id: int, fence: int) -> Response:
        await trio.lowlevel.checkpoint()
        _require_service()
        control.link_questions.append((machine_id, fence))
        if control.away:
            return Response("", status=503)
        if (machine_id, fence) not in control.links:
            return json_response({"error": "not_found", "message": "never leased"}, 404)
        return json_response(control.links[machine_id, fence])

    _serve_secrets(app, control)
    return app


def _serve_secrets(app: App, control: ControlPlane) -> None:
    """What may not be shown, and who may not come in any more."""

    @app.get("/api/internal/orgs/<int:org_id>/masks")
    async def masks(org_id: int) -> Response:
        await trio.lowlevel.checkpoint()
        _require_service()
        if control.away:
            return Response("", status=503)
        return json_response({"org_id": org_id, "values": control.masks.get(org_id, [])})

    @app.get("/api/internal/tokens/revoked")
    async def revoked() -> Response:
        await trio.lowlevel.checkpoint()
        _require_service()
        if control.away:
            return Response("", status=503)
        return json_response({"jtis": control.revoked})


def _require_service() -> None:
    token = parse_bearer(request.headers.get("Authorization"))
    verify_token(token, [hmac_key(SECRET).verify_key()], audience=Audience.INTERNAL, now_s=time.time())
