"""Bodies of rows, rendered ahead, and connections that send them: HTTP by hand, so that it costs next to nothing.

Called by logs.py's parts. A connection sends one body after the other, each once the one before was answered, as a log
shipper does.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from bench.loglines import JobOutput

BODY_BYTES = 512 * 1024  # as the shipper's largest batches
_STREAMS = ("stdout", "stdout", "stdout", "stdout", "stdout", "stdout", "stdout", "stderr")
_RECEIVE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Body:
    """One request's rows."""

    content: bytes
    rows: int


@dataclass(frozen=True)
class Reply:
    """An answer, and how long it took."""

    status: int
    content: bytes
    ms: float


def number_lines(lines: Iterable[str], began_ms: int) -> Iterator[dict[str, object]]:
    """Rows as a shipper numbers them; a line every seven milliseconds or so, one in eight to stderr."""
    for seq, line in enumerate(lines):
        yield {"seq": seq, "ts_ms": began_ms + seq * 7 + seq % 5, "stream": _STREAMS[seq % 8], "message": line}


def render_bodies(rows: Iterable[dict[str, object]], body_bytes: int = BODY_BYTES) -> list[Body]:
    """The requests of one machine, in the order of their rows."""
    bodies: list[Body] = []
    parts: list[str] = []
    size = 0
    for row in rows:
        parts.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
        size += len(parts[-1])
        if size >= body_bytes:
            bodies.append(_join(parts))
            parts, size = [], 0
    return [*bodies, _join(parts)] if parts else bodies


def _join(parts: Sequence[str]) -> Body:
    return Body(f'{{"rows":[{",".join(parts)}]}}'.encode(), len(parts))


def take_rows(seed: int, job: int, count: int) -> list[dict[str, object]]:
    """The rows of one job that began a while ago."""
    return list(number_lines(JobOutput(seed, job).take(count), time.time_ns() // 1_000_000 - count * 8))


class Line:
    """One connection to the pipeline, or to its engine."""

    def __init__(self, stream: trio.SocketStream, authorization: str) -> None:
        self._stream = stream
        self._head = f"Host: 127.0.0.1\r\nAuthorization: {authorization}\r\n".encode()

    async def post(self, path: str, content: bytes, encoding: str = "") -> Reply:
        head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        if encoding:
            head += f"Content-Encoding: {encoding}\r\n"
        return await self._ask(head.encode() + self._head + b"\r\n", content)

    async def get(self, path: str) -> Reply:
        return await self._ask(f"GET {path} HTTP/1.1\r\n".encode() + self._head + b"\r\n", b"")

    async def _ask(self, head: bytes, content: bytes) -> Reply:
        began = time.perf_counter()
        await self._stream.send_all(head)
        if content:
            await self._stream.send_all(content)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += await self._receive()
        status, length = _parse_head(bytes(received[:end]))
        while len(received) < end + 4 + length:
            received += await self._receive()
        return Reply(status, bytes(received[end + 4 :]), (time.perf_counter() - began) * 1000)

    async def _receive(self) -> bytes:
        piece = await self._stream.receive_some(_RECEIVE_BYTES)
        if not piece:
            raise EOFError("the pipeline closed the connection")
        return bytes(piece)


def _parse_head(head: bytes) -> tuple[int, int]:
    first, *fields = head.decode("latin-1").split("\r\n")
    named = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
    return int(first.split(" ", 2)[1]), int(named["content-length"])


@asynccontextmanager
async def open_line(port: int, token: str, scheme: str = "Bearer") -> AsyncIterator[Line]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        yield Line(stream, f"{scheme} {token}")


async def send_bodies(line: Line, bodies: Sequence[Body]) -> None:
    """All of them, each until it is stored."""
    for body in bodies:
        while (reply := await line.post("/ingest", body.content)).status in (429, 503):  # noqa: ASYNC110 - it asks for that
            await trio.sleep(0.05)
        if reply.status != 200 or b'"refused"' in reply.content:
            raise ValueError(f"a body was not taken: {reply.status} {reply.content[:300]!r}")
