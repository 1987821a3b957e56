"""Messages of the guest link: every byte where the vectors say, and nothing a guest sends can raise or grow."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import Refused as RequestRefused
from nimbus.model.vm import Command, ExitReason, GuestExit
from nimbus.wire.guestframe import HEADER_BYTES, MAX_PAYLOAD_BYTES, FrameSplitter, render_frame
from nimbus.wire.guestjob import (
    MAX_JOB_BYTES,
    GuestNetwork,
    Job,
    cut_job,
    join_job,
    parse_job,
    render_job,
)
from nimbus.wire.guestlink import (
    Bye,
    Exit,
    FromGuest,
    GuestReader,
    GuestState,
    Heartbeat,
    Hello,
    JobStarted,
    Kind,
    Output,
    Refusal,
    Refused,
    Stream,
    render_ack,
    render_attach,
    render_credit,
    render_echo,
    render_exit_ack,
    render_job_frames,
    render_look,
    render_prepare,
    render_stop,
)

VECTORS = json.loads((Path(__file__).parent / "guestlink_vectors.json").read_text())
NONCE = bytes(range(16))
ENTROPY = bytes(range(100, 132))
MACHINE_ID = bytes(range(200, 216))
NETWORK = GuestNetwork(IPv4Interface("172.16.0.2/30"), IPv4Address("172.16.0.1"), IPv4Address("9.9.9.9"))
FULL_COMMAND = Command(
    ("sh", "-c", 'echo "a b"\n', "żółw", ""), {"A": "1 2", "EMPTY": "", "É": "=x="}, "/work", "runner:1001", 1.5, 0.25
)
FULL_JOB = Job(FULL_COMMAND, "nimbus", NETWORK, 1_800_000_000_123_456_789, ENTROPY)
SMALL_JOB = Job(Command(("true",)), "h", None, 0, ENTROPY)

TO_GUEST: dict[str, bytes] = {
    "attach": render_attach(7, NONCE, (10, 20), (524298, 524308)),
    "attach at the far end": render_attach(2**32 - 1, b"\xff" * 16, (2**64 - 1, 0), (2**64 - 1, 1)),
    "a look": render_look(8, NONCE),
    "prepare": render_prepare(1_800_000_000_123_456_789, ENTROPY, MACHINE_ID),
    "ack": render_ack(Stream.STDOUT, 4096),
    "credit": render_credit(Stream.STDERR, 2**40),
    "echo": render_echo(12345),
    "stop": render_stop(30000),
    "exit ack": render_exit_ack(),
    "the smallest job": render_job_frames(SMALL_JOB),
    "a job with everything": render_job_frames(FULL_JOB),
}
FROM_GUEST: dict[str, FromGuest] = {
    "hello": Hello(1, GuestState.RUNNING, 7, NONCE, 747, 240, (0, 5), (99, 6), "6.1.0-56-cloud-amd64"),
    "hello of a guest that is prepared": Hello(
        1, GuestState.IDLE, 7, NONCE, 747, 240, (0, 0), (0, 0), "6.1", prepared=True
    ),
    "hello to a look": Hello(1, GuestState.IDLE, 8, NONCE, 747, 240, (0, 0), (0, 0), "6.1", looked=True),
    "heartbeat": Heartbeat(61000, GuestState.STOPPING, 1.37, 3, 249856, 181248, 1, (4096, 0), (70000, 12)),
    "job started": JobStarted(83, 1001),
    "exit with a code": Exit(GuestExit(7, None), (100, 0)),
    "exit by a signal after its time limit": Exit(
        GuestExit(None, 9, ExitReason.TIMEOUT, "its time limit has passed – żółw"),  # noqa: RUF001 - any UTF-8
        (2**64 - 1, 3),
    ),
    "exit for want of memory": Exit(GuestExit(None, 9, oom_kills=3), (40, 2)),
    "refused": Refused(Refusal.WRONG_NONCE, 2**32 - 1, "busy"),
    "output": Output(Stream.STDERR, 70000, b"\x00\xffNBL1"),
    "bye": Bye(),
}


@pytest.mark.parametrize("vector", VECTORS["to_guest"], ids=lambda v: v["name"])
def test_the_host_says_exactly_the_bytes_of_the_vectors(vector: dict[str, str]) -> None:
    assert TO_GUEST[vector["name"]].hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["from_guest"], ids=lambda v: v["name"])
def test_the_host_understands_exactly_the_bytes_of_the_vectors(vector: dict[str, str]) -> None:
    assert GuestReader().feed(bytes.fromhex(vector["hex"])) == [FROM_GUEST[vector["name"]]]


def test_every_kind_of_frame_has_a_vector() -> None:
    kinds = {bytes.fromhex(vector["hex"])[4] for side in VECTORS.values() for vector in side}

    assert kinds == set(Kind)


ALL_FROM_GUEST = [bytes.fromhex(vector["hex"]) for vector in VECTORS["from_guest"]]
# Bytes that look like the beginnings of frames are what a hunting reader has most trouble with.
garbage = st.lists(
    st.one_of(
        st.binary(max_size=40), st.just(b"NBL1"), st.just(b"NBL"), st.sampled_from(ALL_FROM_GUEST).map(lambda f: f[:-1])
    ),
    max_size=6,
).map(b"".join)


def feed_in_pieces(reader: GuestReader, data: bytes, cuts: Iterable[int]) -> list[FromGuest]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [message for start, end in itertools.pairwise(edges) for message in reader.feed(data[start:end])]


@given(st.lists(st.sampled_from(VECTORS["from_guest"]), max_size=20), st.lists(st.integers(0, 10**6), max_size=30))
def test_frames_are_understood_however_the_stream_is_cut(vectors: list[dict[str, str]], cuts: list[int]) -> None:
    data = b"".join(bytes.fromhex(vector["hex"]) for vector in vectors)

    assert feed_in_pieces(GuestReader(), data, cuts) == [FROM_GUEST[vector["name"]] for vector in vectors]


@given(st.one_of(st.binary(min_size=1, max_size=4000), garbage.filter(bool)), st.integers(500, 50_000))
def test_no_bytes_make_the_reader_raise_or_keep_more_than_a_frame(data: bytes, piece: int) -> None:
    splitter = FrameSplitter()
    stream = data * (150_000 // len(data))

    for start in range(0, len(stream), piece):
        splitter.feed(stream[start : start + piece])
        assert splitter.pending_bytes < HEADER_BYTES + MAX_PAYLOAD_BYTES


@given(garbage, st.lists(st.integers(0, 10**6), max_size=10))
def test_after_any_garbage_the_next_frames_are_found_once_the_claimed_half_frame_has_passed(
    noise: bytes, cuts: list[int]
) -> None:
    reader = GuestReader()
    # A half frame in the garbage claims at most one frame's worth of what follows; more than that resolves it.
    bye = bytes.fromhex(next(v["hex"] for v in VECTORS["from_guest"] if v["name"] == "bye"))
    filler = bye * (70_000 // len(bye))

    messages = feed_in_pieces(reader, noise + filler, cuts)

    assert messages[-100:] == [Bye()] * 100


@given(st.sampled_from(VECTORS["from_guest"]), st.integers(0, 10**6), st.integers(1, 255))
def test_a_frame_with_any_byte_changed_is_dropped_and_the_one_behind_it_is_heard(
    vector: dict[str, str], place: int, flip: int
) -> None:
    broken = bytearray.fromhex(vector["hex"])
    broken[place % len(broken)] ^= flip
    reader = GuestReader()

    messages = reader.feed(bytes(broken))
    reader.reset()
    messages += reader.feed(render_frame(Kind.BYE))

    assert messages == [Bye()]


@given(st.integers(0, 255), st.binary(max_size=200))
def test_no_content_with_a_right_checksum_makes_the_reader_raise(kind: int, payload: bytes) -> None:
    reader = GuestReader()

    messages = reader.feed(render_frame(kind, payload))

    assert len(messages) + reader.malformed + reader.unknown == 1


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.OUT, struct.pack("<B7xQ", 3, 0) + b"x"),  # a third stream
        (Kind.OUT, struct.pack("<B7xQ", 1, 0)),  # no bytes
        (Kind.EXIT, struct.pack("<BB2xIQQ", 0, 0, 256, 0, 0)),  # no such code
        (Kind.EXIT, struct.pack("<BB2xIQQ", 1, 0, 0, 0, 0)),  # no such signal
        (Kind.EXIT, struct.pack("<BB2xIQQ", 0, 4, 0, 0, 0)),  # no such reason
        (Kind.HELLO, b"\1\0\4" + bytes(61)),  # no such state
        (Kind.BYE, b"x"),
    ],
)
def test_content_that_makes_no_sense_is_counted_and_dropped(kind: Kind, payload: bytes) -> None:
    reader = GuestReader()

    messages = reader.feed(render_frame(kind, payload))

    assert (messages, reader.malformed) == ([], 1)


def test_a_guests_words_reach_people_as_one_bounded_printable_line() -> None:
    payload = struct.pack("<BB2xIQQ", 0, 0, 1, 0, 0) + b"red \x1b[31m\nline\xff" + b"x" * 5000

    (message,) = GuestReader().feed(render_frame(Kind.EXIT, payload))

    assert isinstance(message, Exit)
    assert message.exit.message.startswith("red \ufffd[31m\ufffdline\ufffdxxx")
    assert len(message.exit.message) <= 1024


def test_forged_headers_cost_a_reader_no_more_than_a_few_times_the_bytes_it_is_fed() -> None:
    # Each of these claims 65 KB: checking every claim to its end would be some 260 MB of checksums for 64 KB.
    forged = b"NBL1" + struct.pack("<BBHII", 5, 0, 0, 65000, 0)
    splitter = FrameSplitter()

    for _ in range(8):
        splitter.feed(forged * 4096)

    assert splitter.counts.bad_checksums < 80
    assert splitter.feed(bytes(70_000) + render_frame(Kind.BYE))[-1].kind == Kind.BYE


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(
    st.lists(words, max_size=5),
    st.dictionaries(words.filter(lambda name: name and "=" not in name), words, max_size=5),
    words,
    words,
)
def test_a_job_survives_the_way_through_its_frames(argv: list[str], env: dict[str, str], cwd: str, user: str) -> None:
    job = Job(Command(("x", *argv), env, cwd, user, 2.5, 0.5), "nimbus", NETWORK, 17, ENTROPY)

    frames = FrameSplitter().feed(render_job_frames(job))

    assert parse_job(join_job(frame.payload for frame in frames)) == job


def test_a_job_larger_than_a_frame_goes_in_pieces() -> None:
    job = Job(Command(("x",), {f"K{n}": "v" * 1000 for n in range(300)}), "nimbus", None, 0, ENTROPY)

    pieces = list(cut_job(render_job(job)))

    assert len(pieces) > 4
    assert parse_job(join_job(pieces)) == job


def test_a_job_larger_than_a_guest_takes_is_refused() -> None:
    command = Command(("x",), {"K": "v" * MAX_JOB_BYTES})

    with pytest.raises(RequestRefused, match="a guest takes"):
        render_job(Job(command, "nimbus", None, 0, ENTROPY))


@given(st.binary(max_size=300))
def test_no_bytes_that_are_no_job_pass_for_one(data: bytes) -> None:
    with pytest.raises((ValueError, RequestRefused, KeyError)):
        parse_job(data[:40])


def test_a_limit_below_a_millisecond_is_not_taken_for_no_limit() -> None:
    job = Job(Command(("x",), timeout_s=0.0001), "nimbus", None, 0, ENTROPY)

    assert parse_job(render_job(job)).command.timeout_s == 0.001
