"""How much output may be on its way into the table at once, and whose turn it is. Never waits.

Bytes are counted from before a body is read until its rows are stored, so memory is bounded whoever sends. An org may
hold as much as it leaves free: one org alone gets half, two get a third each, and whoever comes next finds room.
Requests are taken org by org in turn, those of one org in the order in which they came. Called by the ingest route
(admission) and by `writer` (turns).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nimbus.logging_pipeline.rows import Source
from nimbus.model.errors import RateLimited, Unavailable

RETRY_S = 1.0


@dataclass(frozen=True)
class IntakeLimits:
    """Bytes of bodies, as they were sent and once unpacked."""

    all_bytes: int = 64 * 2**20
    machine_bytes: int = 16 * 2**20


class Intake:
    """What is on its way, by org and machine."""

    def __init__(self, limits: IntakeLimits) -> None:
        self._limits = limits
        self._by_org: Counter[int] = Counter()
        self._by_machine: Counter[tuple[int, int]] = Counter()
        self.bytes = 0

    def enter(self, source: Source, size: int) -> Admission:
        """Let `size` bytes in; RateLimited where this sender has its share, Unavailable where there is no room."""
        admission = Admission(self, source)
        admission.grow(size)
        return admission

    def require_room(self, source: Source, size: int) -> None:
        mine = self._by_org[source.org_id]
        of_machine = self._by_machine[source.org_id, source.machine_id]
        if of_machine and of_machine + size > self._limits.machine_bytes:
            raise RateLimited("this machine sends faster than its output is stored: retry", RETRY_S)
        if mine + size <= self._limits.all_bytes - self.bytes:
            return
        if mine:
            raise RateLimited("this org sends faster than its output is stored: retry", RETRY_S)
        if self.bytes:
            raise Unavailable("too much output is waiting to be stored: retry", RETRY_S)

    def count(self, source: Source, size: int) -> None:
        machine = (source.org_id, source.machine_id)
        self.bytes += size
        self._by_org[source.org_id] += size
        self._by_machine[machine] += size
        if not self._by_org[source.org_id]:
            del self._by_org[source.org_id]
        if not self._by_machine[machine]:
            del self._by_machine[machine]


class Admission:
    """Bytes that are counted as one sender's until it leaves."""

    def __init__(self, intake: Intake, source: Source) -> None:
        self._intake = intake
        self._source = source
        self._size = 0

    def grow(self, size: int) -> None:
        """Let so many bytes more in; refused as at the entrance."""
        self._intake.require_room(self._source, size)
        self._size += size
        self._intake.count(self._source, size)

    def hand_over(self) -> Admission:
        """The same bytes for somebody else to let go; from here on they are no longer this one's."""
        taken = Admission(self._intake, self._source)
        taken._size, self._size = self._size, 0
        return taken

    def leave(self) -> None:
        """Count them no longer; a second time changes nothing."""
        size, self._size = self._size, 0
        self._intake.count(self._source, -size)


class Queued(Protocol):
    """What waits for its turn."""

    @property
    def source(self) -> Source:
        """Whose it is."""


T = TypeVar("T", bound=Queued)


class Turns(Generic[T]):
    """Requests that wait, an org's in the order in which they came, the orgs in turn."""

    def __init__(self) -> None:
        self._by_org: OrderedDict[int, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_org)

    def put(self, request: T) -> None:
        self._by_org.setdefault(request.source.org_id, deque()).append(request)

    def take(self) -> T:
        """The next org's oldest request; the org goes to the end of the row."""
        org_id, waiting = self._by_org.popitem(last=False)
        request = waiting.popleft()
        if waiting:
            self._by_org[org_id] = waiting
        return request
