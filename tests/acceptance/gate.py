"""A door on this host that guests can knock at: their command waits there until the test opens it.

So a test decides when a job in a guest goes on, and no sleep guesses it. Used by the tests that kill things.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GUEST_PORT = 8099  # where guests find it at their gateway
GATEWAY = "172.16.0.1"
WAIT = f"wget -q -O - http://{GATEWAY}:{GUEST_PORT}/"  # prints `open` and a newline, once it is


@dataclass
class Gate:
    """A running door."""

    port: int
    answers: int = 0  # how many have gone through
    _open: threading.Event = field(default_factory=threading.Event)

    @property
    def guest_ports(self) -> str:
        """For NIMBUS_GUEST_PORTS."""
        return f"{GUEST_PORT}=127.0.0.1:{self.port}"

    def wait_line(self, backend: str) -> str:
        """The shell line that waits here; a double of a guest stands in the host's own network."""
        return WAIT if backend == "qemu" else f"wget -q -O - http://127.0.0.1:{self.port}/"

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def wait(self) -> None:
        self._open.wait()


@contextmanager
def running_gate(address: str = "127.0.0.1") -> Iterator[Gate]:
    """A shut door on a free port; opened at the end, so that nobody waits for ever."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gate.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"open\n")
            self.wfile.flush()
            gate.answers += 1

        def log_message(self, *_: object) -> None:
            """Stays quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A guest that was killed meanwhile reads no answer."""

    with Server((address, 0), Door) as server:
        gate = Gate(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield gate
        finally:
            gate.open()
            server.shutdown()
            thread.join()
