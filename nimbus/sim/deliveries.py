"""The fake GitHub's webhook deliveries: queued, signed, sent once, remembered, redelivered on request.

Like GitHub it waits 10 seconds for an answer, never sends again by itself, and a redelivery carries the
GUID of the first. `forge.py` adds to the queue, `app.py` runs the sender, `github_api.py` lists.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import httpx2
import trio

from nimbus.model.errors import NotFound
from nimbus.sim.bell import Bell
from nimbus.wire.github import render_signature

ANSWER_WITHIN_S = 10.0
KEPT = 5000  # deliveries remembered; GitHub forgets after three days, memory is the sim's limit


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
    installation_id: int | None  # none: it is about the App itself
    redelivery: bool = False
    delivered_at_s: float | None = None
    duration_s: float = 0.0
    status: str = "pending"
    status_code: int = 0


class Deliveries:
    """All attempts, newest last, and the queue of those not yet sent."""

    def __init__(self, target: WebhookTarget | None) -> None:
        self._target = target
        self._ids = itertools.count(int(time.time() * 1000))
        self._all: dict[int, Delivery] = {}
        # No limit but memory's: the sim answers a state change at once, however slow the receiver is.
        self._unsent: deque[Delivery] = deque()
        self._bell = Bell()
        self.changed: Callable[[], None] = lambda: None

    def add(
        self, event: str, action: str | None, payload: dict[str, object], installation_id: int | None = None
    ) -> Delivery:
        body = json.dumps(payload).encode()
        delivery = Delivery(next(self._ids), str(uuid.uuid4()), event, action, body, installation_id)
        return self._enqueue(delivery)

    def redeliver(self, delivery_id: int) -> Delivery:
        """Another attempt under the same GUID."""
        old = self.get(delivery_id)
        again = Delivery(
            next(self._ids), old.guid, old.event, old.action, old.body, old.installation_id, redelivery=True
        )
        return self._enqueue(again)

    def get(self, delivery_id: int) -> Delivery:
        try:
            return self._all[delivery_id]
        except KeyError:
            raise NotFound("Not Found") from None

    def newest(self, count: int, before_id: int | None) -> list[Delivery]:
        """Up to `count` attempts that have ended, newest first, older than the cursor."""
        ended = (each for each in reversed(self._all.values()) if each.delivered_at_s is not None)
        return list(itertools.islice((d for d in ended if before_id is None or d.delivery_id < before_id), count))

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
                self._unsent.append(delivery)
        self._ids = itertools.count(max([int(time.time() * 1000), *(each + 1 for each in self._all)]))

    async def run_sender(self, client: httpx2.AsyncClient, wait_written: Callable[[], Awaitable[None]]) -> None:
        """Send what is queued, in order, for ever; nothing before it would survive us."""
        while True:
            while self._unsent:
                await wait_written()
                await self._send(client, self._unsent.popleft())
            await self._bell.wait()

    def _enqueue(self, delivery: Delivery) -> Delivery:
        self._all[delivery.delivery_id] = delivery
        while len(self._all) > KEPT:
            del self._all[next(iter(self._all))]
        self._unsent.append(delivery)
        self._bell.ring()
        self.changed()
        return delivery

    async def _send(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        started_s = time.time()
        if self._target is None:
            delivery.status = "no webhook url is set"
        else:
            await self._post(client, self._target, delivery)
        delivery.delivered_at_s, delivery.duration_s = started_s, time.time() - started_s
        self.changed()

    async def _post(self, client: httpx2.AsyncClient, target: WebhookTarget, delivery: Delivery) -> None:
        delivery.status, delivery.status_code = "timed out", 504
        headers = render_headers(delivery, target.secret)
        with trio.move_on_after(ANSWER_WITHIN_S):
            try:
                answer = await client.post(target.url, content=delivery.body, headers=headers)
            except httpx2.HTTPError:
                delivery.status, delivery.status_code = "failed to connect to host", 502
                return
            good = answer.is_success
            delivery.status = "OK" if good else f"Invalid HTTP Response: {answer.status_code}"
            delivery.status_code = answer.status_code


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
