"""A sink that holds back a stream's tail: it is not acknowledged, starves nothing and holds up no exit."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import trio
from trio.testing import MockClock

from nimbus.host_agent.guesttalk import WINDOW_BYTES
from nimbus.model.vm import GuestExit
from nimbus.wire.guestframe import Frame
from nimbus.wire.guestlink import Kind
from tests.unit.host_agent.scripted_guest import RUNNING, Guest, Sink, Stage, leave

HELD_BYTES = 3


@dataclass
class HoldingSink(Sink):
    """Gives out all but the last bytes of what came."""

    flushed: int = 0

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        return await super().write(stream, offset, data) - HELD_BYTES

    async def flush(self) -> None:
        await super().flush()
        self.flushed += 1


def offset_of(frame: Frame) -> int:
    return int(struct.unpack("<B7xQ", frame.payload)[1])


async def test_only_what_is_safe_is_acknowledged_and_the_exit_waits_for_no_more(autojump_clock: MockClock) -> None:
    stage = Stage(HoldingSink())

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.print(0, b"abcdef")
        assert offset_of(await guest.hear(Kind.ACK)) == 6 - HELD_BYTES
        await guest.beat(RUNNING, acked=3)
        await guest.end(0, out=6)
        await leave(guest)

    with trio.fail_after(60):
        assert await stage.play(script) == GuestExit(0, None)
    assert stage.sink.writes == [("stdout", 0, b"abcdef")]
    assert isinstance(stage.sink, HoldingSink)
    assert stage.sink.flushed == 1


async def test_a_new_connection_goes_on_behind_what_is_held_back(autojump_clock: MockClock) -> None:
    stage = Stage(HoldingSink())

    async def first(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.print(0, b"abcdef")
        await guest.hear(Kind.ACK)

    async def second(guest: Guest) -> None:
        attach = await guest.hear(Kind.ATTACH)
        assert struct.unpack_from("<QQ", attach.payload, 24)[0] == 6
        await guest.answer(attach, RUNNING, end=6)
        await guest.print(6, b"g")
        assert offset_of(await guest.hear(Kind.ACK)) == 7 - HELD_BYTES
        await guest.end(0, out=7)
        await leave(guest)

    with trio.fail_after(60):
        await stage.play(first, second)
    assert stage.sink.writes == [("stdout", 0, b"abcdef"), ("stdout", 6, b"g")]


async def test_credit_follows_what_is_safe_so_a_full_window_never_waits_for_ever(autojump_clock: MockClock) -> None:
    stage = Stage(HoldingSink())

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        sent, limit = 0, WINDOW_BYTES
        while sent < 4 * WINDOW_BYTES:
            size = min(65536, limit - sent)
            await guest.print(sent, b"x" * size)
            sent += size
            while limit <= sent:
                limit = offset_of(await guest.hear(Kind.CREDIT))
            assert limit <= sent + WINDOW_BYTES
        await guest.end(0, out=sent)
        await leave(guest)

    with trio.fail_after(60):
        assert await stage.play(script) == GuestExit(0, None)
