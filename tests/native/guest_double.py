"""What the tests of nimbus-init need: the host double as a process, a sink, and a connection that can be cut."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from nimbus.host_agent.guest import GuestEvent, GuestSession, run_guest
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.guestlink import FromGuest, GuestReader

Connect = Callable[[], Awaitable[trio.abc.Stream]]
Heard = TypeVar("Heard", bound=FromGuest)
INIT = Path(__file__).resolve().parents[2] / "nimbus" / "rootfs" / "bin" / "nimbus-init"


@dataclass
class Sink:
    """Keeps a hash, a length and, of small outputs, all bytes of each stream; refuses a gap or a repetition."""

    keep_bytes: int = 1 << 20
    on_write: Callable[[str, bytes], None] | None = None  # beside being kept
    ends: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    texts: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    hashes: dict[str, hashlib._Hash] = field(
        default_factory=lambda: {"stdout": hashlib.sha256(), "stderr": hashlib.sha256()}
    )

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        assert offset == self.ends[stream]
        self.ends[stream] += len(data)
        if self.on_write is not None:
            self.on_write(stream, data)
        self.hashes[stream].update(data)
        if len(self.texts[stream]) < self.keep_bytes:
            self.texts[stream] += data
        await trio.lowlevel.checkpoint()
        return self.ends[stream]

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def out(self) -> str:
        return self.texts["stdout"].decode()

    @property
    def err(self) -> str:
        return self.texts["stderr"].decode()


@dataclass
class Double:
    """A running `nimbus-init --host-double`."""

    path: Path
    process: trio.Process
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self) -> trio.SocketStream:
        self.streams.append(await trio.open_unix_socket(str(self.path)))
        return self.streams[-1]


@asynccontextmanager
async def open_double(folder: Path, program: Path = INIT, vmstat: Path | None = None) -> AsyncIterator[Double]:
    """The double while the block runs; killed with its job when it has not gone by itself. `vmstat` stands for the
    kernel's counters, from which it reads kills for memory."""
    path = folder / f"{secrets.token_hex(4)}.sock"
    argv = [program, "--host-double", path, *([] if vmstat is None else [vmstat])]
    start = partial(trio.run_process, argv, check=False, stdout=subprocess.PIPE)
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(start)
        await wait_ready(process)
        double = Double(path, process)
        try:
            yield double
        finally:
            for stream in double.streams:
                stream.socket.close()
        nursery.cancel_scope.cancel()


async def wait_ready(process: trio.Process) -> None:
    """Its first line says that it listens. The few lines after that fit the pipe."""
    said = b""
    assert process.stdout is not None
    with trio.fail_after(10):
        while b"ready" not in said:
            said += await process.stdout.receive_some()


@dataclass
class Host:
    """One host's side: what it heard and how the command ended."""

    sink: Sink = field(default_factory=Sink)
    events: list[GuestEvent] = field(default_factory=list)
    saved: list[GuestExit] = field(default_factory=list)
    stop: trio.Event = field(default_factory=trio.Event)
    on_event: Callable[[GuestEvent], None] | None = None  # beside being kept

    def hear(self, event: GuestEvent) -> None:
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    async def save(self, told: GuestExit) -> None:
        self.saved.append(told)

    async def run(self, session: GuestSession, connect: Connect) -> GuestExit:
        return await run_guest(connect, session, self.sink, on_event=self.hear, on_exit=self.save, stop=self.stop)


def new_session(command: Command) -> GuestSession:
    return GuestSession(secrets.token_bytes(16), command)


def shell(script: str) -> Command:
    return Command(("/bin/sh", "-c", script))


async def run_once(
    folder: Path, command: Command, host: Host | None = None, program: Path = INIT, vmstat: Path | None = None
) -> Host:
    """One command in one double, from start to farewell."""
    host = host or Host()
    async with open_double(folder, program, vmstat) as double:
        with trio.fail_after(30):
            await host.run(new_session(command), double.connect)
            await double.process.wait()
    assert len(host.saved) == 1
    assert double.process.returncode == 0
    return host


class CutStream(trio.abc.Stream):
    """A stream that breaks after so many bytes received, or sent."""

    def __init__(self, inner: trio.abc.Stream, receive_bytes: int, send_bytes: int) -> None:
        self._inner, self._receive_left, self._send_left = inner, receive_bytes, send_bytes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._receive_left <= 0:
            raise trio.BrokenResourceError
        try:
            data = bytes(await self._inner.receive_some(min(max_bytes or 65536, self._receive_left)))
        except trio.ClosedResourceError:  # by our own sending side
            raise trio.BrokenResourceError from None
        self._receive_left -= len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data[: self._send_left])
        self._send_left -= len(data)
        if self._send_left < 0:
            await self._inner.aclose()
            raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._inner.aclose()


class RawHost:
    """A host that says what it likes, frame by frame."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream, self.reader = stream, GuestReader()
        self._heard: deque[FromGuest] = deque()

    async def hear(self, kind: type[Heard]) -> Heard:
        """The next message of that kind; others are dropped."""
        while True:
            while self._heard:
                message = self._heard.popleft()
                if isinstance(message, kind):
                    return message
            data = await self.stream.receive_some(65536)
            assert data, "the guest hung up"
            self._heard.extend(self.reader.feed(data))
