"""Routes without the framework, for what comes by the hundred a second: webhooks, and hosts that ask for work.

Quart takes longer for a request than all that these need. So an application may name handlers by path, and what
is plain enough for them (a POST of known, moderate length) goes there; everything else takes the framework's route of
the same address. Answers and errors are the same on both. Called by serving.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from nimbus.runtime.answers import judge_error, render_json

DIRECT_BYTES = 256 * 1024  # of a body that is read without the framework: GitHub rarely sends more, strangers may
REQUEST_S = 60.0  # from a request's head to the end of its answer; a handler's own limits are far below it
LATE_S = 10.0  # to say that it took too long

DirectHandler = Callable[[Mapping[str, str], bytes], Awaitable[tuple[int, object]]]  # answer None: no body


@dataclass(frozen=True)
class DirectRoute:
    """A handler by its path. One that `waits` is cancelled where its client goes away meanwhile."""

    handler: DirectHandler
    waits: bool = False


def fits_direct(scope: HTTPScope) -> bool:
    """Whether the framework has nothing to add: a POST with a body of a known and moderate length."""
    if scope["method"] != "POST":
        return False
    length = b""
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = value
        elif name in {b"transfer-encoding", b"expect"}:
            return False
    return length.isdigit() and int(length) <= DIRECT_BYTES


async def serve_direct(
    route: DirectRoute, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """One request without the framework; errors are answered as everywhere."""
    with trio.move_on_after(REQUEST_S) as limit:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if route.waits:
            answered = await _answer_while_there(route.handler, scope, bytes(body), receive)
        else:
            answered = await _answer(route.handler, scope, bytes(body))
        if answered is not None:
            await _send(send, *answered)
    if limit.cancelled_caught and more:
        text = {"error": "request_timeout", "message": f"the body did not come in {REQUEST_S:g} s"}
        with trio.move_on_after(LATE_S):
            await _send(send, 408, text, {"Connection": "close"})


async def _answer_while_there(
    handler: DirectHandler, scope: HTTPScope, body: bytes, receive: ASGIReceiveCallable
) -> tuple[int, object, dict[str, str]] | None:
    """None where the client went away first. It is not watched while the answer is sent: the end of one looks alike."""
    answered = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_client, receive, nursery.cancel_scope)
        answered = await _answer(handler, scope, body)
        nursery.cancel_scope.cancel()
    return answered


async def _watch_client(receive: ASGIReceiveCallable, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _answer(handler: DirectHandler, scope: HTTPScope, body: bytes) -> tuple[int, object, dict[str, str]]:
    try:
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, answer = await handler(given, body)
    except Exception as error:  # noqa: BLE001 -- judge_error logs what is a bug
        status, code, text, headers = judge_error(error)
        return status, {"error": code, "message": text}, headers
    return status, answer, {}


async def _send(send: ASGISendCallable, status: int, answer: object, headers: dict[str, str]) -> None:
    raw = b"" if answer is None else render_json(answer).encode()
    told = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    if answer is not None:
        told += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
    await send({"type": "http.response.start", "status": status, "headers": told, "trailers": False})
    await send({"type": "http.response.body", "body": raw, "more_body": False})
