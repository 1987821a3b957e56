"""Which job a machine runs, learned in the background: from the table after a restart, from the control plane else.

A runner begins to print before anybody knows its job, so an answer may be long in coming; rows never wait for it. A
link is never read from a body, and one whose org is not the token's is no link. Once known it is stored, then kept.
The writer asks `link_of` for each chunk; `run` is a task of app.py's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import structlog
import trio

from nimbus.logging_pipeline.plane import Plane
from nimbus.logging_pipeline.rows import JobLink, Source
from nimbus.logging_pipeline.store.links import LinkTable, find_links, find_unlinked, store_links
from nimbus.model.errors import NimbusError, Unavailable
from nimbus.wire.fields import parse_object

MAX_KEPT = 20_000  # machines remembered, linked or not; a forgotten one is looked up in the table
AT_ONCE = 8  # questions to the control plane in flight
A_ROUND = 200
_LARGEST_ATTEMPT = 2**16 - 1  # what its column holds
_NOT_FOUND = 404
NO_LINK = JobLink()
log = structlog.get_logger()


@dataclass(frozen=True)
class LinkTerms:
    """How often is asked, and for how long."""

    first_s: float = 1.0  # a job mostly begins seconds after its runner
    longest_s: float = 60.0
    silent_s: float = 3600.0  # after a machine's last rows: webhooks may be late by minutes


@dataclass
class _Question:
    """A machine whose job is not known yet."""

    due: float
    pause_s: float
    printed: float  # when its last rows came
    looked: bool = False  # in the table


@dataclass
class _Round:
    """What one round of questions brought."""

    links: dict[Source, JobLink] = field(default_factory=dict)
    away: bool = False


class Links:
    """What is known, and what is still to be asked."""

    def __init__(self, plane: Plane, table: LinkTable, terms: LinkTerms | None = None) -> None:
        self._plane = plane
        self._table = table
        self._terms = terms or LinkTerms()
        self._known: OrderedDict[Source, JobLink] = OrderedDict()
        self._questions: OrderedDict[Source, _Question] = OrderedDict()
        self._wake = trio.Event()
        self._away = False

    def link_of(self, source: Source) -> JobLink:
        """The machine's job; zeros while it is not known. Never waits."""
        known = self._known.get(source)
        if known is not None:
            return known
        now = trio.current_time()
        question = self._questions.get(source)
        if question is None:
            self._questions[source] = _Question(now, self._terms.first_s, now)
            _trim(self._questions)
            self._wake.set()
        else:
            question.printed = now
        return NO_LINK

    async def run(self) -> None:
        """Ask until cancelled; first about what was left open when the service last ended."""
        opened = False
        while True:
            self._wake = trio.Event()
            opened = opened or await self._reopen()
            due = self._take_due(trio.current_time())
            if due:
                await self._learn(due)
                continue
            next_due = min((question.due for question in self._questions.values()), default=float("inf"))
            with trio.move_on_at(next_due if opened else trio.current_time() + self._terms.first_s):
                await self._wake.wait()

    async def _reopen(self) -> bool:
        """Whether it is known which machines have printed lately and are not linked: they may never print again."""
        try:
            unlinked = await find_unlinked(self._table, self._terms.silent_s, MAX_KEPT // 2)
        except Unavailable:
            return False
        for source in unlinked:
            self.link_of(source)
        return True

    def _take_due(self, now: float) -> list[Source]:
        """Those whose turn it is, each with its next turn set; the silent ones are let go."""
        silent = [s for s, question in self._questions.items() if now - question.printed > self._terms.silent_s]
        for source in silent:
            del self._questions[source]
        due = list(islice((s for s, question in self._questions.items() if question.due <= now), A_ROUND))
        for source in due:
            question = self._questions[source]
            question.due = now + question.pause_s
            question.pause_s = min(2 * question.pause_s, self._terms.longest_s)
        return due

    async def _learn(self, sources: Sequence[Source]) -> None:
        try:
            new = [source for source in sources if not self._questions[source].looked]
            self._keep(await find_links(self._table, new) if new else {})
            for source in new:
                if source in self._questions:
                    self._questions[source].looked = True
            told = await self._ask([source for source in sources if source in self._questions])
            if told:
                await store_links(self._table, told)
                self._keep(told)
        except Unavailable as error:  # the table is away; each of them has its next turn
            log.warning("links.not_stored", reason=str(error), machines=len(sources))

    async def _ask(self, sources: Sequence[Source]) -> dict[Source, JobLink]:
        """The links that the control plane tells now."""
        told = _Round()
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for source in sources:
                nursery.start_soon(self._ask_one, source, told, limiter)
        if sources and told.away != self._away:
            self._away = told.away
            log.warning("links.not_told" if told.away else "links.told_again")
        return told.links

    async def _ask_one(self, source: Source, told: _Round, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            if told.away:  # the others need not wait for the same silence
                return
            try:
                link = await self._fetch(source)
            except Unavailable:
                told.away = True
            except NimbusError as error:  # an answer that is none: asked again at its next turn
                log.warning("links.bad_answer", machine=source.machine_id, fence=source.fence, reason=str(error))
            else:
                if link is not None:
                    told.links[source] = link

    async def _fetch(self, source: Source) -> JobLink | None:
        """The job, None while there is none."""
        response = await self._plane.ask(f"/api/internal/machines/{source.machine_id}/{source.fence}/job")
        if response.status_code == _NOT_FOUND:
            return None
        fields = parse_object(response.content, "the control plane's answer")
        if fields.integer("org_id") != source.org_id:
            log.error("links.foreign", machine=source.machine_id, fence=source.fence, org=source.org_id)
            return None
        if not fields.has("job_id"):
            return None
        repo_id = fields.integer("repo_id") if fields.has("repo_id") else 0
        attempt = fields.integer("run_attempt") if fields.has("run_attempt") else 0
        return JobLink(repo_id, fields.integer("job_id", 1), min(attempt, _LARGEST_ATTEMPT))

    def _keep(self, links: dict[Source, JobLink]) -> None:
        for source, link in links.items():
            self._known[source] = link
            self._questions.pop(source, None)
        _trim(self._known)


def _trim(kept: OrderedDict[Source, JobLink] | OrderedDict[Source, _Question]) -> None:
    while len(kept) > MAX_KEPT:
        kept.popitem(last=False)
