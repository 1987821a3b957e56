"""Which machines a job ran on: asked of the control plane, which alone knows.

Answers are kept for a moment, so that a hundred readers of one job ask once. Called by the read routes and `follow`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from nimbus.logging_pipeline.plane import Plane
from nimbus.model.errors import NotFound, Refused, Unavailable
from nimbus.wire.fields import Fields, parse_object

KEEP_S = 1.0
_KEPT_JOBS = 1000
_MAX_MACHINES = 64
NOT_FOUND = 404
_ANSWER = "the control plane's answer"
_TERMINAL = frozenset({"completed", "lost", "done", "failed", "cancelled"})


@dataclass(frozen=True)
class JobMachine:
    """One machine of a job and its present fence; earlier fences may have printed too."""

    machine_id: int
    fence: int


@dataclass(frozen=True)
class JobEntry:
    """What the control plane says of a job."""

    job_id: int
    org_id: int
    state: str
    machines: tuple[JobMachine, ...]

    @property
    def is_terminal(self) -> bool:
        return self.state in _TERMINAL


class Directory:
    """Jobs as the control plane knows them."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._kept: OrderedDict[int, tuple[float, JobEntry]] = OrderedDict()

    async def job(self, job_id: int, org_id: int | None) -> JobEntry:
        """The job, where the reader's org owns it; NotFound for any other, as for one that does not exist."""
        entry = await self._entry(job_id)
        if org_id is not None and entry.org_id != org_id:
            raise NotFound(f"there is no job {job_id}")
        return entry

    async def _entry(self, job_id: int) -> JobEntry:
        kept = self._kept.get(job_id)
        if kept is not None and trio.current_time() - kept[0] < KEEP_S:
            return kept[1]
        entry = await self._ask(job_id)
        self._kept[job_id] = (trio.current_time(), entry)
        self._kept.move_to_end(job_id)
        while len(self._kept) > _KEPT_JOBS:
            self._kept.popitem(last=False)
        return entry

    async def _ask(self, job_id: int) -> JobEntry:
        response = await self._plane.ask(f"/api/internal/jobs/{job_id}/machines")
        if response.status_code == NOT_FOUND:
            raise NotFound(f"there is no job {job_id}")
        return _parse_entry(parse_object(response.content, _ANSWER))

    async def jobs(self, job_ids: Sequence[int]) -> dict[int, JobEntry]:
        """Many jobs by one question, those that do not exist left out. For streams: never answered from memory."""
        response = await self._plane.ask(f"/api/internal/jobs/machines?ids={','.join(map(str, job_ids))}")
        if response.status_code == NOT_FOUND:
            raise Unavailable("the control plane is older than this service: update it first")
        listed = parse_object(response.content, _ANSWER).children("jobs", len(job_ids))
        entries = {}
        for fields in listed:
            with suppress(Refused):  # one that is larger than what we take must not hide the others
                entry = _parse_entry(fields)
                entries[entry.job_id] = entry
        return entries


def _parse_entry(fields: Fields) -> JobEntry:
    listed = fields.children("machines", _MAX_MACHINES)
    machines = tuple(JobMachine(each.integer("machine_id"), each.integer("fence")) for each in listed)
    return JobEntry(fields.integer("job_id"), fields.integer("org_id"), fields.text("state", 64), machines)
