"""Rows on their way to whoever follows: in-process, bounded, never waiting for a slow reader.

The writer publishes before it stores, so a reader sees a line while it is being stored. A reader that falls behind
loses its queue and is told to read the table instead; no row is lost by that. Knows neither the table nor Redis: what
other replicas publish comes in by `relayed`, as `relay` hears it. Called by `writer`, `relay` and `follow`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import trio

from nimbus.logging_pipeline.rows import Row, Source
from nimbus.model.errors import RateLimited

_REMEMBERED = 20_000  # machines; of one that was forgotten since it printed, all are taken for busy
_ROW_BYTES = 120  # what a row weighs beside its message
Machine = tuple[int, int]  # org, machine


@dataclass(frozen=True)
class HubTerms:
    """How much readers may take: of places, and of memory for what they have not read yet."""

    readers: int = 2000
    readers_per_org: int = 200
    queue_rows: int = 5000  # about one ingest request
    queue_bytes: int = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one source, in the order of their numbers; shared by all who follow it."""

    source: Source
    rows: Sequence[Row]
    size: int


class Seat:
    """A reader's place among those that the hub lets in. Left by `leave`, or with the reader itself."""

    def __init__(self, org_id: int, leave: Callable[[Seat], None]) -> None:
        self.org_id = org_id
        self._leave = leave

    def leave(self) -> None:
        self._leave(self)


class Subscription:
    """One reader's mailbox: batches, and the wish that it looks at the table."""

    def __init__(self, org_id: int, terms: HubTerms) -> None:
        self.org_id = org_id
        self.machines: set[int] = set()
        self._terms = terms
        self._batches: deque[Batch] = deque()
        self._rows = self._size = 0
        self._overflowed = self._look = False
        self._wake = trio.Event()

    def offer(self, batch: Batch) -> None:
        if not self._overflowed:
            self._batches.append(batch)
            self._rows += len(batch.rows)
            self._size += batch.size
            if self._rows > self._terms.queue_rows or self._size > self._terms.queue_bytes:
                self._clear()
                self._overflowed = True
        self._wake.set()

    def take(self) -> Batch | None:
        """The next batch, if there is one."""
        if not self._batches:
            return None
        batch = self._batches.popleft()
        self._rows -= len(batch.rows)
        self._size -= batch.size
        return batch

    def take_overflow(self) -> bool:
        """Whether batches were thrown away since the last call: the table has them, or will."""
        overflowed, self._overflowed = self._overflowed, False
        return overflowed

    def ask_to_look(self) -> None:
        """Something may have been stored that was not published here."""
        self._look = True
        self._wake.set()

    def take_look(self) -> bool:
        look, self._look = self._look, False
        return look

    def wake(self) -> None:
        """Let the reader see how things stand: its job or its token has changed."""
        self._wake.set()

    async def wait(self) -> None:
        """Return when something came since the last wait."""
        await self._wake.wait()
        self._wake = trio.Event()

    def _clear(self) -> None:
        self._batches.clear()
        self._rows = self._size = 0


class Hub:
    """All readers by the machine they follow."""

    def __init__(self, terms: HubTerms | None = None) -> None:
        self._terms = terms or HubTerms()
        self._by_machine: dict[Machine, set[Subscription]] = {}
        self._subscriptions: set[Subscription] = set()
        self._seats: WeakSet[Seat] = WeakSet()
        self._published: OrderedDict[Machine, float] = OrderedDict()  # when last
        self._since_s: float | None = None  # from here on that is all there was
        self.is_whole = True  # what any replica publishes arrives here: where not, readers look at the table
        self.carry: Callable[[Source, Sequence[Row]], None] | None = None  # to the other replicas
        self.followed: Callable[[Machine], None] | None = None  # told of each machine that gets its first reader
        self.forsaken: Callable[[Machine], None] | None = None  # and of each that lost its last

    @property
    def followers(self) -> int:
        return len(self._subscriptions)

    @property
    def relay_state(self) -> str:
        """As operators read it: whether what other replicas publish arrives here."""
        if self.carry is None:
            return "none"
        return "redis" if self.is_whole else "polling"

    @property
    def machines(self) -> list[Machine]:
        """All that are followed now."""
        return list(self._by_machine)

    # --- readers -------------------------------------------------------------------------------------------------

    def take_seat(self, org_id: int) -> Seat:
        """A place for one more reader; RateLimited where the org or the process has as many as it may have."""
        mine = sum(1 for seat in self._seats if seat.org_id == org_id)
        if mine >= self._terms.readers_per_org or len(self._seats) >= self._terms.readers:
            raise RateLimited("too many readers follow output at once: close some, or page instead")
        seat = Seat(org_id, self._seats.discard)
        self._seats.add(seat)
        return seat

    def subscribe(self, org_id: int, machines: Iterable[int]) -> Subscription:
        """A new reader; ends with `unsubscribe`."""
        subscription = Subscription(org_id, self._terms)
        self._subscriptions.add(subscription)
        self._since_s = trio.current_time() if self._since_s is None else self._since_s
        self.watch(subscription, machines)
        return subscription

    def watch(self, subscription: Subscription, machines: Iterable[int]) -> None:
        """Follow these machines too."""
        for machine in machines:
            subscription.machines.add(machine)
            key = (subscription.org_id, machine)
            readers = self._by_machine.setdefault(key, set())
            readers.add(subscription)
            if len(readers) == 1 and self.followed is not None:
                self.followed(key)

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        for machine in subscription.machines:
            key = (subscription.org_id, machine)
            readers = self._by_machine.get(key, set())
            readers.discard(subscription)
            if not readers and self._by_machine.pop(key, None) is not None and self.forsaken is not None:
                self.forsaken(key)

    def wake_all(self) -> None:
        """Every reader sees anew whether it may read on."""
        for subscription in self._subscriptions:
            subscription.wake()

    def ask_all_to_look(self) -> None:
        """Every reader may have missed something."""
        for subscription in self._subscriptions:
            subscription.ask_to_look()

    def ask_to_look(self, machine: Machine) -> None:
        """The readers of that machine may have missed something."""
        for subscription in self._by_machine.get(machine, ()):
            subscription.ask_to_look()

    def may_be_on_its_way(self, org_id: int, machines: Iterable[int], within_s: float) -> bool:
        """Whether something of these machines may have been published so lately that it is not stored yet."""
        now = trio.current_time()
        if self.carry is not None or self._since_s is None or now - self._since_s < within_s:
            return True  # other replicas publish too; and what was before us we do not know
        return any(now - self._published.get((org_id, machine), -math.inf) < within_s for machine in machines)

    def _note(self, machine: Machine) -> None:
        now = trio.current_time()
        self._since_s = now if self._since_s is None else self._since_s
        self._published[machine] = now
        self._published.move_to_end(machine)
        if len(self._published) > _REMEMBERED:
            _, self._since_s = self._published.popitem(last=False)

    # --- rows ----------------------------------------------------------------------------------------------------

    def publish(self, source: Source, rows: Sequence[Row]) -> None:
        """Rows that are about to be stored, to all who follow their machine, here and in other replicas."""
        self._note((source.org_id, source.machine_id))
        self.relayed(source, rows)
        if self.carry is not None:
            self.carry(source, rows)

    def relayed(self, source: Source, rows: Sequence[Row]) -> None:
        """Rows that some replica is about to store, to those who follow their machine here."""
        readers = self._by_machine.get((source.org_id, source.machine_id))
        if readers and rows:
            batch = Batch(source, rows, sum(len(row.message) + _ROW_BYTES for row in rows))
            for subscription in readers:
                subscription.offer(batch)
