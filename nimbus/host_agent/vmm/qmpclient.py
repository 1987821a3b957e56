"""A conversation with QEMU's monitor: one command, one answer, each within a limit.

The monitor takes one client at a time, so a conversation is short: connect, ask, leave. Knows no VM and keeps no
state. Called by vmm/qemu.py.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from nimbus.host_agent.vmm.sockets import connect_unix
from nimbus.model.errors import HostFault
from nimbus.wire.qmp import Answer, Greeting, Happening, QmpReader, Told, render_command

ANSWER_LIMIT_S = 15.0  # QEMU answers at once; a stopped one never does
_LOOK_FIRST_S, _LOOK_MOST_S = 0.001, 0.02
_RECEIVE_BYTES = 64 * 1024


class QemuRefused(HostFault):
    """QEMU answered with an error: its own words are in the message."""


class Monitor:
    """One conversation. Made by `open_monitor`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._reader = QmpReader()
        self._told: list[Told] = []
        self.version = (0, 0, 0)

    async def greet(self) -> None:
        """What every conversation begins with."""
        greeting: Told | None = None
        with trio.move_on_after(ANSWER_LIMIT_S):
            greeting = await self._hear()
        if not isinstance(greeting, Greeting):
            raise HostFault("QEMU's monitor did not greet")
        self.version = greeting.version
        await self.ask("qmp_capabilities")

    async def ask(self, name: str, arguments: Mapping[str, object] | None = None, *, fd: int | None = None) -> Any:
        """The answer's value; `fd` travels along. Raises QemuRefused, HostFault where QEMU does not answer or ends."""
        with trio.move_on_after(ANSWER_LIMIT_S):
            message = render_command(name, arguments)
            try:
                await (self._stream.send_all(message) if fd is None else self._send_with(message, fd))
            except (trio.BrokenResourceError, OSError) as error:
                raise HostFault(f"QEMU ended during {name}") from error
            answer = await self._hear_answer(name)
            if answer.fault:
                raise QemuRefused(f"QEMU refused {name}: {answer.fault}")
            return answer.value
        raise HostFault(f"QEMU gave no answer to {name} in {ANSWER_LIMIT_S:g} s")

    async def wait_for(self, ask: Callable[[], Awaitable[str]], over: frozenset[str], limit_s: float) -> str:
        """Ask until the answer is one of `over`: QEMU tells of a migration's end by no event in every version."""
        told, wait_s = "", _LOOK_FIRST_S
        with trio.move_on_after(limit_s):
            while (told := await ask()) not in over:
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, _LOOK_MOST_S)
            return told
        raise HostFault(f"QEMU was {told or 'silent'} for {limit_s:g} s")

    async def _send_with(self, message: bytes, fd: int) -> None:
        sent = await self._stream.socket.sendmsg(
            [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]
        )
        if sent < len(message):
            await self._stream.send_all(message[sent:])

    async def _hear_answer(self, name: str) -> Answer:
        while True:
            match await self._hear(name):
                case Answer() as answer:
                    return answer
                case Happening() | Greeting():
                    pass

    async def _hear(self, name: str = "the greeting") -> Told:
        while not self._told:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise HostFault(f"QEMU ended during {name}")
            self._told = self._reader.feed(bytes(data))
        return self._told.pop(0)


@asynccontextmanager
async def open_monitor(path: Path, limit_s: float = ANSWER_LIMIT_S) -> AsyncIterator[Monitor]:
    """A conversation for a block; waited for while QEMU has not made its socket yet. Raises HostFault."""
    stream: trio.SocketStream | None = None
    with trio.move_on_after(limit_s):
        stream = await _connect(path)
    if stream is None:
        raise HostFault(f"QEMU's monitor was not there in {limit_s:g} s")
    async with stream:
        monitor = Monitor(stream)
        await monitor.greet()
        yield monitor


async def _connect(path: Path) -> trio.SocketStream:
    wait_s = _LOOK_FIRST_S
    while True:
        try:
            return await connect_unix(path)
        except OSError:
            await trio.sleep(wait_s)
            wait_s = min(wait_s * 1.2, _LOOK_MOST_S)


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """A descriptor for a block, to be handed over. The path is ours alone: no VMM can put a link there."""
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)
