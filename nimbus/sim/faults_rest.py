"""What a bad day makes of REST calls: GitHub's refusals and outages, lost, slow and garbled answers.

A refused call has no effect; one whose answer is lost, late or garbled has had its effect, and the caller must find
that out. It throws no dice: `faults.py` says what strikes. `app.py` hangs it on the application.
"""

from __future__ import annotations

import json
import math
import time
from typing import cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart import Response, g, request

from nimbus.runtime.serving import App
from nimbus.sim.faults import RequestFate
from nimbus.sim.world import World

DROPPED = "nimbus.sim.dropped"  # in the scope of a request whose answer is lost
SLACK_S = 0.1  # who waits exactly as long as he was told may be this much early by our clock
_FATE = "sim_fate"  # in g: what becomes of the answer
_SPARED = ("/sim/", "/_runner/", "/healthz")  # nothing of GitHub's REST API
_SECONDARY = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
_MESSAGES = {
    "primary_limit": "API rate limit exceeded for installation ID {installation_id}.",
    "secondary_limit": _SECONDARY,
    "secondary_limit_unsaid": _SECONDARY,
    "too_many": _SECONDARY,
    "token_expired": "Bad credentials",
    "outage": "Server Error",
}


def strike_rest(app: App, world: World) -> None:
    """Hang the bad days on every REST route: first of all that asks, last of all that answers."""
    days = BadDays(world)

    @app.before_request
    async def before() -> Response | None:
        return None if request.path.startswith(_SPARED) else await days.before()

    @app.after_request
    async def after(response: Response) -> Response:
        return await days.after(response) if _FATE in g else response

    _drop_marked(app)


class BadDays:
    """The limits that hold, and what is done to the request at hand."""

    def __init__(self, world: World) -> None:
        self._faults = world.faults
        self._auth = world.auth
        self._held: dict[int | None, tuple[RequestFate, float]] = {}  # by installation: a limit, and until when

    async def before(self) -> Response | None:
        """GitHub's refusal, in the route's place."""
        bearer = request.headers.get("Authorization", "").partition(" ")[2].strip()
        token = self._auth.tokens.get(bearer)
        installation_id = token.installation_id if token is not None else None
        fate = self._faults.request(with_token=token is not None)
        limit, until_s = self._held.get(installation_id, (fate, 0.0))
        if time.time() < until_s - SLACK_S:
            self._faults.count("rest.limit_ignored")  # GitHub bans who does so too often
            return _refuse(limit, installation_id, until_s)
        if fate.refused is None:
            setattr(g, _FATE, fate)
            return None
        self._faults.count(f"rest.{fate.refused}")
        if fate.refused == "token_expired":
            self._auth.tokens.pop(bearer)
        until_s = time.time() + fate.wait_s
        if fate.wait_s:
            self._held[installation_id] = (fate, until_s)
        return _refuse(fate, installation_id, until_s)

    async def after(self, response: Response) -> Response:
        """The answer as it arrives: what it tells of has happened, whatever this makes of it."""
        fate: RequestFate = getattr(g, _FATE)
        if fate.slow_s > 0:
            self._faults.count("rest.slow")
            await trio.sleep(fate.slow_s)
        if fate.dropped:
            self._faults.count("rest.dropped")
            cast("dict[str, object]", request.scope)[DROPPED] = True
        elif fate.no_json and (text := await response.get_data(as_text=True)):
            self._faults.count("rest.no_json")
            response.set_data(text[: len(text) // 2] or "<")
        return response


def _drop_marked(app: App) -> None:
    """Let the connection of a marked request end where its answer would begin."""
    serve = app.asgi_app

    async def asgi_app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_or_drop(message: ASGISendEvent) -> None:
            if DROPPED not in scope:
                await send(message)
            elif message["type"] == "http.response.start":
                # A stream that has sent "100 Continue" is begun: at its end the server closes it and adds no 500.
                await send({"type": "http.response.start", "status": 100, "headers": []})

        await serve(scope, receive, send_or_drop)

    app.asgi_app = asgi_app  # type: ignore[method-assign]


def _refuse(fate: RequestFate, installation_id: int | None, until_s: float) -> Response:
    assert fate.refused is not None  # noqa: S101 -- the callers looked; this tells mypy
    headers: dict[str, str] = {}
    wait_s = max(1, math.ceil(until_s - time.time()))
    if fate.refused == "primary_limit":
        headers = {
            "x-ratelimit-limit": "5000",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-used": "5000",
            "x-ratelimit-reset": str(int(until_s) + 1),  # whole seconds, and none too early
            "x-ratelimit-resource": "core",
        }
    elif fate.wait_s:
        headers = {"retry-after": str(wait_s)}
    if fate.refused == "outage" and fate.status != 500:  # the proxies before GitHub's API answer with a page
        return Response("<html><body>Unicorn!</body></html>", fate.status, content_type="text/html")
    message = _MESSAGES[fate.refused].format(installation_id=installation_id)
    body = {"message": message, "documentation_url": "https://docs.github.com/rest"}
    return Response(json.dumps(body), fate.status, headers, content_type="application/json")
