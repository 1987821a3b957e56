"""Orgs' registered secrets: asked of the control plane, kept, and asked again while their output comes.

One task asks, so that no request waits for a control plane that hangs. What was fetched once stays good for as long as
the control plane is away. An org whose secrets were never fetched waits, for itself alone and for a bounded time; then
its output is taken with the known shapes hidden only, which a metric and the log say. Called by `ingest/masknet`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import httpx2
import structlog
import trio

from nimbus.logging_pipeline.ingest.needles import Needles
from nimbus.model.errors import Refused, Unavailable
from nimbus.runtime.threads import ThreadLane
from nimbus.wire.fields import parse_object

MAX_VALUES = 1000  # more than the control plane takes
MAX_CHARS = 64 * 1024
MAX_ORGS = 10_000
STEM_BYTES_MAX = 2 * 2**20  # of all orgs' automata: about a kilobyte of memory each, where output visits them all
RETRY_S = 2.0  # between two questions about an org for which none was answered
WAIT_S = 2.0  # that a request waits before it is told to come again
REST_S = 60.0  # agents come again sooner: an org that was silent for longer did not wait
_AT_ONCE = 4
_NOT_FOUND = 404
Build = Callable[[tuple[str, ...]], Awaitable[Needles]]
log = structlog.get_logger()


@dataclass(frozen=True)
class MaskTerms:
    """How old what is known may be, and how long output waits for what is not."""

    refresh_s: float = 30.0
    patience_s: float = 60.0


class Plane(Protocol):
    """Whom to ask."""

    async def ask(self, path: str) -> httpx2.Response:
        """A success or 404; Unavailable for all else."""


@dataclass
class _Entry:
    """What is known of an org."""

    since: float  # when its output began to come; it may have rested since
    seen_at: float
    values: tuple[str, ...] = field(default=(), repr=False)
    needles: Needles | None = None  # None: it registered nothing, or nobody knows
    fetched_at: float = -math.inf
    tried_at: float = -math.inf
    told: bool = False  # that its output is taken with shapes only
    asking: bool = False
    began_at: float = -math.inf  # of the last question; no request waits for it longer than WAIT_S from then on
    answered: trio.Event = field(default_factory=trio.Event)  # the question that is under way

    @property
    def is_known(self) -> bool:
        return self.fetched_at > -math.inf


class Registered:
    """Registered secrets by org."""

    def __init__(
        self, plane: Plane, terms: MaskTerms, note_missing: Callable[[], None], build: Build | None = None
    ) -> None:
        self._plane = plane
        self._terms = terms
        self._note_missing = note_missing
        self._orgs: OrderedDict[int, _Entry] = OrderedDict()
        self._send, self._receive = trio.open_memory_channel[int](MAX_ORGS)  # an org is in it once at most
        self._lane = ThreadLane("needles", 1)
        self._build = build or self._build_in_thread

    def find(self, org_id: int) -> Needles | None:
        """What is at hand of an org."""
        entry = self._orgs.get(org_id)
        return None if entry is None else entry.needles

    async def ensure(self, org_id: int) -> None:
        """Return once what is at hand is good enough; Unavailable for an org that was never heard of, for a while.

        What is a little too old is used while it is asked for anew. Much too old is what somebody may have changed
        before the job began: it is waited for.
        """
        now = trio.current_time()
        entry = self._orgs.get(org_id)
        if entry is None:
            entry = self._orgs[org_id] = _Entry(now, now)
            if len(self._orgs) > MAX_ORGS:
                self._orgs.popitem(last=False)
        self._orgs.move_to_end(org_id)
        if now - entry.seen_at > self._terms.patience_s + REST_S:
            entry.since = now  # what waited then is not what waits now
        entry.seen_at = now
        if now - entry.fetched_at <= self._terms.refresh_s:
            return
        self._ask_for(org_id, entry)
        failed = entry.tried_at > entry.fetched_at
        if entry.is_known and (failed or now - entry.fetched_at <= 2 * self._terms.refresh_s):
            return
        with trio.move_on_at(entry.began_at + WAIT_S):
            await entry.answered.wait()
        if not entry.is_known:
            self._bear(org_id, entry)

    def _bear(self, org_id: int, entry: _Entry) -> None:
        """Nothing is known: have the request come again, or after enough of that take it all the same."""
        if trio.current_time() - entry.since < self._terms.patience_s:
            raise Unavailable("the org's registered secrets could not be fetched yet: retry", retry_after_s=RETRY_S)
        self._note_missing()
        if not entry.told:
            entry.told = True
            log.error("masks.shapes_only", org=org_id, why="its registered secrets could not be fetched")

    def _ask_for(self, org_id: int, entry: _Entry) -> None:
        if entry.asking or trio.current_time() - entry.tried_at < RETRY_S:
            return
        with suppress(trio.WouldBlock):  # then somebody asks later
            self._send.send_nowait(org_id)
            entry.asking, entry.began_at, entry.answered = True, trio.current_time(), trio.Event()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._answer)

    async def _answer(self) -> None:
        async for org_id in self._receive:
            entry = self._orgs.get(org_id)
            if entry is None:
                continue
            try:
                await self._fetch(org_id, entry)
            except (Unavailable, Refused) as error:
                log.warning("masks.not_fetched", org=org_id, why=str(error), kept=entry.is_known)
            finally:
                entry.tried_at, entry.asking = trio.current_time(), False
                entry.answered.set()

    async def _fetch(self, org_id: int, entry: _Entry) -> None:
        response = await self._plane.ask(f"/api/internal/orgs/{org_id}/masks")
        values = () if response.status_code == _NOT_FOUND else _parse_values(response.content)  # one that is older
        if values != entry.values:
            entry.needles = await self._build(values) if values else None
            entry.values = values
            self._forget_some()
        entry.fetched_at, entry.told = trio.current_time(), False

    async def _build_in_thread(self, values: tuple[str, ...]) -> Needles:
        return await self._lane.run(Needles, values)  # some hundredths of a second

    def _forget_some(self) -> None:
        """Keep the memory of all orgs' automata bounded: those that are not in use go first."""
        size = sum(entry.needles.stem_bytes for entry in self._orgs.values() if entry.needles is not None)
        for org_id, entry in list(self._orgs.items())[:-1]:
            if size <= STEM_BYTES_MAX:
                break
            size -= entry.needles.stem_bytes if entry.needles is not None else 0
            del self._orgs[org_id]


def _parse_values(body: bytes) -> tuple[str, ...]:
    return parse_object(body, "the control plane's answer").texts("values", MAX_VALUES, MAX_CHARS)
