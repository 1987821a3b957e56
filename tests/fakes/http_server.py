"""The HTTP server below the fake's API: one call at a time, whoever makes it, as the real one serves them.

Called by fake_firecracker.py, on the thread `fc_api`, with what answers a call.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable

from tests.fakes.vm import Reply

MAX_BODY_BYTES = 51_200
_METHODS = frozenset({"GET", "PUT", "PATCH", "DELETE"})
_DROPPED = "\nAll previous unanswered requests will be dropped."

# Method, path, body; None: the connection is closed without an answer.
Answer = Callable[[str, str, str | None], Reply | None]


def render_reply(reply: Reply) -> bytes:
    """As the real one writes it, down to the missing reason."""
    head = f"HTTP/1.1 {reply.status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    head += "Deprecation: true\r\n" if reply.deprecated else ""
    if reply.value is None:
        return (head + "\r\n").encode()
    body = reply.value if isinstance(reply.value, bytes) else json.dumps(reply.value, separators=(",", ":")).encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def serve(listener: socket.socket, answer: Answer, said: Callable[[socket.socket, Reply], None]) -> None:
    """For ever. `said` sends a reply, and may have more to do about it."""
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    waiting: dict[socket.socket, bytearray] = {}
    while True:
        for key, _ in ready.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                waiting[connection] = bytearray()
                ready.register(connection, selectors.EVENT_READ)
                continue
            connection = next(open_one for open_one in waiting if open_one is key.fileobj)
            if not _hear(connection, waiting[connection], answer, said):
                ready.unregister(connection)
                del waiting[connection]
                connection.close()


def _hear(
    connection: socket.socket, heard: bytearray, answer: Answer, said: Callable[[socket.socket, Reply], None]
) -> bool:
    """Whether the connection goes on."""
    try:
        data = connection.recv(65536)
    except OSError:
        return False
    heard += data
    while data and (request := _cut(heard)) is not None:
        method, path, body = request
        reply = _check(method, body) or answer(method, path, None if body is None else body.decode(errors="replace"))
        if reply is None:
            return False
        try:
            said(connection, reply)
        except OSError:
            return False
    return bool(data)


def _cut(heard: bytearray) -> tuple[str, str, bytes | None] | None:
    """The first whole request, taken off."""
    head, found, _ = bytes(heard).partition(b"\r\n\r\n")
    if not found:
        return None
    line, *fields = head.decode("latin-1").split("\r\n")
    lengths = [int(field.partition(":")[2]) for field in fields if field.lower().startswith("content-length:")]
    length = lengths[0] if lengths else 0
    start = len(head) + 4
    if len(heard) < start + length:
        return None
    body = bytes(heard[start : start + length]) if length else None
    del heard[: start + length]
    method, path = line.split(" ")[:2]
    return method, path, body


def _check(method: str, body: bytes | None) -> Reply | None:
    wrong = None
    if method not in _METHODS:
        wrong = f"Invalid HTTP Method: Unsupported HTTP method.{_DROPPED}"
    elif body is not None and len(body) > MAX_BODY_BYTES:
        wrong = f"Request payload with size {len(body)} is larger than the limit of {MAX_BODY_BYTES} allowed by server."
        wrong += _DROPPED
    return None if wrong is None else Reply(400, f'{{ "error": "{wrong}" }}'.encode())
