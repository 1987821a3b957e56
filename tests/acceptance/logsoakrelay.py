"""The network between agents and the logging pipeline, and what can befall it: a TCP relay that is told to fail.

Reads nothing of what passes but whether a connection posts. Runs in the soak's own process. Called by logsoak.py.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

HOST = "127.0.0.1"
FAULTS = ("cut", "refused", "stalled", "slow", "torn")
SLOW_BYTES_S = 40_000  # of each connection, while the network is slow
STALLED_SHARE = 0.15  # of the connections, each time: who waits for an answer gives up after half a minute
LOOK_S = 0.02
_CHUNK = 16 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Link:
    """One connection on its way through."""

    client: trio.SocketStream
    server: trio.SocketStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    posts: bool = False
    is_stalled: bool = False  # half-open: nobody closes it, and nothing passes any more

    def reset(self) -> None:
        """Both ends get a reset, in the middle of whatever it is."""
        for stream in (self.client, self.server):
            with suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.scope.cancel()


class FaultyRelay:
    """One address, and behind it the pipeline's port."""

    def __init__(self, port: int, behind: int, rng: random.Random) -> None:
        self.port = port
        self._behind = behind
        self._rng = rng
        self._links: set[Link] = set()
        self._slow = False
        self._torn: trio.Event | None = None  # the next answer is torn, and this says that it was
        self._listening = trio.CancelScope()
        self._reachable = trio.Event()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass connections on until cancelled."""
        async with trio.open_nursery() as links:
            await links.start(self._listen, links)
            task_status.started()

    async def strike(self, fault: str, lasts_s: float) -> None:
        """Let this befall the network; returns once it is over and has met somebody."""
        await until(lambda: any(link.posts and not link.is_stalled for link in self._links))
        try:
            await self._befall(fault, lasts_s)
        finally:
            self._reachable.set()
            self._slow, self._torn = False, None

    async def _befall(self, fault: str, lasts_s: float) -> None:
        match fault:
            case "cut":
                self._reset_all()
            case "refused":
                self._reachable = trio.Event()
                self._listening.cancel()
                self._reset_all()
                await trio.sleep(lasts_s)
            case "stalled":
                whole = sorted((link for link in self._links if not link.is_stalled), key=id)
                for link in self._rng.sample(whole, max(1, int(len(whole) * STALLED_SHARE))):
                    link.is_stalled = True
            case "slow":
                self._slow = True
                await trio.sleep(lasts_s)
            case "torn":
                self._torn = torn = trio.Event()
                await torn.wait()

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    async def _listen(
        self, links: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._reachable.set()
        while True:
            await self._reachable.wait()
            listeners = await trio.open_tcp_listeners(self.port, host=HOST)
            with trio.CancelScope() as self._listening:
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.serve_listeners(self._pass_on, listeners, handler_nursery=links)

    async def _pass_on(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream(HOST, self._behind)
        except OSError:
            return  # the client's connection is closed with that
        link = Link(client, server)
        self._links.add(link)
        try:
            with link.scope:
                async with trio.open_nursery() as pumps:
                    pumps.start_soon(self._pump_up, link)
                    pumps.start_soon(self._pump_down, link)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._links.discard(link)
            server.socket.close()
            client.socket.close()

    async def _pump_up(self, link: Link) -> None:
        while chunk := await self._receive(link.client):
            link.posts = link.posts or chunk.startswith(b"POST ")
            if not link.is_stalled:
                await link.server.send_all(chunk)
        link.scope.cancel()

    async def _pump_down(self, link: Link) -> None:
        while chunk := await self._receive(link.server):
            if link.is_stalled:
                await trio.sleep_forever()  # until the client gives up
            if self._torn is not None and link.posts:
                self._torn.set()
                self._torn = None
                await link.client.send_all(chunk[: self._rng.randrange(len(chunk))])
                link.reset()
                return
            await link.client.send_all(chunk)
        if link.is_stalled:
            await trio.sleep_forever()
        link.scope.cancel()

    async def _receive(self, stream: trio.SocketStream) -> bytes:
        chunk = bytes(await stream.receive_some(_CHUNK))
        if self._slow:
            await trio.sleep(len(chunk) / SLOW_BYTES_S)
        return chunk


async def until(look: Callable[[], bool]) -> None:
    """Return once it is so; for what other processes and connections do in their own time."""
    while not look():  # noqa: ASYNC110 - nobody tells of it
        await trio.sleep(LOOK_S)
