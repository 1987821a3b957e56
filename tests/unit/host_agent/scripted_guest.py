"""A guest that plays by a script, fair or not, for the tests of the host's half of the guest link."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio
from trio.testing import memory_stream_pair

from nimbus.host_agent.guest import GuestEvent, GuestSession, run_guest
from nimbus.model.errors import GuestFault, HostFault
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.guestframe import Frame, FrameSplitter, render_frame
from nimbus.wire.guestlink import Kind, Stream

NONCE = b"n" * 16
COMMAND = Command(("true",), grace_s=3)
IDLE, RUNNING = 0, 1


@dataclass
class Guest:
    """The far end of a link: hears frames, and says what the test tells it to."""

    stream: trio.abc.Stream
    splitter: FrameSplitter = field(default_factory=FrameSplitter)
    heard: list[Frame] = field(default_factory=list)
    flags: int = 0  # of its hellos; those of a guest of before there were any

    async def hear(self, kind: Kind) -> Frame:
        """The next frame of that kind; others are dropped."""
        while True:
            while self.heard:
                frame = self.heard.pop(0)
                if frame.kind == kind:
                    return frame
            data = await self.stream.receive_some(65536)
            if not data:
                raise trio.BrokenResourceError("the host hung up")
            self.heard += self.splitter.feed(data)

    async def say(self, kind: Kind, payload: bytes = b"") -> None:
        await self.stream.send_all(render_frame(kind, payload))

    async def greet(self, state: int = IDLE, nonce: bytes | None = None, first: int = 0, end: int = 0) -> None:
        """Answer the next attach."""
        await self.answer(await self.hear(Kind.ATTACH), state, nonce, first, end)

    async def answer(
        self, attach: Frame, state: int = IDLE, nonce: bytes | None = None, first: int = 0, end: int = 0
    ) -> None:
        """Say hello to that attach."""
        ident, told = struct.unpack_from("<4xI16s", attach.payload)
        head = struct.pack("<HBBI16sII", 1, state, self.flags, ident, nonce or told, 1, 2)
        await self.say(Kind.HELLO, head + struct.pack("<QQQQ", first, first, end, end))

    async def print(self, offset: int, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        await self.say(Kind.OUT, struct.pack("<B7xQ", stream, offset) + data)

    async def beat(self, state: int, acked: int = 0) -> None:
        await self.say(Kind.HEARTBEAT, struct.pack("<QB3xIIIIIQQQQ", 5, state, 0, 0, 0, 0, 0, acked, 0, 0, 0))

    async def end(self, code: int, out: int = 0, err: int = 0) -> None:
        await self.say(Kind.EXIT, struct.pack("<BB2xIQQ", 0, 0, code, out, err))


@dataclass
class Sink:
    """Keeps what comes."""

    writes: list[tuple[str, int, bytes]] = field(default_factory=list)
    gate: trio.Event | None = None  # nothing is safe before it is set

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        if self.gate is not None:
            await self.gate.wait()
        self.writes.append((stream, offset, data))
        return offset + len(data)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Stage:
    """A host, and the guest that a script plays."""

    sink: Sink = field(default_factory=Sink)
    events: list[GuestEvent] = field(default_factory=list)
    saved: list[GuestExit] = field(default_factory=list)
    stop: trio.Event = field(default_factory=trio.Event)

    async def play(
        self, *scripts: Callable[[Guest], Awaitable[None]], session: GuestSession | None = None
    ) -> GuestExit:
        """Run the host against one connection for each script. What the host raises is raised here."""
        left = list(scripts)
        told: list[GuestExit] = []
        faults: list[Exception] = []

        async with trio.open_nursery() as guests:

            async def act(script: Callable[[Guest], Awaitable[None]], stream: trio.abc.Stream) -> None:
                with suppress(trio.BrokenResourceError):  # of a host that has heard enough
                    await script(Guest(stream))
                await stream.aclose()

            async def connect() -> trio.abc.Stream:  # noqa: ASYNC124 - the protocol awaits it
                if not left:
                    raise FileNotFoundError
                near, far = memory_stream_pair()
                guests.start_soon(act, left.pop(0), far)
                return near

            try:
                told.append(
                    await run_guest(
                        connect,
                        session or GuestSession(NONCE, COMMAND),
                        self.sink,
                        on_event=self.events.append,
                        on_exit=self.save,
                        stop=self.stop,
                    )
                )
            except (GuestFault, HostFault) as fault:
                faults.append(fault)
            guests.cancel_scope.cancel()
        if faults:
            raise faults[0]
        return told[0]

    async def save(self, told: GuestExit) -> None:
        self.saved.append(told)


async def leave(guest: Guest) -> None:
    await guest.hear(Kind.EXIT_ACK)
    await guest.say(Kind.BYE)
