"""Whatever a guest says, the host's half of the link ends in an exit or the guest's fault, or goes on."""

from __future__ import annotations

import struct
from contextlib import suppress

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from nimbus.host_agent.guest import GuestEvent, GuestSession, run_guest
from nimbus.model.errors import GuestFault
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.guestframe import FrameSplitter, render_frame
from nimbus.wire.guestlink import Kind

# Numbers where something may go over an edge: zero, windows, frames, signs and the ends of their types.
numbers = st.sampled_from(
    [0, 1, 2, 255, 256, 65535, 65536, 524287, 524288, 524289, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
)
u64 = st.one_of(numbers, st.integers(0, 2**64 - 1))
u32 = u64.map(lambda n: n % 2**32)
u8 = st.one_of(st.integers(0, 4), st.integers(0, 255))
tails = st.binary(max_size=50)


def packed(layout: str, *fields: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.tuples(st.tuples(*fields), tails).map(lambda told: struct.pack(layout, *told[0]) + told[1])


hellos = st.tuples(st.integers(0, 4), u32, u32, u64, u64, u64, u64)
frames = st.one_of(
    st.tuples(st.just(Kind.OUT), packed("<B7xQ", u8, u64)),
    st.tuples(st.just(Kind.OUT), st.integers(0, 40).map(lambda at: struct.pack("<B7xQ", 1, at) + b"0123456789")),
    st.tuples(st.just(Kind.EXIT), packed("<BB2xIQQ", u8, u8, u32, u64, u64)),
    st.tuples(
        st.just(Kind.HEARTBEAT),
        st.tuples(u64, u8, *[u32] * 5, *[u64] * 4).map(lambda f: struct.pack("<QB3xIIIIIQQQQ", *f)),
    ),
    st.tuples(st.just(Kind.JOB_STARTED), packed("<II", u32, u32)),
    st.tuples(st.just(Kind.REFUSED), packed("<B3xI", u8, u32)),
    st.tuples(st.just(Kind.BYE), tails),
    st.tuples(st.sampled_from(list(Kind)), tails),
    st.tuples(st.integers(0, 255), tails),
)


class Sink:
    """Refuses what a real one could not write."""

    def __init__(self) -> None:
        self.ends = {"stdout": 0, "stderr": 0}

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        assert data
        assert self.ends[stream] <= offset < 2**63
        self.ends[stream] = offset + len(data)
        await trio.lowlevel.checkpoint()
        return self.ends[stream]

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


async def converse(hello: tuple[int, ...], said: list[tuple[int, bytes]]) -> None:
    """A guest that answers each attach with this hello, then says all this; the host may go on for a minute."""
    near, far = memory_stream_pair()
    state, kernel_ms, init_ms, *offsets = hello

    async def guest() -> None:
        splitter = FrameSplitter()
        while data := await far.receive_some():
            for attach in [frame for frame in splitter.feed(data) if frame.kind == Kind.ATTACH]:
                head = struct.pack("<HBB", 1, state, 0) + attach.payload[4:24] + struct.pack("<II", kernel_ms, init_ms)
                await far.send_all(render_frame(Kind.HELLO, head + struct.pack("<QQQQ", *offsets)))
                for kind, payload in said:
                    await far.send_all(render_frame(kind, payload))

    async def connect() -> trio.abc.Stream:  # noqa: ASYNC124 - the protocol awaits it
        return near

    async def save(_: GuestExit) -> None:
        await trio.lowlevel.checkpoint()

    events: list[GuestEvent] = []
    session = GuestSession(b"n" * 16, Command(("true",)))
    stop = trio.Event()
    stop.set()
    async with trio.open_nursery() as nursery:

        async def host() -> None:
            with trio.move_on_after(60):
                with suppress(GuestFault):
                    await run_guest(connect, session, Sink(), on_event=events.append, on_exit=save, stop=stop)
            nursery.cancel_scope.cancel()

        async def play() -> None:
            with suppress(trio.BrokenResourceError):  # the host hung up on us
                await guest()

        nursery.start_soon(play)
        nursery.start_soon(host)


@settings(deadline=None)
@given(hellos, st.lists(frames, max_size=12))
def test_nothing_a_guest_says_raises_anything_but_its_own_fault(
    hello: tuple[int, ...], said: list[tuple[int, bytes]]
) -> None:
    trio.run(converse, hello, said, clock=MockClock(autojump_threshold=0))


@settings(deadline=None)
@given(st.integers(0, 3), st.lists(frames, max_size=12))
def test_nothing_that_follows_an_honest_hello_raises_anything_but_the_guests_own_fault(
    state: int, said: list[tuple[int, bytes]]
) -> None:
    trio.run(converse, (state, 1, 2, 0, 0, 40, 40), said, clock=MockClock(autojump_threshold=0))
