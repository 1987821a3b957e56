"""The fake GitHub's webhook deliveries: queued, signed, sent once, remembered, redelivered on request.

Like GitHub it waits 10 seconds for an answer, never sends again by itself, and a redelivery carries the GUID of the
first. Several are sent at once; those of one job in the order of their making, unless `faults.py` has it otherwise.
The forge's changes add to the queue, `app.py` runs the sender, the REST routes list.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import httpx2
import trio

from nimbus.model.errors import NotFound
from nimbus.sim.bell import Bell
from nimbus.sim.faults import DeliveryFate, Faults
from nimbus.wire.github import render_signature

ANSWER_WITHIN_S = 10.0
WINDOW_S = 3 * 86_400.0  # GitHub forgets a delivery, and sends it no more, after three days
KEPT = 10_000  # attempts remembered within the window: the limit of our memory, GitHub has none that we know
AT_ONCE = 20  # attempts in flight: far above one receiver's needs, far below what exhausts our sockets


@dataclass(frozen=True)
class WebhookTarget:
    """Where deliveries go and what signs them."""

    url: str
    secret: str = field(repr=False)


@dataclass
class Delivery:
    """One attempt to deliver one event."""

    delivery_id: int
    guid: str
    event: str
    action: str | None
    body: bytes = field(repr=False)
    installation_id: int | None  # none where the event belongs to the App itself
    redelivery: bool = False
    delivered_at_s: float | None = None
    duration_s: float = 0.0
    status: str = "pending"
    status_code: int = 0


@dataclass
class _Errand:
    """One attempt that is not yet sent."""

    delivery: Delivery
    fate: DeliveryFate
    subject: str  # the job that it tells of: such errands follow each other
    due_s: float  # of the monotonic clock
    loose: bool  # it keeps no order


class Deliveries:
    """All attempts, newest last, and the queue of those not yet sent."""

    def __init__(self, target: WebhookTarget | None, faults: Faults | None = None, window_s: float = WINDOW_S) -> None:
        self._target = target
        self._faults = faults or Faults()
        self._window_s = window_s
        self._ids = itertools.count(int(time.time() * 1000))
        self._all: dict[int, Delivery] = {}
        # No limit but memory's: the sim answers a state change at once, however slow the receiver is.
        self._unsent: list[_Errand] = []
        self._in_flight: list[_Errand] = []
        self._bell = Bell()
        self.changed: Callable[[], None] = lambda: None

    def add(self, event: str, action: str | None, payload: Mapping[str, object]) -> None:
        """Tell of an event that has just happened; whose it is stands in the payload."""
        fate = self._faults.deliver(redelivery=False)
        if fate.unlisted:
            self._faults.count("deliveries.unlisted")
            return
        body, installation = json.dumps(payload).encode(), payload.get("installation")
        installation_id = installation.get("id") if isinstance(installation, dict) else None
        first = Delivery(next(self._ids), str(uuid.uuid4()), event, action, body, installation_id)
        self._enqueue(first, fate)
        if fate.duplicated:
            self._faults.count("deliveries.duplicated")
            fate = self._faults.deliver(redelivery=False)
            self._enqueue(replace(first, delivery_id=next(self._ids)), fate, loose=True)  # perhaps at the same moment

    def redeliver(self, delivery_id: int) -> Delivery:
        """Another attempt under the same GUID."""
        old = self.get(delivery_id)
        again = Delivery(
            next(self._ids), old.guid, old.event, old.action, old.body, old.installation_id, redelivery=True
        )
        self._enqueue(again, self._faults.deliver(redelivery=True))
        return again

    def get(self, delivery_id: int) -> Delivery:
        found = self._all.get(delivery_id)
        if found is None or not self._remembered(found):
            raise NotFound("Not Found")
        return found

    def newest(self, count: int, before_id: int | None) -> list[Delivery]:
        """Up to `count` attempts that have ended, newest first, older than the cursor."""
        ended = [each for each in self._all.values() if each.delivered_at_s is not None and self._remembered(each)]
        ended.sort(key=_moment, reverse=True)  # by when they were made: one that was held back is a new one
        if before_id is not None:
            cursor = self._all.get(before_id)
            if cursor is None:
                ended = [each for each in ended if each.delivery_id < before_id]
            else:
                ended = [each for each in ended if _moment(each) < _moment(cursor)]
        return ended[:count]

    def pending_and_newest(self, sent: int) -> list[Delivery]:
        """All attempts that have not ended, and the newest of those that have; in the order of their making."""
        ended = [each.delivery_id for each in self._all.values() if each.delivered_at_s is not None]
        forgotten = set(ended[:-sent])
        return [each for each in self._all.values() if each.delivery_id not in forgotten]

    def take_up(self, earlier: Iterable[Delivery]) -> None:
        """Go on where an earlier sim ended: what it had not sent to the end is sent, perhaps for the second time."""
        for delivery in earlier:
            self._all[delivery.delivery_id] = delivery
            if delivery.delivered_at_s is None:
                self._unsent.append(_Errand(delivery, DeliveryFate(), _subject(delivery), 0.0, loose=False))
        self._ids = itertools.count(max([int(time.time() * 1000), *(each + 1 for each in self._all)]))

    async def run_sender(self, client: httpx2.AsyncClient, wait_written: Callable[[], Awaitable[None]]) -> None:
        """Send what is due, for ever; nothing before it would survive us."""
        async with trio.open_nursery() as nursery:
            while True:
                errand = self._take_due()
                if errand is not None:
                    nursery.start_soon(self._attempt, client, errand, wait_written)
                    continue
                with trio.move_on_after(self._until_due_s()):
                    await self._bell.wait()

    # -- inside -----------------------------------------------------------------------------------

    def _enqueue(self, delivery: Delivery, fate: DeliveryFate, *, loose: bool = False) -> None:
        held_s = fate.late_s
        if fate.late_s > 0:
            self._faults.count("deliveries.late")
        if fate.overtaken:
            self._faults.count("deliveries.reordered")
            held_s = max(held_s, self._faults.plan.deliveries.reorder_within_s)
        due_s = time.monotonic() + held_s
        errand = _Errand(delivery, fate, _subject(delivery), due_s, loose=loose or held_s > 0)
        self._forget()
        self._all[delivery.delivery_id] = delivery
        self._unsent.append(errand)
        self._bell.ring()
        self.changed()

    def _take_due(self) -> _Errand | None:
        """The first that may go now; it is in flight from here on."""
        if len(self._in_flight) >= AT_ONCE:
            return None
        now_s, told_of = time.monotonic(), {errand.subject for errand in self._in_flight}
        for place, errand in enumerate(self._unsent):
            if errand.due_s <= now_s and (errand.loose or errand.subject not in told_of):
                self._in_flight.append(self._unsent.pop(place))
                return errand
        return None

    def _until_due_s(self) -> float:
        """Until one that was held back is due; where those in flight are awaited the bell rings."""
        now_s = time.monotonic()
        return min((errand.due_s - now_s for errand in self._unsent if errand.due_s > now_s), default=float("inf"))

    async def _attempt(
        self, client: httpx2.AsyncClient, errand: _Errand, wait_written: Callable[[], Awaitable[None]]
    ) -> None:
        await wait_written()
        await self._send(client, errand.delivery, errand.fate)
        self._in_flight.remove(errand)
        for held in self._unsent:  # those that were to be overtaken by this one have been
            older = held.delivery.delivery_id < errand.delivery.delivery_id
            if older and held.fate.overtaken and held.fate.late_s == 0 and held.subject == errand.subject:
                held.due_s = 0.0
        self._bell.ring()
        self.changed()

    async def _send(self, client: httpx2.AsyncClient, delivery: Delivery, fate: DeliveryFate) -> None:
        started_s, answered = time.time(), False
        if self._target is None:
            delivery.status = "no webhook url is set"
        elif fate.lost:
            self._faults.count("deliveries.lost")
            delivery.status, delivery.status_code = "failed to connect to host", 502
        else:
            answered = await self._post(client, self._target, delivery)
        duration_s = time.time() - started_s
        if fate.answered_late and answered:
            self._faults.count("deliveries.answered_late")
            delivery.status, delivery.status_code, duration_s = "timed out", 504, ANSWER_WITHIN_S
        delivery.delivered_at_s, delivery.duration_s = started_s, duration_s

    async def _post(self, client: httpx2.AsyncClient, target: WebhookTarget, delivery: Delivery) -> bool:
        delivery.status, delivery.status_code = "timed out", 504
        headers = render_headers(delivery, target.secret)
        with trio.move_on_after(ANSWER_WITHIN_S):
            try:
                answer = await client.post(target.url, content=delivery.body, headers=headers)
            except httpx2.HTTPError:
                delivery.status, delivery.status_code = "failed to connect to host", 502
                return False
            good = answer.is_success
            delivery.status = "OK" if good else f"Invalid HTTP Response: {answer.status_code}"
            delivery.status_code = answer.status_code
            return True
        return False

    def _remembered(self, delivery: Delivery) -> bool:
        return delivery.delivered_at_s is None or delivery.delivered_at_s > time.time() - self._window_s

    def _forget(self) -> None:
        """Drop from the old end what is out of the window or too much; what is not yet sent is never dropped."""
        gone: list[int] = []
        for each in self._all.values():
            if each.delivered_at_s is None:
                continue
            if self._remembered(each) and len(self._all) - len(gone) < KEPT:
                break
            gone.append(each.delivery_id)
        for delivery_id in gone:
            del self._all[delivery_id]


def _moment(delivery: Delivery) -> tuple[float, int]:
    return delivery.delivered_at_s or 0.0, delivery.delivery_id


def _subject(delivery: Delivery) -> str:
    """What a delivery tells of. An event of no job follows its installation's others of that name."""
    try:
        payload = json.loads(delivery.body)
    except ValueError:  # it came from a file that is not ours
        payload = None
    job = payload.get("workflow_job") if isinstance(payload, dict) else None
    if isinstance(job, dict):
        return f"job {job.get('id')}"
    return f"{delivery.event} {delivery.installation_id}"


def render_headers(delivery: Delivery, secret: str) -> dict[str, str]:
    """GitHub's headers. There is no timestamp among them."""
    return {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/nimbus-sim",
        "X-GitHub-Delivery": delivery.guid,
        "X-GitHub-Event": delivery.event,
        "X-GitHub-Hook-ID": "1",
        "X-GitHub-Hook-Installation-Target-ID": "1",
        "X-GitHub-Hook-Installation-Target-Type": "integration",
        "X-Hub-Signature-256": render_signature(secret, delivery.body),
    }
