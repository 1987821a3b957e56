"""One agent's part in the live tail of `make bench-logs`: real log shippers, fed over guest-link sockets.

`python -m bench.logagent URL FOLDER LINES` takes a machine id and its token from each line of its standard input, up to
an empty one. For each it opens a guest at one end of a socket pair and the agent's own half of the link at the other,
with the spool and the shipper behind it. `go` on the next line lets the guests print: a line a second each, which says
when it was printed. Ends when all has arrived. Started by loglive.py.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from nimbus.cli.events import quiet_events
from nimbus.host_agent.guest import GuestSession, run_guest
from nimbus.host_agent.logs import LogTarget, open_log_shipping
from nimbus.model.vm import GuestExit
from nimbus.wire.guestframe import FrameSplitter, render_frame
from nimbus.wire.guestlink import VERSION, GuestState, Kind, Stream

EVERY_S = 1.0
MARK = "printed"  # what a line of ours begins with
_NONCE = bytes(range(16))
_ATTACH = struct.Struct("<HHI16sQQQQ")
_HELLO = struct.Struct("<HBBI16sIIQQQQ")
_OFFSET = struct.Struct("<B7xQ")
_EXIT = struct.Struct("<BBHIQQ")


class Guest:
    """The guest's end of the link: says hello, prints, tells its exit."""

    def __init__(self, machine_id: str, lines: int, go: trio.Event) -> None:
        self._machine_id, self._lines, self._go = machine_id, lines, go
        self._attached, self._heard = trio.Event(), trio.Event()
        self._end = 0

    async def run(self, stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, stream)
            await self._attached.wait()
            await self._go.wait()
            await trio.sleep(random.random() * EVERY_S)  # noqa: S311 - no two in step
            for number in range(self._lines):
                await self._print(stream, f"{MARK} {self._machine_id} {number} {time.monotonic_ns()} by the guest\n")
                await trio.sleep(EVERY_S)
            await stream.send_all(render_frame(Kind.EXIT, _EXIT.pack(0, 0, 0, 0, self._end, 0)))
            await self._heard.wait()
            await stream.send_all(render_frame(Kind.BYE))
            nursery.cancel_scope.cancel()

    async def _print(self, stream: trio.abc.Stream, line: str) -> None:
        data = line.encode()
        await stream.send_all(render_frame(Kind.OUT, _OFFSET.pack(Stream.STDOUT, self._end) + data))
        self._end += len(data)

    async def _listen(self, stream: trio.abc.Stream) -> None:
        splitter = FrameSplitter()
        while data := await stream.receive_some(65536):
            for frame in splitter.feed(data):
                if frame.kind == Kind.ATTACH:
                    _, _, attach_id, nonce, *_ = _ATTACH.unpack(frame.payload)
                    head = _HELLO.pack(VERSION, GuestState.RUNNING, 0, attach_id, nonce, 1, 1, 0, 0, self._end, 0)
                    await stream.send_all(render_frame(Kind.HELLO, head + b"6.1"))
                    self._attached.set()
                elif frame.kind == Kind.EXIT_ACK:
                    self._heard.set()


async def serve_machine(guest: Guest, folder: Path, target: LogTarget) -> None:
    """The agent's half: link, spool, shipper, until all has arrived."""
    near, far = trio.socket.socketpair()
    async with trio.open_nursery() as nursery, open_log_shipping(folder, target) as shipping:
        nursery.start_soon(guest.run, trio.SocketStream(far))
        session = GuestSession(_NONCE, None)
        connect = _connect_once(trio.SocketStream(near))
        await run_guest(connect, session, shipping, on_event=lambda _: None, on_exit=_take_exit, stop=trio.Event())
        if not await shipping.finish():
            raise RuntimeError("output was left behind")


def _connect_once(stream: trio.abc.Stream) -> Callable[[], Awaitable[trio.abc.Stream]]:
    left = iter([stream])

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        found = next(left, None)
        if found is None:
            await trio.sleep_forever()
        return found

    return connect


async def _take_exit(_: GuestExit) -> None:
    await trio.lowlevel.checkpoint()


async def main(url: str, folder: Path, lines: int) -> None:
    machines = []
    while words := sys.stdin.readline().split():
        machines.append((words[0], words[1]))
    go = trio.Event()
    async with trio.open_nursery() as nursery:
        for machine_id, token in machines:
            spool = folder / machine_id
            spool.mkdir(mode=0o700)
            nursery.start_soon(serve_machine, Guest(machine_id, lines, go), spool, LogTarget(url, token))
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        go.set()


if __name__ == "__main__":
    quiet_events()
    trio.run(partial(main, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
