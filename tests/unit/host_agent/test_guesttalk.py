"""A guest that says impossible things ends itself, never the agent."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import trio
import trio.testing

from nimbus.host_agent.guest import GuestSession, run_guest
from nimbus.model.errors import GuestFault
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.guestframe import FrameSplitter, render_frame
from nimbus.wire.guestlink import Kind
from tests.hosts import Collected

NONCE = b"n" * 16
MOST = 2**64 - 1


def hello(attach_id: int, first: tuple[int, int], end: tuple[int, int]) -> bytes:
    head = struct.pack("<HBBI16sII", 1, 0, 0, attach_id, NONCE, 0, 0)
    return render_frame(Kind.HELLO, head + struct.pack("<QQQQ", *first, *end) + b"6.1")


async def converse(answer: Callable[[int], bytes]) -> None:
    """A guest that answers the first attach with these bytes."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def connect() -> trio.abc.Stream:  # noqa: ASYNC124 - the protocol awaits it
        return ours

    async def guest() -> None:
        frames = FrameSplitter().feed(await theirs.receive_some(4096))
        (attach,) = (frame for frame in frames if frame.kind == Kind.ATTACH)
        await theirs.send_all(answer(int.from_bytes(attach.payload[4:8], "little")))
        await trio.sleep_forever()

    async def persist(_: GuestExit) -> None:
        await trio.lowlevel.checkpoint()

    session = GuestSession(NONCE, Command(("true",)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest)
        await run_guest(connect, session, Collected(), on_event=lambda _: None, on_exit=persist, stop=trio.Event())


@pytest.mark.parametrize(
    ("first", "end"), [((MOST, 0), (MOST, 0)), ((0, MOST), (0, MOST)), ((MOST - 600_000, 0), (MOST, 0))]
)
async def test_output_beyond_all_numbers_is_the_guests_fault(
    autojump_clock: trio.testing.MockClock, first: tuple[int, int], end: tuple[int, int]
) -> None:
    with trio.fail_after(30), pytest.RaisesGroup(GuestFault):
        await converse(lambda attach_id: hello(attach_id, first, end))
