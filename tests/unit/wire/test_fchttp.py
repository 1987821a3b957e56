"""wire/fchttp.py: one call as HTTP, and answers cut, torn, endless and forged."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.wire.fchttp import MAX_ANSWER_BYTES, Answer, Exchange
from nimbus.wire.firecracker import ask_version, pause_vm

# As the real one writes them, byte for byte.
DONE = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
TOLD = (
    b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
    b'Content-Length: 32\r\n\r\n{"firecracker_version":"1.16.1"}'
)


def test_a_request_is_one_line_its_heads_and_its_body() -> None:
    head, body = Exchange(pause_vm()).request.split(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"PATCH /vm HTTP/1.1",
        b"Host: localhost",
        b"Accept: application/json",
        b"Content-Type: application/json",
        b"Content-Length: 18",
    ]
    assert body == b'{"state":"Paused"}'


def test_a_question_has_no_body() -> None:
    assert Exchange(ask_version()).request.endswith(b"Accept: application/json\r\n\r\n")


@pytest.mark.parametrize(
    ("said", "answer"), [(DONE, Answer(204, b"")), (TOLD, Answer(200, b'{"firecracker_version":"1.16.1"}'))]
)
@settings(deadline=None)
@given(data=st.data())
def test_an_answer_may_come_in_any_pieces(said: bytes, answer: Answer, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(said) - 1))))
    exchange = Exchange(ask_version())
    *earlier, last = [said[a:b] for a, b in itertools.pairwise([0, *cuts, len(said)])]
    assert [exchange.feed(piece) for piece in earlier] == [None] * len(earlier)
    assert exchange.feed(last) == answer


def test_a_call_that_goes_out_of_use_says_so_and_is_done() -> None:
    answer = Exchange(pause_vm()).feed(DONE.replace(b"\r\n\r\n", b"\r\nDeprecation: true\r\n\r\n"))
    assert answer == Answer(204, b"", deprecated=True)
    assert answer.ok


@pytest.mark.parametrize("said", [b"", DONE[:-1], TOLD[:-1], b"HTTP/1.1 200 \r\n\r\nno length"])
def test_an_end_before_the_answers_end_is_a_dead_vmm(said: bytes) -> None:
    exchange = Exchange(pause_vm())
    if said:
        assert exchange.feed(said) is None
    with pytest.raises(HostFault, match="the VMM died during PATCH /vm"):
        exchange.feed(b"")


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-hello\r\n\r\n",
        DONE + b"more",
        TOLD + DONE,
        b"HTTP/1.1 100 \r\n\r\n",
        b"HTTP/1.1 302 \r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 \r\nUpgrade: guest\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 \r\n" + b"X-Long: " + b"x" * 9000,
        b"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n" + b"x" * MAX_ANSWER_BYTES,
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * MAX_ANSWER_BYTES,
        b"\x00" * 70_000,
    ],
)
def test_an_answer_that_firecracker_would_never_give_is_the_hosts_fault(said: bytes) -> None:
    with pytest.raises(HostFault, match="PATCH /vm"):
        Exchange(pause_vm()).feed(said)


def test_bytes_after_a_whole_answer_are_the_hosts_fault() -> None:
    exchange = Exchange(pause_vm())
    assert exchange.feed(DONE) is not None
    with pytest.raises(HostFault, match="does not end"):
        exchange.feed(DONE)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60) | st.sampled_from([DONE, TOLD, TOLD[:60], b"\r\n"]), max_size=6))
def test_no_bytes_do_more_than_be_refused(pieces: list[bytes]) -> None:
    exchange = Exchange(pause_vm())
    try:
        for piece in pieces:
            exchange.feed(piece)
    except HostFault as refused:
        str(refused).encode()
