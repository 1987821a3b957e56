"""A guest's session and what is told of it: the values that serve.py, guesttalk.py and the ledger share.

Values and one protocol, no I/O. A session is what an adopting agent needs to go on with a guest that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nimbus.model.vm import DEFAULT_GRACE_S, Command, NetPlan
from nimbus.wire.guestlink import Heartbeat, Hello, JobStarted


@dataclass(frozen=True)
class GuestSession:
    """One guest's one job, from the first attach on. `command` None: an adopted guest, which must have it already."""

    nonce: bytes  # 16 random bytes; the guest obeys nobody with another
    command: Command | None
    net: NetPlan | None = None
    hostname: str = "nimbus"
    next_offsets: tuple[int, int] = (0, 0)  # of stdout and stderr: all below is safe with the sink
    stop_grace_s: float = DEFAULT_GRACE_S  # used when there is no command to ask
    must_prepare: bool = False  # restored from a template: without fresh randomness it would be its clones' twin


def render_session(session: GuestSession) -> dict[str, object]:
    """What a record keeps for adoption. Never the command: its environment may hold secrets."""
    grace_s = session.command.grace_s if session.command else session.stop_grace_s
    return {"nonce": session.nonce.hex(), "next_offsets": list(session.next_offsets), "stop_grace_s": grace_s}


def parse_session(stored: Mapping[str, Any]) -> GuestSession:
    """The session of a guest that runs its job already."""
    first, second = stored["next_offsets"]
    offsets = (int(first), int(second))
    grace_s = float(stored["stop_grace_s"])
    return GuestSession(bytes.fromhex(stored["nonce"]), None, next_offsets=offsets, stop_grace_s=grace_s)


class OutputSink(Protocol):
    """Where output goes."""

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        """The offset up to which the stream is safe, once it is: the guest forgets what is before it.

        It may be short of what came by less than 128 KiB, which the sink holds in memory until more comes.
        """
        ...

    async def flush(self) -> None:
        """The guest has told its exit: return when all that came is safe."""
        ...


@dataclass(frozen=True)
class GuestConnected:
    """The VMM took our connection; the guest itself may not listen yet."""


@dataclass(frozen=True)
class OutputGap:
    """The guest does not hold these bytes any more: an earlier host acknowledged and lost them."""

    stream: str
    start: int
    end: int


GuestEvent = GuestConnected | Hello | JobStarted | Heartbeat | OutputGap
