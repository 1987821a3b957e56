"""One address for several control planes, as a load balancer gives it: each connection goes to one that is up.

A plane is up where it accepts a connection; they take turns. Nothing is read of what passes and nothing is tried
again: a connection ends with the plane it was given to. Runs in a thread of its own. Called by controlstorm.py.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from tests.acceptance.stack import LIMIT_S

HOST = "127.0.0.1"


@dataclass
class Relay:
    """The address, and how many connections each plane was given."""

    ports: Sequence[int]
    given: dict[int, int] = field(default_factory=dict)
    turned_away: int = 0  # no plane was up
    port: int = 0
    _listening: threading.Event = field(default_factory=threading.Event)
    _stop: trio.Event = field(default_factory=trio.Event)
    _token: trio.lowlevel.TrioToken | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def run(self) -> None:
        """Serve until told to stop; in a thread."""
        trio.run(self._serve)

    def wait_listening(self) -> None:
        assert self._listening.wait(LIMIT_S), "the relay does not listen"

    def stop(self) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._stop.set)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        turns = itertools.cycle(range(len(self.ports)))

        async def take(client: trio.SocketStream) -> None:
            await self._pass_on(client, next(turns))

        listeners = await trio.open_tcp_listeners(0, host=HOST)
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, take, listeners)
            self._listening.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    async def _pass_on(self, client: trio.SocketStream, turn: int) -> None:
        """Whatever one side says goes to the other, until the plane's side ends."""
        plane = await self._connect(turn)
        if plane is None:
            self.turned_away += 1
            return  # its connection is closed with that
        async with plane, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, client, plane)
            await _pump(plane, client)
            nursery.cancel_scope.cancel()

    async def _connect(self, turn: int) -> trio.SocketStream | None:
        for port in (*self.ports[turn:], *self.ports[:turn]):
            try:
                plane = await trio.open_tcp_stream(HOST, port)
            except OSError:
                continue
            self.given[port] = self.given.get(port, 0) + 1
            return plane
        return None


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Until the source ends; its end is passed on. A side that is gone ends it as well."""
    try:
        async for chunk in source:
            await sink.send_all(chunk)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


@contextmanager
def running_relay(ports: Sequence[int]) -> Iterator[Relay]:
    """A relay to these ports of this host, for as long as the block runs."""
    relay = Relay(ports)
    thread = threading.Thread(target=relay.run, daemon=True)
    thread.start()
    relay.wait_listening()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join(LIMIT_S)
