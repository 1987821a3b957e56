"""Stored rows on their way to whoever follows: in-process, bounded, never waiting for a slow reader.

A reader that falls behind loses its queue and is told to read the table instead; no row is lost by that.
The writer publishes after the insert, so that nobody sees a row that is not stored. Called by `writer` and `follow`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import trio

from nimbus.logging_pipeline.rows import ReadRow
from nimbus.model.errors import RateLimited

QUEUE_ROWS = 5000  # what a reader may lag behind before it reads the table: about one ingest request
MAX_PER_ORG = 100
MAX_ALL = 1000


class Subscription:
    """One reader's queue."""

    def __init__(self, org_id: int, queue_rows: int) -> None:
        self.org_id = org_id
        self.machines: set[int] = set()
        self._queue_rows = queue_rows
        self._rows: deque[ReadRow] = deque()
        self._overflowed = False
        self._wake = trio.Event()

    def offer(self, rows: Iterable[ReadRow]) -> None:
        if self._overflowed:
            return
        self._rows.extend(rows)
        if len(self._rows) > self._queue_rows:
            self._rows.clear()
            self._overflowed = True
        self._wake.set()

    def take(self) -> list[ReadRow] | None:
        """What came since the last time; None after an overflow."""
        rows = None if self._overflowed else list(self._rows)
        self._rows.clear()
        self._overflowed = False
        self._wake = trio.Event()
        return rows

    async def wait(self) -> None:
        """Return when there is something to take."""
        await self._wake.wait()


class Hub:
    """All readers by the machine they follow."""

    def __init__(self, queue_rows: int = QUEUE_ROWS) -> None:
        self._queue_rows = queue_rows
        self._by_machine: dict[tuple[int, int], set[Subscription]] = {}
        self._subscriptions: set[Subscription] = set()

    @property
    def followers(self) -> int:
        return len(self._subscriptions)

    def require_room(self, org_id: int) -> None:
        """RateLimited where the org or the process has as many readers as it may have."""
        mine = sum(1 for each in self._subscriptions if each.org_id == org_id)
        if mine >= MAX_PER_ORG or self.followers >= MAX_ALL:
            raise RateLimited("too many readers follow output at once: close some, or page instead")

    def subscribe(self, org_id: int, machines: Iterable[int]) -> Subscription:
        """A new reader; ends with `unsubscribe`."""
        subscription = Subscription(org_id, self._queue_rows)
        self._subscriptions.add(subscription)
        self.watch(subscription, machines)
        return subscription

    def watch(self, subscription: Subscription, machines: Iterable[int]) -> None:
        """Follow these machines too."""
        for machine in machines:
            subscription.machines.add(machine)
            self._by_machine.setdefault((subscription.org_id, machine), set()).add(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        for machine in subscription.machines:
            key = (subscription.org_id, machine)
            readers = self._by_machine.get(key, set())
            readers.discard(subscription)
            if not readers:
                self._by_machine.pop(key, None)

    def publish(self, org_id: int, machine_id: int, rows: Sequence[ReadRow]) -> None:
        for subscription in self._by_machine.get((org_id, machine_id), ()):
            subscription.offer(rows)
