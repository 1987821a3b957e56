"""A reader of a live tail that never gives up: server-sent events, resumed behind the last id whenever they break off.

Whatever was told in full before a break counts as seen; half an event does not. Called by logsoak.py.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

import h11
import trio

from tests.acceptance.logsoakrelay import HOST
from tests.acceptance.logsoakverdict import JobCheck

SILENCE_S = 25.0  # longer than the pipeline's heartbeat: behind it, nobody is there
PAUSE_S = 0.2
SIP_BYTES, SIP_S = 16 * 1024, 0.02
_CHUNK = 64 * 1024
_LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


@dataclass
class Follower:
    """One job's tail by one address, and what was seen of it."""

    port: int
    path: str
    token: str = field(repr=False)
    check: JobCheck
    is_slow: bool = False  # reads in sips, so that the pipeline must let it fall behind
    connections: int = 0
    resyncs: int = 0
    refusals: dict[int, int] = field(default_factory=dict)
    delays_ms: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    ended: bool = False
    _cursor: str | None = None

    async def run(self) -> None:
        """Until the stream says that all is told."""
        while not self.ended:
            with suppress(*_LOST):
                await self._connect()
            await trio.sleep(PAUSE_S)

    async def _connect(self) -> None:
        http = h11.Connection(h11.CLIENT)
        resume = {} if self._cursor is None else {"Last-Event-ID": self._cursor}
        headers = {"Host": HOST, "Authorization": f"Bearer {self.token}", **resume}
        asked = http.send(h11.Request(method="GET", target=self.path, headers=list(headers.items()))) or b""
        async with await trio.open_tcp_stream(HOST, self.port) as stream:
            self.connections += 1
            if self.is_slow:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SIP_BYTES)
            await stream.send_all(asked + (http.send(h11.EndOfMessage()) or b""))
            text = b""
            while data := await self._receive(stream, http):
                *events, text = (text + data).split(b"\n\n")
                for event in events:
                    self._take(event.decode())

    async def _receive(self, stream: trio.SocketStream, http: h11.Connection) -> bytes:
        """More of the answer's content; nothing at its end, after a silence, and of one that refuses."""
        while not self.ended:
            event = http.next_event()
            if event is h11.NEED_DATA:
                with trio.move_on_after(SILENCE_S):
                    await trio.sleep(SIP_S if self.is_slow else 0)
                    http.receive_data(bytes(await stream.receive_some(SIP_BYTES if self.is_slow else _CHUNK)))
                    continue
                return b""
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.Response) and event.status_code == 200:
                continue
            if isinstance(event, h11.Response):
                self.refusals[event.status_code] = self.refusals.get(event.status_code, 0) + 1
            return b""
        return b""

    def _take(self, event: str) -> None:
        lines = [line for line in event.split("\n") if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if "data" not in fields:
            return
        value = json.loads(fields["data"])
        match kind := fields.get("event", "message"):
            case "message":
                self.check.see(value["seq"], value["stream"], value["message"], value["step"])
                self.delays_ms.append(int(time.time() * 1000) - value["ts_ms"])
                self._cursor = fields["id"]
            case "resync":
                self.resyncs += 1
            case "end":
                self.ended = value["why"] == "complete"
                if not self.ended:
                    self.faults.append(f"{self.path} ended: {value['why']}")
            case _:
                self.faults.append(f"{self.path} told {kind}: {fields['data'][:200]}")
