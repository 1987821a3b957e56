"""Whom a request is from behind reverse proxies: headers that anybody may write, so mostly what not to believe."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from quart import request

from nimbus.runtime.proxies import FOR, HOST, PROTO, Header, Origin, find_origin, parse_networks
from nimbus.runtime.serving import App, Response, build_app, json_response
from tests.unit.runtime.test_serving import served, talk

TRUSTED = parse_networks("10.0.0.0/8, 127.0.0.1, fd00::/8")


def hops(*lines: str) -> list[Header]:
    return [(FOR, line.encode()) for line in lines]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", hops("127.0.0.1"), "203.0.113.9"),  # whoever it is, it is not believed
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", hops("203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", hops("127.0.0.1, 203.0.113.9"), "203.0.113.9"),  # the client's own invention is to its left
        ("10.0.0.1", hops("198.51.100.1, 203.0.113.9, 10.0.0.2"), "203.0.113.9"),
        ("10.0.0.1", hops("198.51.100.1", "203.0.113.9, 10.0.0.2"), "203.0.113.9"),  # two lines are one list
        ("10.0.0.1", hops("10.0.0.3, 10.0.0.2"), "10.0.0.3"),
        ("10.0.0.1", hops("unknown"), "10.0.0.1"),
        ("10.0.0.1", hops("203.0.113.9, _hidden, 10.0.0.2"), "10.0.0.2"),
        ("10.0.0.1", hops("127.0.0.1"), "10.0.0.1"),  # the proxy's own self, not ours
        ("127.0.0.1", hops("127.0.0.1"), "127.0.0.1"),
        ("127.0.0.1", hops("::1"), "::1"),
        ("127.0.0.1", hops("127.0.0.1, 10.0.0.2"), "10.0.0.2"),  # 10.0.0.2's own self, not ours
        ("127.0.0.1", hops("unknown"), ""),  # behind our own proxy, and so not us: nobody knows who
        ("127.0.0.1", hops("203.0.113.9, unknown, 127.0.0.1"), ""),
        ("::ffff:10.0.0.1", hops("203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", hops("::ffff:203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", hops("203.0.113.9:4711"), "203.0.113.9"),
        ("fd00::1", hops("[2001:db8::7]:4711"), "2001:db8::7"),
        ("", hops("203.0.113.9"), ""),  # a unix socket has no address
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_trusted_proxy(
    peer: str, headers: list[Header], client: str
) -> None:
    assert find_origin(peer, headers, TRUSTED).client == client


def test_scheme_and_host_are_believed_from_a_trusted_proxy_alone() -> None:
    headers = [(PROTO, b"https"), (HOST, b"ci.example.org")]
    assert find_origin("10.0.0.1", headers, TRUSTED) == Origin("10.0.0.1", "https", "ci.example.org", believed=True)
    assert find_origin("203.0.113.9", headers, TRUSTED) == Origin("203.0.113.9")


@pytest.mark.parametrize("header", [(PROTO, b"gopher"), (HOST, b"a b"), (HOST, b"x\r\ny"), (HOST, b""), (PROTO, b"")])
def test_a_scheme_or_host_that_is_none_is_passed_over(header: Header) -> None:
    origin = find_origin("10.0.0.1", [header], TRUSTED)
    assert (origin.scheme, origin.host) == (None, None)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.example.org", "10.0.0.1/8", "::/129", "10.0.0.0/8;fd00::/8"])
def test_a_malformed_network_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no network"):
        parse_networks(f"127.0.0.1,{text}")


def test_nobody_is_trusted_where_no_network_is_named() -> None:
    assert parse_networks(" , ") == ()
    assert find_origin("127.0.0.1", hops("203.0.113.9"), ()) == Origin("127.0.0.1")


@given(st.lists(st.tuples(st.sampled_from([FOR, PROTO, HOST]), st.binary(max_size=200)), max_size=8))
def test_whatever_the_headers_say_it_never_fails_and_an_untrusted_peer_stays_itself(headers: list[Header]) -> None:
    find_origin("10.0.0.1", headers, TRUSTED)
    assert find_origin("203.0.113.9", headers, TRUSTED) == Origin("203.0.113.9")


def echo_app(trusted: str) -> App:
    app = build_app("echo", trusted_proxies=parse_networks(trusted))

    @app.get("/")
    async def echo() -> Response:
        await trio.lowlevel.checkpoint()
        left = sorted(name for name, _ in request.headers if name.startswith("X-Forwarded"))
        return json_response([request.remote_addr, request.scheme, request.host, left])

    return app


ASK = (
    b"GET / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.9\r\n"
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: ci.example.org\r\n\r\n"
)


async def test_an_application_sees_the_client_behind_a_trusted_proxy() -> None:
    async with served(echo_app("127.0.0.0/8")) as port:
        heard = await talk(port, ASK)
    assert heard.endswith(b'["203.0.113.9","https","ci.example.org",[]]')


async def test_an_application_that_trusts_no_proxy_sees_the_peer_and_the_headers_as_they_came() -> None:
    async with served(echo_app("10.0.0.0/8")) as port:
        heard = await talk(port, ASK)
    assert heard.endswith(b'["127.0.0.1","http","inside",["X-Forwarded-For","X-Forwarded-Host","X-Forwarded-Proto"]]')
