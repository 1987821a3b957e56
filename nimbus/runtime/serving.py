"""Serving HTTP on Hypercorn's trio worker, with the three things that stock Quart-Trio gets wrong put right.

1. Connections that never close: Hypercorn's disconnect message cancels the request's nursery while the same
   task is still closing or recycling the connection. The last message is sent in a shield with a limit.
2. Uploads without backpressure: a body is received only while its reader keeps up.
3. Silent truncation: the defaults that cut a slow download short are off.

Never handles signals (runtime/signals.py) and holds no route. Called by each room's app.py and main.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Framework, HTTPScope, Scope
from quart import request
from quart.wrappers import Request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioResponse
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import IntegerConverter, UnicodeConverter, ValidationError

from nimbus.model.errors import NimbusError
from nimbus.runtime.answers import judge_error, render_json
from nimbus.runtime.direct import DirectRoute, fits_direct, serve_direct
from nimbus.runtime.hidden import hide_parameters
from nimbus.runtime.inflight import InFlight
from nimbus.runtime.listening import start_hypercorn
from nimbus.runtime.proxies import FOR, HOST, PROTO, Networks, find_origin
from nimbus.wire.fields import MAX_BIGINT, is_storable

log = structlog.get_logger()

Response = TrioResponse  # what rooms return: stock quart.Response would need an asyncio loop

LAST_MESSAGE_S = 10.0  # to hand the end of a response to the kernel and close or recycle the connection
LINGER_S = 2.0  # to read on after an early answer, so that the client sees it and not a reset
BODY_HIGH_BYTES = 256 * 1024  # buffered per request before receiving stops; four of Hypercorn's reads
DEFAULT_MAX_BODY_BYTES = 1024 * 1024
BODY_S = 60.0
MAX_NAME_CHARS = 512  # of a name in an address: an org, a label, a host
_FRAMEWORK_HEADERS = frozenset({"Allow"})  # of the errors that the framework raises: what HTTP demands with 405
KEEP_ALIVE_S = 75  # of a connection on which nothing is asked: longer than our clients keep one (http.py)
GRACEFUL_S = 30.0  # in-flight requests at shutdown; as long as the longest long poll


class GatedBody(TrioBody):
    """A request body that makes its sender wait while nobody reads it."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._whole = False  # somebody awaits the complete body: buffering is asked for, up to the limit
        self._discarding = False
        self._total_bytes = 0
        self._room = trio.Event()
        self._arrived = trio.Event()  # the sender is done; a refused body is complete before that

    def append(self, data: bytes) -> None:
        self._total_bytes += len(data)
        if self._discarding:
            return
        if self._max_content_length is not None and self._total_bytes > self._max_content_length:
            # stock Quart counts only what is buffered, so a body that is read in pieces would have no limit
            self._must_raise = self._must_raise or RequestEntityTooLarge()
            self._data.clear()
            self.set_complete()
            return
        super().append(data)

    async def wait_room(self) -> None:
        """Return once there is room for more, or nobody will read on."""
        while len(self._data) > BODY_HIGH_BYTES and not (self._whole or self._discarding):
            self._room = trio.Event()
            await self._room.wait()

    def discard(self) -> None:
        """From now on what arrives is thrown away: the answer is already decided."""
        self._discarding = True
        self._data.clear()
        self._room.set()

    def end(self) -> None:
        """The sender has sent its last byte."""
        self._arrived.set()
        self.set_complete()

    async def wait_end(self) -> None:
        await self._arrived.wait()

    async def __anext__(self) -> bytes:
        try:
            data = await super().__anext__()
        except StopAsyncIteration:
            if self._must_raise is not None:  # it was refused while we waited: not the end, an error
                raise self._must_raise from None
            raise
        self._room.set()
        return data

    def __await__(self):  # type: ignore[no-untyped-def]
        self._whole = True
        self._room.set()
        return super().__await__()


class GatedRequest(TrioRequest):
    """A request whose body is gated."""

    body_class = GatedBody


class CarefulConnection(TrioASGIHTTPConnection):
    """One request: receives with backpressure, ends with a shield."""

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, asked: Request, receive: ASGIReceiveCallable
    ) -> None:
        body = cast("GatedBody", asked.body)
        while True:
            await body.wait_room()
            message = await receive()
            if message["type"] == "http.request":
                body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body.end()
            elif message["type"] == "http.disconnect":
                break
        nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, asked: Request, send: ASGISendCallable
    ) -> None:
        body = cast("GatedBody", asked.body)

        async def send_message(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                body.discard()
                with trio.move_on_after(LINGER_S):
                    await body.wait_end()
                with trio.move_on_after(LAST_MESSAGE_S, shield=True):
                    await send(message)
            else:
                await send(message)

        await super().handle_request(nursery, asked, cast("ASGISendCallable", send_message))


class BigintConverter(IntegerConverter):
    """`<int:id>` in a route: ASCII digits of a Postgres bigint; everything else is another path, so 404."""

    regex = r"[0-9]{1,19}"

    def to_python(self, value: str) -> int:
        number = int(value)
        if number > MAX_BIGINT:
            raise ValidationError
        return number


class NameConverter(UnicodeConverter):
    """`<name>` in a route: text that a database stores, of bounded length; everything else is another path, so 404."""

    def to_python(self, value: str) -> str:
        if not is_storable(value, MAX_NAME_CHARS):
            raise ValidationError
        return value


class App(QuartTrio):
    """The parent of every service's application."""

    asgi_http_class = CarefulConnection
    request_class = GatedRequest
    trusted_proxies: Networks = ()
    hidden_parameters: Collection[str] = ()  # of an address: never written down

    def __init__(self, name: str) -> None:
        super().__init__(name, static_folder=None)
        self.direct: dict[str, DirectRoute] = {}  # by path

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http":
            if self.hidden_parameters:
                hide_parameters(cast("dict[str, Any]", scope), self.hidden_parameters)
            route = self.direct.get(scope["path"])
            if route is not None and fits_direct(scope):
                await serve_direct(route, scope, receive, send)
                return
            if self.trusted_proxies:
                scope = tell_origin(scope, self.trusted_proxies)
        await super().__call__(scope, receive, send)


def tell_origin(scope: HTTPScope, trusted: Networks) -> HTTPScope:
    """The request as its client sent it to the first trusted proxy; the headers that said so are used up."""
    peer = scope["client"]
    headers = list(scope["headers"])
    origin = find_origin(peer[0] if peer else None, headers, trusted)
    if not origin.believed:
        return scope
    told = scope.copy()
    used = {FOR, PROTO, HOST} | ({b"host"} if origin.host is not None else set())
    told["headers"] = [header for header in headers if header[0] not in used]
    if origin.host is not None:
        told["headers"] = [*told["headers"], (b"host", origin.host.encode())]
    told["client"] = (origin.client, 0)
    told["scheme"] = origin.scheme or scope["scheme"]
    return told


def build_app(
    name: str,
    *,
    max_body_bytes: int | None = DEFAULT_MAX_BODY_BYTES,
    body_s: float | None = BODY_S,
    trusted_proxies: Networks = (),
) -> App:
    """An empty application with our limits and our errors; the caller registers its blueprints.

    A response has no time limit: a stream ends when its client goes or its handler returns.
    """
    app = App(name)
    app.trusted_proxies = trusted_proxies
    app.url_map.converters["int"] = BigintConverter
    app.url_map.converters["default"] = NameConverter
    app.config.update(MAX_CONTENT_LENGTH=max_body_bytes, BODY_TIMEOUT=body_s, RESPONSE_TIMEOUT=None)
    app.register_error_handler(NimbusError, _answer_nimbus_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_bug)
    return app


async def _answer_nimbus_error(error: NimbusError) -> Response:
    await trio.lowlevel.checkpoint()  # a sync handler would be run in a thread
    return error_response(*judge_error(error))


async def _answer_http_error(error: HTTPException) -> Response:
    await trio.lowlevel.checkpoint()  # a sync handler would be run in a thread
    status = error.code or 500
    told = {name: value for name, value in error.get_headers() if name in _FRAMEWORK_HEADERS}
    return error_response(status, (error.name or "error").lower().replace(" ", "_"), error.description or "", told)


async def _answer_bug(error: Exception) -> Response:
    await trio.lowlevel.checkpoint()  # a sync handler would be run in a thread
    return error_response(*judge_error(error))


def error_response(status: int, code: str, message: str, headers: dict[str, str]) -> Response:
    """The one form of an error: `{"error": code, "message": who must do what}`."""
    return json_response({"error": code, "message": message}, status, headers)


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(render_json(body), status=status, headers=headers, content_type="application/json")


async def read_body() -> bytes:
    """The current request's whole body, up to the application's limit (413 beyond it)."""
    body = await request.get_data(as_text=False)
    return body if isinstance(body, bytes) else body.encode()


async def serve_app(
    app: App | LazyApp,
    binds: Sequence[str],
    stop: trio.Event,
    *,
    graceful_s: float = GRACEFUL_S,
    setting: str = "another address",
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then answer what came, for `graceful_s` at most; hands over the real addresses.

    `setting` is what an operator changes where an address cannot be had.
    """
    config = Config()
    config.bind = list(binds)
    config.graceful_timeout = graceful_s
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.server_names = []
    config.keep_alive_timeout = KEEP_ALIVE_S
    flights = InFlight(app)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_when_answered, flights, stop, nursery.cancel_scope)
        async with trio.open_nursery() as serving:
            task_status.started(await start_hypercorn(serving, cast("Framework", flights), config, stop.wait, setting))
        nursery.cancel_scope.cancel()


async def _end_when_answered(flights: InFlight, stop: trio.Event, serving: trio.CancelScope) -> None:
    await stop.wait()
    await flights.wait_over()
    serving.cancel()


class LazyApp:
    """An ASGI application that opens its services when the server starts, for `hypercorn ROOM.main:app`."""

    def __init__(self, open_app: Callable[[], AbstractAsyncContextManager[App]]) -> None:
        self._open_app = open_app
        self._app: App | None = None

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            async with self._open_app() as app:
                self._app = app
                await app(scope, receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
