"""One call of the Firecracker API as HTTP/1.1: the request's bytes, and the answer read strictly from hostile ones.

Sans-IO, on h11. One exchange, one connection: an answer that never ends, one too large, or bytes after it are a
HostFault. Called by host_agent/vmm/fcapi.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import h11

from nimbus.model.errors import HostFault
from nimbus.wire.fcanswers import tame
from nimbus.wire.firecracker import ApiCall, render_body

MAX_ANSWER_BYTES = 256 * 1024  # the longest honest one is all metadata (51,200) or all configuration
MAX_HEAD_BYTES = 8 * 1024
STATUSES = frozenset({200, 204, 400, 413})
_HEADERS = (("Host", "localhost"), ("Accept", "application/json"))


@dataclass(frozen=True)
class Answer:
    """What came back, whole. `deprecated`: the call still works and a later release will refuse it."""

    status: int
    body: bytes
    deprecated: bool = False

    @property
    def ok(self) -> bool:
        return self.status in {200, 204}


class Exchange:
    """One call on one connection: send `request`, feed what comes until there is an answer."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head: h11.Response | None = None
        self._body = bytearray()
        self._fed_bytes = 0
        self._answer: Answer | None = None
        self.request = self._render()

    def _render(self) -> bytes:
        body = render_body(self._call)
        headers = list(_HEADERS)
        if body:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        sent = self._http.send(h11.Request(method=self._call.method, target=self._call.path, headers=headers)) or b""
        if body:
            sent += self._http.send(h11.Data(data=body)) or b""
        return sent + (self._http.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> Answer | None:
        """The answer once it is whole; no bytes mean that the VMM hung up. Raises HostFault, then feed no more."""
        if not data:
            raise HostFault(f"the VMM died during {self._call}")
        self._fed_bytes += len(data)
        if self._answer is not None or self._fed_bytes > MAX_ANSWER_BYTES:
            raise HostFault(f"Firecracker's answer to {self._call} does not end where it should")
        try:
            self._http.receive_data(data)
            while self._answer is None:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    break
                self._take(event)
        except h11.RemoteProtocolError as error:
            raise HostFault(f"Firecracker's answer to {self._call} is no HTTP: {tame(str(error)[:200])}") from None
        return self._answer

    def _take(self, event: object) -> None:
        match event:
            case h11.Response(status_code=status) if status in STATUSES:
                self._head = event
            case h11.Data(data=data):
                self._body += data
            case h11.EndOfMessage() if self._head is not None:
                self._finish(self._head)
            case h11.Response(status_code=status) | h11.InformationalResponse(status_code=status):
                raise HostFault(f"Firecracker answered {self._call} with status {status}, which it never gives")
            case _:
                raise HostFault(f"Firecracker's answer to {self._call} makes no sense")

    def _finish(self, head: h11.Response) -> None:
        left, _ = self._http.trailing_data
        if left:
            raise HostFault(f"Firecracker's answer to {self._call} does not end where it should")
        names = {name.lower() for name, _ in head.headers}
        self._answer = Answer(head.status_code, bytes(self._body), b"deprecation" in names)
