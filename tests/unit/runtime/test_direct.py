"""A route without the framework answers as the framework's does, and leaves to it what is out of the ordinary."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import trio

from nimbus.model.errors import Refused, Unauthorized, Unavailable
from nimbus.runtime import direct
from nimbus.runtime.serving import App, Response, build_app, json_response, read_body
from tests.unit.runtime.test_serving import served, talk

HEAD = b"POST /hook HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
ERRORS: dict[bytes, Exception] = {
    b"who": Unauthorized("who are you"),
    b"what": Refused("what is that"),
    b"later": Unavailable("come again", 7.0),
    b"bug": RuntimeError("a secret of ours"),
}


def hook_app() -> App:
    app = build_app("hook", max_body_bytes=4_000_000)

    async def take(headers: Mapping[str, str], body: bytes) -> tuple[int, object]:
        await trio.lowlevel.checkpoint()
        if body in ERRORS:
            raise ERRORS[body]
        return 202, {"by": "direct", "length": len(body), "x": headers.get("x-mine")}

    @app.post("/hook")
    async def framework() -> Response:
        return json_response({"by": "framework", "length": len(await read_body())})

    app.direct["/hook"] = direct.DirectRoute(take)
    return app


async def post(app: App, body: bytes, *headers: bytes) -> tuple[bytes, dict[str, object]]:
    """The answer's head and body."""
    head = HEAD + b"".join(header + b"\r\n" for header in headers)
    async with served(app) as port:
        heard = await talk(port, head + b"Content-Length: %d\r\n\r\n" % len(body), body)
    before, _, after = heard.partition(b"\r\n\r\n")
    return before, json.loads(after)


async def test_a_plain_post_goes_without_the_framework() -> None:
    head, told = await post(hook_app(), b"hello", b"X-Mine: 7")
    assert head.startswith(b"HTTP/1.1 202")
    assert told == {"by": "direct", "length": 5, "x": "7"}


async def test_many_requests_go_over_one_connection() -> None:
    ask = b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    async with served(hook_app()) as port:
        heard = await talk(port, ask, ask, HEAD + b"Content-Length: 2\r\n\r\nhi")
    assert heard.count(b"HTTP/1.1 202") == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "header"),
    [
        (b"who", b"401", "unauthorized", b"www-authenticate: Bearer"),
        (b"what", b"400", "refused", b""),
        (b"later", b"503", "unavailable", b"retry-after: 7"),
        (b"bug", b"500", "internal", b""),
    ],
)
async def test_an_error_is_answered_by_the_one_table(body: bytes, status: bytes, code: str, header: bytes) -> None:
    head, told = await post(hook_app(), body)
    assert head.startswith(b"HTTP/1.1 " + status)
    assert told["error"] == code
    assert header in head
    assert "a secret of ours" not in str(told)


async def test_a_large_body_takes_the_frameworks_route() -> None:
    _, told = await post(hook_app(), b"x" * (direct.DIRECT_BYTES + 1))
    assert told == {"by": "framework", "length": direct.DIRECT_BYTES + 1}


async def test_a_body_of_unknown_length_takes_the_frameworks_route() -> None:
    async with served(hook_app()) as port:
        heard = await talk(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n")
    assert heard.endswith(b'{"by":"framework","length":5}')


async def test_another_method_takes_the_frameworks_route() -> None:
    async with served(hook_app()) as port:
        heard = await talk(port, b"GET /hook HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 405")


async def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "REQUEST_S", 0.2)
    async with served(hook_app()) as port:
        heard = await talk(port, HEAD + b"Content-Length: 5\r\n\r\nhel")
    assert heard.startswith(b"HTTP/1.1 408")


async def test_a_client_that_goes_before_its_body_is_forgotten() -> None:
    async with served(hook_app()) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HEAD + b"Content-Length: 5\r\n\r\nhel")
        await stream.aclose()
        heard = await talk(port, HEAD + b"Content-Length: 2\r\n\r\nhi")
    assert heard.startswith(b"HTTP/1.1 202")


class Bench:
    """A handler that waits until it is told."""

    def __init__(self) -> None:
        self.came, self.go, self.left = trio.Event(), trio.Event(), trio.Event()

    async def wait(self, _headers: Mapping[str, str], body: bytes) -> tuple[int, object]:
        self.came.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.left.set()
            raise
        return (204, None) if body == b"nothing" else (200, {"by": "direct"})

    def app(self) -> App:
        app = build_app("bench")
        app.direct["/hook"] = direct.DirectRoute(self.wait, waits=True)
        return app


async def test_who_goes_away_while_it_waits_is_waited_for_no_longer() -> None:
    bench = Bench()
    async with served(bench.app()) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HEAD + b"Content-Length: 2\r\n\r\nhi")
        await bench.came.wait()
        await stream.aclose()
        await bench.left.wait()


async def test_who_stays_is_answered_with_or_without_a_body_and_asks_on() -> None:
    bench = Bench()
    bench.go.set()
    ask = b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: "
    async with served(bench.app()) as port:
        heard = await talk(port, ask + b"7\r\n\r\nnothing", ask + b"2\r\n\r\nhi", HEAD + b"Content-Length: 2\r\n\r\nhi")
    answers = heard.split(b"HTTP/1.1 ")
    assert [each[:3] for each in answers[1:]] == [b"204", b"200", b"200"]
    assert b"content-" not in answers[1]
    assert heard.count(b'{"by":"direct"}') == 2
