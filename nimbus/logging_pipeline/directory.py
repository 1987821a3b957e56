"""Which machines a job ran on: asked of the control plane, which alone knows.

Answers are kept for a moment, so that a hundred readers of one job ask once. Called by the read routes and `follow`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import httpx2
import trio

from nimbus.model.errors import NotFound, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors
from nimbus.wire.fields import parse_object
from nimbus.wire.tokens import Audience, SigningKey, render_token

KEEP_S = 1.0
_KEPT_JOBS = 1000
_MAX_MACHINES = 64
_ASK_S = 5.0
_TOKEN_TTL_S = 300.0
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

    def __init__(self, client: httpx2.AsyncClient, control_plane_url: str, key: SigningKey) -> None:
        self._client = client
        self._base_url = control_plane_url.rstrip("/")
        self._key = key
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
        token = render_token(
            self._key, subject="service:logs", audience=Audience.INTERNAL, now_s=time.time(), ttl_s=_TOKEN_TTL_S
        )
        url = f"{self._base_url}/api/internal/jobs/{job_id}/machines"
        with trio.move_on_after(_ASK_S), mapped_http_errors("the control plane"):
            response = await self._client.get(url, headers={"Authorization": f"Bearer {token}"})
            if response.status_code == 404:
                raise NotFound(f"there is no job {job_id}")
            if response.status_code in (401, 403):  # our own credential: the reader cannot mend it
                raise Unavailable("the control plane refuses the logging pipeline: compare their NIMBUS_JWT_SECRET")
            return _parse_entry(check_status(response, "the control plane").content)
        raise Unavailable("the control plane does not answer: retry")


def _parse_entry(body: bytes) -> JobEntry:
    fields = parse_object(body, "the control plane's answer")
    listed = fields.children("machines", _MAX_MACHINES)
    machines = tuple(JobMachine(each.integer("machine_id"), each.integer("fence")) for each in listed)
    return JobEntry(fields.integer("job_id"), fields.integer("org_id"), fields.text("state", 64), machines)
