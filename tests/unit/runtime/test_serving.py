"""The three cures of serving, each against a real socket, and the one table of errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from quart import request

from nimbus.model.errors import Fenced, NotFound, RateLimited, Refused, Unauthorized, Unavailable
from nimbus.runtime import serving
from nimbus.runtime.answers import judge_error
from nimbus.runtime.serving import App, LazyApp, Response, build_app, json_response, read_body, serve_app

CHUNK = b"x" * 65536


@asynccontextmanager
async def served(app: App | LazyApp, *, graceful_s: float = 5.0) -> AsyncIterator[int]:
    """The port on which the application listens."""
    stop = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(partial(serve_app, app, ["127.0.0.1:0"], stop, graceful_s=graceful_s))
            yield int(urls[0].rpartition(":")[2])
            stop.set()


async def talk(port: int, *sent: bytes) -> bytes:
    """Everything that the server says until it closes the connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for part in sent:
            await stream.send_all(part)
        heard = b""
        async for data in stream:
            heard += data
        return heard


def hello_app() -> App:
    app = build_app("hello", max_body_bytes=1_000_000)

    @app.get("/")
    async def hello() -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"hello": "you"})

    @app.post("/length")
    async def length() -> Response:
        return json_response({"length": len(await read_body())})

    return app


async def test_a_client_that_asks_to_close_sees_the_connection_close() -> None:
    async with served(hello_app()) as port:
        with trio.fail_after(3):
            heard = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert heard.startswith(b"HTTP/1.1 200")
    assert heard.endswith(b'{"hello":"you"}')


async def test_a_name_in_an_address_that_no_database_stores_is_another_address() -> None:
    app = build_app("names")

    @app.get("/things/<name>")
    async def find(name: str) -> Response:
        await trio.lowlevel.checkpoint()
        return json_response({"name": name})

    async def ask(port: int, name: str) -> bytes:
        request = f"GET /things/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        return (await talk(port, request.encode())).partition(b"\r\n")[0]

    async with served(app) as port:
        taken = [await ask(port, name) for name in ("a", "a%20b", "%C3%BC", "n" * 512)]
        others = [await ask(port, name) for name in ("a%00b", "%00", "n" * 513)]

    assert taken == [b"HTTP/1.1 200 "] * 4
    assert others == [b"HTTP/1.1 404 "] * 3


async def test_one_connection_serves_many_requests() -> None:
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with served(hello_app()) as port:
        with trio.fail_after(5):
            heard = await talk(port, ask, ask, ask, last)

    assert heard.count(b"HTTP/1.1 200") == 4


async def test_an_idle_connection_is_closed_at_shutdown_at_once() -> None:
    started = 0.0
    async with served(hello_app(), graceful_s=20) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some(65536)
        started = trio.current_time()

    assert trio.current_time() - started < 5
    await stream.aclose()


async def test_an_upload_waits_while_nobody_reads_it() -> None:
    app = build_app("slow", max_body_bytes=None)
    begun, may_read = trio.Event(), trio.Event()
    largest = 0

    @app.put("/")
    async def take() -> Response:
        nonlocal largest
        begun.set()
        await may_read.wait()
        total = 0
        async for data in request.body:
            largest = max(largest, len(data))
            total += len(data)
        return json_response({"total": total})

    size = 64 * 1024 * 1024
    head = f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    async with served(app) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(head.encode())
        await begun.wait()
        sent = 0
        with trio.move_on_after(1):  # long enough for loopback to carry all of it, were it let in
            while sent < size:
                sent += await stream.socket.send(CHUNK[: size - sent])
        held_back = sent
        may_read.set()
        while sent < size:
            sent += await stream.socket.send(CHUNK[: size - sent])
        heard = b"".join([data async for data in stream])

    assert held_back < 20 * 1024 * 1024  # the kernel's own buffers and a little of ours
    assert heard.endswith(b'{"total":%d}' % size)
    assert largest <= serving.BODY_HIGH_BYTES + 2 * len(CHUNK)


async def test_a_slow_reader_gets_a_download_to_its_last_byte() -> None:
    app = build_app("slow")

    @app.get("/")
    async def give() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(4):
                await trio.sleep(0.2)
                yield b"part."

        await trio.lowlevel.checkpoint()
        return Response(parts())

    async with served(app) as port:
        heard = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert app.config["RESPONSE_TIMEOUT"] is None
    assert heard.count(b"part.") == 4
    assert heard.endswith(b"0\r\n\r\n")


async def test_a_body_over_the_limit_is_refused_whether_or_not_its_length_was_told() -> None:
    told = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\nConnection: close\r\n\r\n"
    untold = b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    body = b"y" * 1_000_001
    async with served(hello_app()) as port:
        first = await talk(port, told, body)
        second = await talk(port, untold, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    assert first.startswith(b"HTTP/1.1 413")
    assert second.startswith(b"HTTP/1.1 413")


async def test_a_body_at_the_limit_is_taken() -> None:
    head = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n"
    async with served(hello_app()) as port:
        heard = await talk(port, head, b"y" * 1_000_000)

    assert heard.endswith(b'{"length":1000000}')


async def test_a_body_that_is_read_in_pieces_has_the_same_limit() -> None:
    app = build_app("pieces", max_body_bytes=1_000_000)

    @app.post("/")
    async def count() -> Response:
        total = 0
        async for data in request.body:
            total += len(data)
        return json_response({"total": total})

    body = b"y" * 1_000_001
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    async with served(app) as port:
        heard = await talk(port, head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    assert heard.startswith(b"HTTP/1.1 413")


async def test_an_early_answer_to_an_upload_arrives_and_frees_the_connection() -> None:
    app = build_app("early", max_body_bytes=None)

    @app.put("/")
    async def refuse() -> Response:
        await trio.lowlevel.checkpoint()
        raise Unauthorized("no token")

    head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\nConnection: close\r\n\r\n"
    async with served(app) as port:
        with trio.fail_after(8):
            heard = await talk(port, head, b"z" * 8_000_000)

    assert heard.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Refused("r"), 400, "refused"),
        (Unauthorized("u"), 401, "unauthorized"),
        (NotFound("n"), 404, "not_found"),
        (Fenced("f"), 409, "fenced"),
        (RateLimited("l", 7), 429, "rate_limited"),
        (Unavailable("a", 3), 503, "unavailable"),
        (RuntimeError("secret detail"), 500, "internal"),
    ],
)
async def test_each_error_has_its_status_and_never_a_foreign_text(error: Exception, status: int, code: str) -> None:
    app = build_app("errors")

    @app.get("/")
    async def fail() -> Response:
        await trio.lowlevel.checkpoint()
        raise error

    async with served(app) as port:
        heard = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = heard.partition(b"\r\n\r\n")

    assert heard.startswith(b"HTTP/1.1 %d" % status)
    assert json.loads(body)["error"] == code
    assert b"secret detail" not in heard
    assert (b"retry-after" in head) == isinstance(error, Unavailable)
    assert (b"www-authenticate" in head) == isinstance(error, Unauthorized)


@pytest.mark.parametrize(("wait_s", "told"), [(0.0, "1"), (0.2, "1"), (1.2, "2"), (7.0, "7"), (59.001, "60")])
def test_nobody_is_told_to_come_again_too_soon(wait_s: float, told: str) -> None:
    assert judge_error(RateLimited("l", wait_s))[3] == {"Retry-After": told}


def slow_app() -> tuple[App, trio.Event, trio.Event]:
    """An application that tells that a request has arrived, and answers when it may."""
    app = build_app("slow")
    arrived, go_on = trio.Event(), trio.Event()

    @app.get("/")
    async def slow() -> Response:
        arrived.set()
        await go_on.wait()
        return json_response({"done": True})

    return app, arrived, go_on


async def test_a_request_in_flight_is_finished_after_the_stop() -> None:
    app, arrived, go_on = slow_app()
    heard: list[bytes] = []

    async with trio.open_nursery() as nursery, served(app) as port:

        async def ask() -> None:
            heard.append(await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))

        nursery.start_soon(ask)
        await arrived.wait()
        nursery.start_soon(_set_soon, go_on)

    assert heard[0].endswith(b'{"done":true}')


async def test_a_stop_waits_for_answers_and_not_for_a_connection_whose_next_request_came_too_early() -> None:
    app, arrived, go_on = slow_app()
    heard: list[bytes] = []

    async with trio.open_nursery() as nursery:
        async with served(app, graceful_s=25) as port:

            async def ask() -> None:
                heard.append(await talk(port, 2 * b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))

            nursery.start_soon(ask)
            await arrived.wait()
            nursery.start_soon(_set_soon, go_on)
            stopping = trio.current_time()
        assert trio.current_time() - stopping < 15
    assert heard[0].count(b'{"done":true}') == 1


async def _set_soon(event: trio.Event) -> None:
    await trio.sleep(0.3)  # while the server is already stopping
    event.set()


async def test_an_application_behind_hypercorn_opens_its_services_at_start(tmp_path: Path) -> None:
    marks = tmp_path / "marks"

    @asynccontextmanager
    async def open_hello() -> AsyncIterator[App]:
        marks.write_text("opened ")
        yield hello_app()
        marks.write_text(marks.read_text() + "closed")

    async with served(LazyApp(open_hello)) as port:
        heard = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert heard.startswith(b"HTTP/1.1 200")
    assert marks.read_text() == "opened closed"
