"""What one process of the stack is: its command, its environment, how it shows that it is ready, how it is stopped.

Values and probes only; nothing here starts anything. Made by postgres.py, redis.py and rooms.py, run by supervisor.py.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

Probe = Callable[[], Awaitable[bool]]

LOOPBACK = "127.0.0.1"
PROBE_ANSWER_S = 2.0  # a health page that takes longer does not count as healthy


@dataclass(frozen=True)
class Account:
    """The user that a server runs as when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Service:
    """One long-lived process. `once` marks a step that must end by itself with status 0 (a migration)."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    ready: Probe | None  # None: ready as soon as it runs
    cwd: str = "/"
    account: Account | None = None
    stdin: bytes = b""
    keep_fds: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 15.0  # after this, SIGKILL
    once: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)  # for people


def find_account(*names: str) -> Account | None:
    """The first of these users that exists, if we are root and may become it; else None: run as we are."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    return None


def free_port() -> int:
    """A loopback port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could bind this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers_http(port: int, path: str) -> Probe:
    """Ready when `GET path` on this loopback port answers 200."""

    async def probe() -> bool:
        request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode()
        return (await ask(port, request)).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))

    return probe


async def ask(port: int, request: bytes) -> bytes:
    """The first bytes that a loopback server answers; empty where there is none."""
    with trio.move_on_after(PROBE_ANSWER_S):
        try:
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                await stream.send_all(request)
                return bytes(await stream.receive_some(4096))
        except (OSError, trio.BrokenResourceError):
            return b""
    return b""
