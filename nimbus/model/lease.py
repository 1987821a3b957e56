"""A lease: the right to run one machine request until a deadline, told apart by a fence.

The holder's deadline is `time the renewal was sent + ttl - margin`; only the database's clock decides
on the other side. States of a machine request and their only legal steps stand in `TRANSITIONS`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nimbus.model.errors import IllegalTransition


@dataclass(frozen=True)
class LeasePolicy:
    """How long a lease lasts and how early its holder gives up (NIMBUS_JOB_LEASE_TTL, default 300 s)."""

    ttl_s: float = 300.0
    margin_s: float = 10.0

    def deadline_ns(self, sent_ns: int, ttl_s: float) -> int:
        """CLOCK_BOOTTIME nanoseconds at which the holder must have stopped; never before `sent_ns`."""
        return sent_ns + int((ttl_s - self.margin_of(ttl_s)) * 1e9)

    def margin_of(self, ttl_s: float) -> float:
        """How much earlier than the control plane its holder ends a lease of this ttl."""
        return min(self.margin_s, ttl_s / 4)


@dataclass(frozen=True)
class LeaseKey:
    """What every write by a lease's holder carries; both parts are checked."""

    machine_id: int
    lease_id: str
    fence: int


class MachineState(enum.StrEnum):
    """Where a machine request stands."""

    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class MachineEvent(enum.StrEnum):
    """What can happen to a machine request."""

    LEASE = "lease"  # granted to an agent, fence += 1
    START = "start"  # the guest said hello
    FINISH_OK = "finish_ok"
    FINISH_BAD = "finish_bad"
    CANCEL = "cancel"
    EXPIRE = "expire"  # lease ran out, the work may be run again
    LOSE = "lose"  # lease ran out, the work may not be run again


_S, _E = MachineState, MachineEvent
TRANSITIONS: dict[tuple[MachineState, MachineEvent], MachineState] = {
    (_S.QUEUED, _E.LEASE): _S.LEASED,
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
    (_S.LEASED, _E.START): _S.RUNNING,
    (_S.LEASED, _E.FINISH_OK): _S.DONE,
    (_S.LEASED, _E.FINISH_BAD): _S.FAILED,
    (_S.LEASED, _E.CANCEL): _S.CANCELLED,
    (_S.LEASED, _E.EXPIRE): _S.QUEUED,
    (_S.LEASED, _E.LOSE): _S.LOST,
    (_S.RUNNING, _E.FINISH_OK): _S.DONE,
    (_S.RUNNING, _E.FINISH_BAD): _S.FAILED,
    (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
    (_S.RUNNING, _E.EXPIRE): _S.QUEUED,
    (_S.RUNNING, _E.LOSE): _S.LOST,
}

TERMINAL = frozenset({_S.DONE, _S.FAILED, _S.CANCELLED, _S.LOST})


def advance(state: MachineState, event: MachineEvent) -> MachineState:
    """The next state; IllegalTransition where the table has no such step."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a machine request that is {state} cannot {event}") from None
