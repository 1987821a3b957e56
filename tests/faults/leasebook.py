"""The lease protocol as a small pure model: what the control plane of the lease machine knows and decides.

No I/O and no clock: every call is told the time. Fences only grow, a write needs the lease that is held right now, one
end is accepted for each fence, an agent that enrols gives up what it does not name. What no agent may ever do is noted
in `wrong`. Served over HTTP by leaseplane.py, judged by laws.py.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from nimbus.control_plane.queue.outcome import Held, judge_finish, judge_silence
from nimbus.model.lease import TERMINAL, LeaseKey, MachineEvent, MachineState, advance
from nimbus.wire.leaseapi import EnrolRequest, FinishRequest, HeldState, MachineKind, RenewRequest

MAX_ATTEMPTS = 1000  # nobody gives a request up here: after the last fault each must come to its own end
FINISHED, EXPIRED, GIVEN_UP = "finished", "expired", "given up"


@dataclass
class Lease:
    """One fence of one machine request. Times are monotonic seconds; 0: it has not happened."""

    fence: int
    lease_id: str
    agent: str
    granted_at: float
    until: float
    heard: list[float] = field(default_factory=list)  # renewals whose answer was sent
    running_at: float = 0.0
    lost: bool = False  # refused from now on; nobody else gets it before its time
    ended_at: float = 0.0
    how: str = ""
    end: dict[str, Any] | None = None  # the finish that was accepted


@dataclass
class Request:
    """One machine request."""

    number: int
    kind: MachineKind
    state: MachineState = MachineState.QUEUED
    leases: list[Lease] = field(default_factory=list)

    @property
    def held(self) -> Lease | None:
        """The lease that counts now."""
        return self.leases[-1] if self.leases and not self.leases[-1].how else None


class LeaseBook:
    """Every machine request of one story."""

    def __init__(self, ttl_s: float) -> None:
        self.requests: dict[int, Request] = {}
        self.wrong: list[str] = []
        self._ttl_s = ttl_s
        self._starts: dict[str, int] = {}  # the latest that each agent told

    def render(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"requests": [asdict(request) for request in self.requests.values()], "wrong": self.wrong}

    def submit(self, number: int) -> None:
        """Every other request is a runner's, whose command is minted late."""
        kind = MachineKind.RUNNER if number % 2 else MachineKind.COMMAND
        self.requests[number] = Request(number, kind)

    def grant(self, agent: str, now: float) -> tuple[Request, Lease] | None:
        """The oldest queued request."""
        self.expire(now)
        for request in self.requests.values():
            if request.state is MachineState.QUEUED:
                request.state = advance(request.state, MachineEvent.LEASE)
                lease = Lease(len(request.leases) + 1, str(uuid.uuid4()), agent, now, now + self._ttl_s)
                request.leases.append(lease)
                return request, lease
        return None

    def renew(self, agent: str, told: RenewRequest, now: float) -> Lease | None:
        """None: fenced."""
        request, lease = self._find(agent, told.key, now)
        if request is None or lease is None or lease.how or lease.lost:
            return None
        if told.state is HeldState.RUNNING and request.state is MachineState.LEASED:
            request.state = advance(request.state, MachineEvent.START)
            lease.running_at = now
        lease.until = max(lease.until, now + self._ttl_s)
        return lease

    def may_mint(self, agent: str, key: LeaseKey, now: float) -> bool:
        """Whether a runner is registered for this lease."""
        _, lease = self._find(agent, key, now)
        return lease is not None and not lease.how and not lease.lost

    def finish(self, agent: str, told: FinishRequest, body: dict[str, Any], now: float) -> MachineState | None:
        """The state after it; None: fenced. The same lease may say it again, and must say the same."""
        request, lease = self._find(agent, told.key, now)
        if request is None or lease is None or lease.lost:
            return None
        if lease.how == FINISHED and lease is request.leases[-1]:
            self._compare(request, lease, body)
            return request.state
        if lease.how:
            return None
        started = lease.running_at > 0
        held = Held(
            kind=request.kind,
            started=started,
            linked=started and request.kind is MachineKind.RUNNER and told.exit_code is not None,
            in_progress=False,
            grants=1,
            failures=0,
            cancel_requested=False,
        )
        request.state = advance(request.state, judge_finish(held, told.ending, MAX_ATTEMPTS).event)
        lease.how, lease.ended_at, lease.end = FINISHED, now, body
        return request.state

    def lose(self, number: int, now: float) -> int:
        """Refuse the present lease from now on; its fence, or 0 where there is none."""
        self.expire(now)
        held = self.requests[number].held
        if held is None:
            return 0
        held.lost = True
        return held.fence

    def enrol(self, agent: str, told: EnrolRequest, now: float) -> None:
        """A new start of an agent: of its leases only those that it names go on. Once for each start."""
        self.expire(now)
        if told.held is None or told.start is None or told.start <= self._starts.get(agent, 0):
            return
        self._starts[agent] = told.start
        named = {(key.machine_id, key.lease_id) for key in told.held}
        for request in self.requests.values():
            held = request.held
            if held is not None and held.agent == agent and (request.number, held.lease_id) not in named:
                self._end_untold(request, held, GIVEN_UP, now)

    def expire(self, now: float) -> None:
        """The sweeper."""
        for request in self.requests.values():
            held = request.held
            if held is not None and held.until <= now:
                self._end_untold(request, held, EXPIRED, held.until)

    def is_over(self, now: float) -> bool:
        """Whether every request came to its end."""
        self.expire(now)
        return all(request.state in TERMINAL for request in self.requests.values())

    def _end_untold(self, request: Request, held: Lease, how: str, at: float) -> None:
        held.how, held.ended_at = how, at
        silent = Held(request.kind, False, False, False, 1, 0, False)
        request.state = advance(request.state, judge_silence(silent, MAX_ATTEMPTS).event)

    def _find(self, agent: str, key: LeaseKey, now: float) -> tuple[Request | None, Lease | None]:
        """What the key names, where it is this agent's. A key that was never granted to it is a crime."""
        self.expire(now)
        request = self.requests.get(key.machine_id)
        if request is None:
            return None, None  # of an earlier story
        lease = next((one for one in request.leases if (one.fence, one.lease_id) == (key.fence, key.lease_id)), None)
        if lease is None or lease.agent != agent:
            self.wrong.append(
                f"agent {agent} speaks for machine {key.machine_id} fence {key.fence}, never granted to it"
            )
            return None, None
        return request, lease

    def _compare(self, request: Request, lease: Lease, body: dict[str, Any]) -> None:
        first = lease.end or {}
        for name in ("ending", "exit_code", "signal"):
            if body[name] != first[name]:
                who = f"machine {request.number} fence {lease.fence}"
                self.wrong.append(f"{who} ended twice: {name} {first[name]}, then {body[name]}")
