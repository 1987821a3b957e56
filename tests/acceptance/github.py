"""A fake GitHub that is no part of the stack, as the real one isn't: it lives on when all of ours is killed.

Its webhooks go through a relay on a fixed port, because a stack that starts again listens on another one.
Used by test_stack_killed.py.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.acceptance.stack import Github, Stack, clean_environment, wait_until
from tests.forge import APP_ID, app_key
from tests.services import free_port

GUEST_PORT = 8080  # where the runners in guests find it
CHUNK_BYTES = 65536


@dataclass
class Relay:
    """A port that leads to whichever control plane lives now."""

    port: int
    target: int | None = None

    def lead_to(self, stack: Stack) -> None:
        self.target = int(stack.env["NIMBUS_CONTROL_PLANE_URL"].rpartition(":")[2])


@dataclass(frozen=True)
class ForeignGithub:
    """The process, its owner's door, and the settings of a stack that works for it."""

    process: subprocess.Popen[bytes]
    door: Github
    relay: Relay
    settings: dict[str, str]
    guest_ports: str

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nobody inside the block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def running_relay() -> Iterator[Relay]:
    """Bytes in both directions until either side has ended; a connection without a target is closed."""

    class Pipe(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), ExitStack() as opened:
                there = opened.enter_context(socket.create_connection(("127.0.0.1", relay.target or 1)))
                back = threading.Thread(target=_pour, args=(there, self.request))
                back.start()
                _pour(self.request, there)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        block_on_close = True

    with Server(("127.0.0.1", 0), Pipe) as server:
        relay = Relay(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield relay
        finally:
            server.shutdown()
            thread.join()


def _pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def running_github(log: Path) -> Iterator[ForeignGithub]:
    """A fake GitHub of one's own, killed at the end."""
    port, secret, token = free_port(), secrets.token_hex(32), secrets.token_hex(32)
    url = f"http://127.0.0.1:{port}"
    with running_relay() as relay:
        env = clean_environment(
            log.parent,
            NIMBUS_SIM_BIND=f"127.0.0.1:{port}",
            NIMBUS_SIM_PUBLIC_URL=f"http://172.16.0.1:{GUEST_PORT}",
            NIMBUS_SIM_WEBHOOK_URL=f"http://127.0.0.1:{relay.port}/webhooks/github",
            NIMBUS_SIM_WEBHOOK_SECRET=secret,
            NIMBUS_SIM_APP_ID=APP_ID,
            NIMBUS_SIM_APP_PUBLIC_KEY=app_key().public_pem,
            NIMBUS_SIM_CONTROL_TOKEN=token,
        )
        settings = {
            "NIMBUS_GITHUB_APP_ID": APP_ID,
            "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key().private_pem,
            "NIMBUS_GITHUB_WEBHOOK_SECRET": secret,
            "NIMBUS_GITHUB_API_URL": url,
        }
        argv = [sys.executable, "-m", "nimbus.sim.main"]
        with log.open("wb") as out, subprocess.Popen(argv, env=env, stdout=out, stderr=out, cwd="/") as process:
            try:
                wait_until(lambda: _answers(url), "the fake GitHub answers")
                guest_ports = f"{GUEST_PORT}=127.0.0.1:{port}"
                yield ForeignGithub(process, Github(url, token), relay, settings, guest_ports)
            finally:
                os.kill(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
