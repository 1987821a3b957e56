"""Who waits in this process, what each of them offers, and which of them a queued request suits.

Values and memory only: no database, no clock, no task. waitroom.py looks into the queue and decides when; the order of
grants is leases.py's. `suits` says what the grant's statement says of a host's room and labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from nimbus.model.labels import IMPLICIT
from nimbus.runtime.redis import Ringing
from nimbus.wire.leaseapi import LeaseRequest
from nimbus.wire.vmjson import Json

AWAKE = 16  # agents of one process that are woken and have not looked yet: more would wait for the database's pool


@dataclass(frozen=True)
class Offer:
    """What an agent has room for. No labels: it takes any runner's machine."""

    arch: str
    labels: frozenset[str]
    cpus: int
    mem_mib: int
    disk_mib: int | None  # None: not counted


@dataclass(frozen=True)
class Request:
    """A queued machine request that nobody is woken for."""

    machine_id: int
    fence: int
    arch: str
    host_labels: frozenset[str] | None  # None: any host will do
    cpus: int
    mem_mib: int
    disk_mib: int
    overdue_s: float | None  # since the time of whoever was woken for it last ran out; None: it may be anybody's


def plan_offer(request: LeaseRequest) -> Offer:
    """Pure: what this poll offers. Without a free slot it is nothing."""
    labels = frozenset(label.lower() for label in request.labels)
    offered = labels | IMPLICIT | {str(request.arch)} if labels else labels
    cpus = request.free_cpus if request.free_slots > 0 else 0
    return Offer(str(request.arch), offered, cpus, request.free_mem_mib, request.free_disk_mib)


def suits(request: Request, offer: Offer) -> bool:
    """Pure: whether the host has the room and the labels."""
    return (
        request.arch == offer.arch
        and request.cpus <= offer.cpus
        and request.mem_mib <= offer.mem_mib
        and (offer.disk_mib is None or request.disk_mib <= offer.disk_mib)
        and (request.host_labels is None or not offer.labels or request.host_labels <= offer.labels)
    )


def find_largest(offers: Iterable[Offer]) -> list[Offer]:
    """Pure: the offers that suit whatever any of all suits; hosts of one kind come down to one."""
    most_disk: dict[tuple[object, ...], Offer] = {}  # nearly every host has a free disk of its own size
    for offer in offers:
        key = (offer.arch, offer.labels, offer.cpus, offer.mem_mib)
        known = most_disk.get(key)
        if known is None or _disk(known) < _disk(offer):
            most_disk[key] = offer
    kept: list[Offer] = []
    for offer in sorted(most_disk.values(), key=lambda each: (each.cpus, each.mem_mib), reverse=True):
        if not any(_holds(larger, offer) for larger in kept):
            kept.append(offer)
    return kept


def _disk(offer: Offer) -> float:
    return math.inf if offer.disk_mib is None else offer.disk_mib


def _holds(larger: Offer, offer: Offer) -> bool:
    alike = (larger.arch, larger.labels) == (offer.arch, offer.labels)
    room = larger.cpus >= offer.cpus and larger.mem_mib >= offer.mem_mib and _disk(larger) >= _disk(offer)
    return alike and room


def render_offers(offers: Iterable[Offer]) -> list[Json]:
    """As the statement that looks for their requests reads them."""
    return [
        {"arch": each.arch, "labels": sorted(each.labels), "cpus": each.cpus, "mem_mib": each.mem_mib,
         "disk_mib": each.disk_mib}
        for each in offers
    ]  # fmt: skip


@dataclass(eq=False)
class Seat:
    """One agent's poll. It may be called at any moment, also while it looks by itself: then it looks once more."""

    agent_id: str
    offer: Offer
    called_for: int | None = None  # the machine request that it was woken for and has not answered yet
    rings: int = 0  # of the bell, as it was called
    failed: set[int] = field(default_factory=set)  # was woken for these and got nothing
    _stir: trio.Event = field(default_factory=trio.Event)

    async def wait_called(self) -> None:
        """Return once it is called, or dismissed; at once where that has happened."""
        await self._stir.wait()
        self._stir = trio.Event()

    def stir(self) -> None:
        self._stir.set()


@dataclass(frozen=True)
class Noted:
    """What an agent offers, as it was last written down."""

    agent_id: str
    labels: tuple[str, ...]
    arch: str


class Room:
    """The seats of this process. `ear` hears the bell, and whatever here asks for another look into the queue."""

    def __init__(self) -> None:
        self.ear = Ringing()
        self.barred: frozenset[str] = frozenset()  # agents that are granted nothing now
        self.noted: dict[str, Noted] = {}  # by agent
        self._quiet: tuple[int, float] = (-1, 0.0)
        self._seats: dict[Seat, None] = {}  # the one that was called longest ago first
        self._awake = 0
        self._returned: set[int] = set()
        self._taken = trio.Event()
        self._largest: list[Offer] | None = None

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats)

    @property
    def places(self) -> int:
        """How many more agents may be woken now."""
        return AWAKE - self._awake

    def keep_quiet(self, rings: int, until_s: float) -> None:
        """The queue was found empty by a look that began after so many rings: believed until the next one."""
        self._quiet = (rings, until_s)

    def is_quiet(self, rings: int, now_s: float) -> bool:
        """Whether nothing is queued as far as this process knows, so that who comes need not look."""
        known, until_s = self._quiet
        return rings == known and now_s < until_s

    async def wait_taken(self) -> None:
        """Return once somebody is in the room."""
        await self._taken.wait()

    def enter(self, agent_id: str, offer: Offer) -> Seat:
        seat = Seat(agent_id, offer)
        self._seats[seat] = None
        self._taken.set()
        self._largest = None
        return seat

    def leave(self, seat: Seat) -> bool:
        """The seat is free; whether its agent was called and has not looked: another is woken at once."""
        del self._seats[seat]
        self._largest = None
        if not self._seats:
            self._taken = trio.Event()
        called = seat.called_for is not None
        if called:
            self._give_back(seat)
        return called

    def call(self, seat: Seat, machine_id: int, rings: int) -> None:
        """Wake it; where it has left since it was chosen, another is woken instead."""
        if seat not in self._seats:
            self._returned.add(machine_id)
            self.ear.ring()
            return
        del self._seats[seat]
        self._seats[seat] = None
        seat.called_for, seat.rings = machine_id, rings
        self._awake += 1
        self._largest = None
        seat.stir()

    def answer(self, seat: Seat, granted: int | None, rings: int) -> None:
        """Its agent has looked, and was granted that machine or nothing."""
        if seat.called_for is None:
            return
        if granted is not None and granted != seat.called_for:
            self._give_back(seat)
            return
        if granted is None:
            seat.failed.add(seat.called_for)  # nothing in the whole queue was for it: the next one has its turn later
        # for this very seat there may be something that came while it was awake; for the others a place is free now
        if granted is not None or seat.rings != rings:
            self.ear.ring()
        self._end_call(seat)

    def _give_back(self, seat: Seat) -> None:
        assert seat.called_for is not None  # noqa: S101 - a bug of ours, not bad luck
        self._returned.add(seat.called_for)
        self.ear.ring()
        self._end_call(seat)

    def _end_call(self, seat: Seat) -> None:
        seat.called_for = None
        self._awake -= 1
        self._largest = None

    def take_returned(self) -> set[int]:
        """The requests whose agents had other work or left, once: nobody needs to wait until their time runs out."""
        returned, self._returned = self._returned, set()
        return returned

    def find_largest(self) -> list[Offer]:
        """The largest offers of those who may be called."""
        if self._largest is None:
            self._largest = find_largest(seat.offer for seat in self._seats if self._may_call(seat))
        return self._largest

    def bar(self, agents: frozenset[str]) -> bool:
        """Call none of these from now on; whether that is news."""
        news = agents != self.barred
        if news:
            self.barred = agents
            self._largest = None
        return news

    def match(self, requests: Sequence[Request], patience_s: float) -> dict[Request, Seat]:
        """Whom to call for which request. Who had nothing of it has another turn when others have had theirs."""
        calls: dict[Request, Seat] = {}
        free = [seat for seat in self._seats if self._may_call(seat)]
        for request in requests[: self.places]:
            again = request.overdue_s is None or request.overdue_s >= patience_s
            chosen = next(
                (s for s in free if suits(request, s.offer) and (again or request.machine_id not in s.failed)), None
            )
            if chosen is not None:
                calls[request] = chosen
                free.remove(chosen)
        return calls

    def _may_call(self, seat: Seat) -> bool:
        return seat.called_for is None and seat.agent_id not in self.barred

    def dismiss(self) -> None:
        """Let everybody look up: the service stops."""
        for seat in self._seats:
            seat.stir()
