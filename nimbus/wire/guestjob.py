"""The JOB message of the guest link: what to run, with which network, clock and randomness. docs/guest-link.md.

One binary value of length-prefixed fields, sent in pieces because an environment may be larger than a frame. Encoded
by the host; decoded in C by the guest and here by tests. Called by guestlink.py and host_agent/guest.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from nimbus.model.errors import Refused
from nimbus.model.vm import Command

MAX_JOB_BYTES = 2**20  # Linux takes about 2 MiB of argv and environment; this is what the guest reserves
ENTROPY_BYTES = 32
MAX_HOSTNAME_BYTES = 64
_U32 = struct.Struct("<I")
_NETWORK = struct.Struct("<4sB4s4s")
_PIECE = struct.Struct("<II")
PIECE_BYTES = 65536
_MAX_MS = 2**63 - 1


@dataclass(frozen=True)
class GuestNetwork:
    """What the guest configures on eth0."""

    address: IPv4Interface
    gateway: IPv4Address
    nameserver: IPv4Address | None = None


@dataclass(frozen=True)
class Job:
    """Everything the guest is told once."""

    command: Command
    hostname: str
    network: GuestNetwork | None
    wall_clock_ns: int  # Unix time as of sending; 0 leaves the guest's clock alone
    entropy: bytes

    def __post_init__(self) -> None:
        if len(self.entropy) != ENTROPY_BYTES:
            raise Refused(f"a job carries {ENTROPY_BYTES} bytes of entropy, not {len(self.entropy)}")
        if not 1 <= len(self.hostname.encode()) <= MAX_HOSTNAME_BYTES:
            raise Refused(f"a guest's host name has 1 to {MAX_HOSTNAME_BYTES} bytes")


def render_job(job: Job) -> bytes:
    """The whole value. Refused where the command is larger than a guest takes."""
    command = job.command
    network = b"\0"
    if job.network is not None:
        dns = job.network.nameserver
        interface = job.network.address
        network = b"\1" + _NETWORK.pack(
            interface.packed, interface.network.prefixlen, job.network.gateway.packed, dns.packed if dns else bytes(4)
        )
    timeout_ms = _milliseconds(command.timeout_s) if command.timeout_s is not None else 0
    whole = b"".join(
        (
            _render_list(command.argv),
            _render_list(f"{name}={value}" for name, value in command.env.items()),
            _render_text(command.cwd),
            _render_text(command.user),
            struct.pack("<QQ", timeout_ms, _milliseconds(command.grace_s, least=0)),
            network,
            _render_text(job.hostname),
            struct.pack("<Q", job.wall_clock_ns),
            job.entropy,
        )
    )
    if len(whole) > MAX_JOB_BYTES:
        raise Refused(f"command and environment take {len(whole)} bytes: a guest takes {MAX_JOB_BYTES}")
    return whole


def cut_job(whole: bytes) -> Iterator[bytes]:
    """The payloads of the JOB frames that carry `whole`: total size, offset, bytes."""
    for start in range(0, len(whole), PIECE_BYTES - _PIECE.size):
        yield _PIECE.pack(len(whole), start) + whole[start : start + PIECE_BYTES - _PIECE.size]


def join_job(payloads: Iterable[bytes]) -> bytes:
    """The inverse of `cut_job`. ValueError where the pieces do not follow each other."""
    whole, total = b"", 0
    for payload in payloads:
        total, start = _PIECE.unpack_from(payload)
        if start != len(whole):
            raise ValueError("a piece of the job is missing")
        whole += payload[_PIECE.size :]
    if len(whole) != total:
        raise ValueError("the job is not whole")
    return whole


def parse_job(whole: bytes) -> Job:
    """The inverse of `render_job`. ValueError (and its kin) for anything else; the host never needs it."""
    reader = _Reader(whole)
    argv = reader.texts()
    env = dict(entry.split("=", 1) for entry in reader.texts())
    cwd, user = reader.text(), reader.text()
    timeout_ms, grace_ms = reader.u64(), reader.u64()
    network = reader.network()
    hostname, wall_clock_ns, entropy = reader.text(), reader.u64(), reader.take(ENTROPY_BYTES)
    reader.end()
    command = Command(argv, env, cwd, user, timeout_ms / 1000 if timeout_ms else None, grace_ms / 1000)
    return Job(command, hostname, network, wall_clock_ns, entropy)


def _milliseconds(seconds: float, least: int = 1) -> int:
    return max(least, round(min(seconds * 1000, _MAX_MS / 2)))


def _render_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _U32.pack(len(data)) + data


def _render_list(texts: Iterable[str]) -> bytes:
    items = [_render_text(text) for text in texts]
    return _U32.pack(len(items)) + b"".join(items)


class _Reader:
    """A place in the value."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("the job ends early")
        self._at += count
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self) -> str:
        return self.take(self.u32()).decode("utf-8", "surrogateescape")

    def texts(self) -> tuple[str, ...]:
        return tuple(self.text() for _ in range(self.u32()))

    def network(self) -> GuestNetwork | None:
        if self.take(1) == b"\0":
            return None
        address, prefix, gateway, nameserver = _NETWORK.unpack(self.take(_NETWORK.size))
        dns = IPv4Address(nameserver) if any(nameserver) else None
        return GuestNetwork(IPv4Interface((address, prefix)), IPv4Address(gateway), dns)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("the job has bytes behind its end")
