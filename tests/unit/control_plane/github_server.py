"""A GitHub over real sockets that answers what a test wrote, for what the sim does not play. It keeps what it saw."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from quart import Response, request

from nimbus.control_plane.github.client import AppCredentials, GithubClient, open_github
from nimbus.control_plane.github.limits import LimitTerms, Purpose
from nimbus.control_plane.github.transport import Observer
from nimbus.model.forge import ProblemKind
from nimbus.runtime.serving import build_app, serve_app
from tests.forge import APP_ID, app_key

TOKEN = "ghs_sentinel"  # each token that it gives begins so


@dataclass(frozen=True)
class Reply:
    """One answer; a body that is not bytes is sent as JSON."""

    status: int = 200
    body: object = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    until: trio.Event | None = None  # it comes no earlier


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    target: str  # path and query
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        return self.headers["authorization"].removeprefix("Bearer ")


@dataclass
class GithubServer:
    """The last of a route's replies is given for ever."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    inside: int = 0
    most: int = 0  # that waited at once
    arrived: trio.Event = field(default_factory=trio.Event)
    tokens: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def on(self, method: str, path: str, *replies: Reply) -> None:
        self.replies[f"{method} {path}"] = list(replies)

    def routes(self) -> list[str]:
        """What was asked, tokens aside."""
        return [f"{each.method} {each.target}" for each in self.asked if not each.target.endswith("/access_tokens")]

    async def wait_inside(self, count: int) -> None:
        """Until so many requests wait for the event of their reply."""
        while self.inside < count:
            self.arrived = trio.Event()
            await self.arrived.wait()

    async def answer(self, path: str) -> Response:
        body = await request.get_data()
        assert isinstance(body, bytes)
        target = request.full_path.rstrip("?")
        asked = Asked(request.method, target, {k.lower(): v for k, v in request.headers.items()}, body)
        self.asked.append(asked)
        reply = self._find(f"{request.method} /{path}")
        if reply.until is not None:
            await self._hold(reply.until)
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        return Response(raw, reply.status, headers=reply.headers, content_type="application/json")

    async def _hold(self, until: trio.Event) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.arrived.set()
        try:
            await until.wait()
        finally:
            self.inside -= 1

    def _find(self, route: str) -> Reply:
        replies = self.replies.get(route)
        if replies:
            return replies.pop(0) if len(replies) > 1 else replies[0]
        if route.endswith("/access_tokens"):
            return Reply(201, {"token": f"{TOKEN}{next(self.tokens)}", "expires_at": "2999-01-01T00:00:00Z"})
        return Reply(404, {"message": "Not Found"})


@asynccontextmanager
async def open_github_server() -> AsyncIterator[GithubServer]:
    """A server on a free port, stopped at the end."""
    server, stop = GithubServer(), trio.Event()
    app = build_app("scripted-github")
    app.add_url_rule("/<path:path>", "answer", server.answer, methods=["GET", "POST", "DELETE"])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve_app, app, ["127.0.0.1:0"], stop)
            server.url = urls[0]
            yield server
            stop.set()


@asynccontextmanager
async def open_client(
    url: str,
    *,
    terms: LimitTerms | None = None,
    observer: Observer | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[GithubClient]:
    """A client with the App's real key."""
    credentials = AppCredentials(APP_ID, app_key().private_pem)
    async with open_github(url, credentials, terms, observer, clock) as client:
        yield client


@dataclass
class Counts:
    """An observer that remembers."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[ProblemKind] = field(default_factory=list)
    breaker: list[bool] = field(default_factory=list)
    waits: list[Purpose] = field(default_factory=list)

    def called(self, route: str, status: str) -> None:
        self.calls.append((route, status))

    def waited(self, purpose: Purpose, wait_s: float) -> None:
        assert wait_s >= 0
        self.waits.append(purpose)

    def refused(self, kind: ProblemKind) -> None:
        self.refusals.append(kind)

    def breaker_changed(self, is_open: bool) -> None:
        self.breaker.append(is_open)


@dataclass(frozen=True)
class Scripted:
    """A client, what it counted and the scripted server it speaks to."""

    client: GithubClient
    server: GithubServer
    counts: Counts


@asynccontextmanager
async def open_scripted() -> AsyncIterator[Scripted]:
    """A scripted server and a client of it."""
    counts = Counts()
    async with open_github_server() as server, open_client(server.url, observer=counts) as client:
        yield Scripted(client, server, counts)
