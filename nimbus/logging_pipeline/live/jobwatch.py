"""How the jobs stand that somebody follows: one question a second for all of them, whoever and however many follow.

A reader is woken when its job has changed: ended, or got another machine. While the control plane is away what was
known stays. Called by `follow`; its task runs for as long as the service does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from nimbus.logging_pipeline.directory import JobEntry
from nimbus.logging_pipeline.live.hub import Subscription
from nimbus.model.errors import NimbusError

CHECK_S = 1.0
ASK_JOBS = 200  # of one question: an address has its bounds
log = structlog.get_logger()


@dataclass
class Watched:
    """A job as it was last told, and who wants to know."""

    entry: JobEntry
    readers: set[Subscription] = field(default_factory=set)


class JobWatch:
    """All jobs that are followed now."""

    def __init__(self, ask: Callable[[Sequence[int]], Awaitable[Mapping[int, JobEntry]]]) -> None:
        self._ask = ask
        self._watched: dict[int, Watched] = {}
        self._wanted = trio.Event()

    def watch(self, entry: JobEntry, subscription: Subscription) -> Watched:
        """Keep the job's entry fresh for this reader; ends with `leave`."""
        watched = self._watched.setdefault(entry.job_id, Watched(entry))
        watched.readers.add(subscription)
        self._wanted.set()
        return watched

    def leave(self, entry: JobEntry, subscription: Subscription) -> None:
        watched = self._watched.get(entry.job_id)
        if watched is not None:
            watched.readers.discard(subscription)
            if not watched.readers:
                del self._watched[entry.job_id]

    async def run(self) -> None:
        """Ask until cancelled; nothing where nobody follows."""
        while True:
            if not self._watched:
                self._wanted = trio.Event()
                await self._wanted.wait()
            await self._look()
            await trio.sleep(CHECK_S)

    async def _look(self) -> None:
        ids = sorted(self._watched)
        for first in range(0, len(ids), ASK_JOBS):
            try:
                entries = await self._ask(ids[first : first + ASK_JOBS])
            except NimbusError as error:  # the next look asks again
                log.warning("jobs.not_told", reason=str(error))
                return
            for job_id, entry in entries.items():
                self._tell(job_id, entry)

    def _tell(self, job_id: int, entry: JobEntry) -> None:
        watched = self._watched.get(job_id)
        if watched is None or watched.entry == entry or watched.entry.org_id != entry.org_id:
            return
        watched.entry = entry
        for subscription in watched.readers:
            subscription.wake()
