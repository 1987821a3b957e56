"""Routes without the framework, for the one kind of request that comes by the hundred a second: webhooks.

Quart takes longer for a request than all that a webhook needs. So an application may name handlers by path, and what
is plain enough for them (a POST of known, moderate length) goes there; everything else takes the framework's route of
the same address. Answers and errors are the same on both. Called by serving.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from nimbus.runtime.answers import judge_error, render_json

DIRECT_BYTES = 1024 * 1024  # of a body that is read without the framework; a larger one comes rarely
READ_S = 60.0  # for the body to arrive
SEND_S = 10.0  # to hand the answer to the kernel

DirectHandler = Callable[[Mapping[str, str], bytes], Awaitable[tuple[int, object]]]


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
    handler: DirectHandler, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """One request without the framework, which takes longer than all that a webhook needs; errors as everywhere."""
    body = bytearray()
    with trio.move_on_after(READ_S) as waiting:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
    headers: dict[str, str] = {}
    answer: object
    if waiting.cancelled_caught:
        status, answer = 408, {"error": "request_timeout", "message": "the body did not come in time"}
        headers["Connection"] = "close"
    else:
        try:
            given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            status, answer = await handler(given, bytes(body))
        except Exception as error:  # noqa: BLE001 -- judge_error logs what is a bug
            status, code, text, headers = judge_error(error)
            answer = {"error": code, "message": text}
    raw = render_json(answer).encode()
    headers |= {"Content-Type": "application/json", "Content-Length": str(len(raw))}
    told = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    with trio.move_on_after(SEND_S, shield=True):
        await send({"type": "http.response.start", "status": status, "headers": told, "trailers": False})
        await send({"type": "http.response.body", "body": raw, "more_body": False})
