"""What the routes of lists of jobs, of a job's events and of its wait take and answer. Called by jobs_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from nimbus.control_plane.jobs.joblist import MAX_LIMIT, MAX_NAME
from nimbus.control_plane.jobs.waiting import WaitCode
from nimbus.control_plane.openapi.fields import Count, Id, JsonObject, said, storable, within
from nimbus.control_plane.openapi.jobs import JOB, JOB_EXAMPLE, JobView
from nimbus.control_plane.openapi.operation import Access, Answer, Operation
from nimbus.model.job import JobSource, JobState, Learned

_STATE = "|".join(JobState)
_CURSOR = storable(256, "`next` of the page before, with the same filters")


@dataclass(frozen=True)
class JobsQuery:
    """Which jobs, and which page of them. Every filter narrows; none leaves none out."""

    state: Annotated[
        str | None, Field(pattern=rf"^({_STATE})(,({_STATE}))*$", description="one or several, with commas")
    ] = None
    source: JobSource | None = None
    repo: Annotated[str, storable(256, "our id of the repository, or owner/name")] | None = None
    org: Annotated[str, storable(256, "our id of the organisation, or its login")] | None = None
    label: Annotated[str, storable(256, "a label that the job asks for, among others")] | None = None
    name: Annotated[str, storable(MAX_NAME, "what the job's name begins with")] | None = None
    conclusion: Annotated[str, storable(MAX_NAME, "as its forge words it: success, failure, cancelled")] | None = None
    learned_by: Learned | None = None
    since: Annotated[datetime | None, said("queued then or later, with a time zone")] = None
    until: Annotated[datetime | None, said("queued before then, with a time zone")] = None
    limit: Annotated[int, within(1, MAX_LIMIT)] = 20
    cursor: Annotated[str, _CURSOR] | None = None


@dataclass(frozen=True)
class JobPage:
    """Jobs, the newest first. A cursor stays good while jobs come in: what is new stands before the first page."""

    jobs: list[JobView]
    next: Annotated[str | None, said("the cursor of the next page; null where this is the last")]


@dataclass(frozen=True)
class EventsQuery:
    """Which page of the events."""

    limit: Annotated[int, within(1, MAX_LIMIT)] = 200
    cursor: Annotated[str, _CURSOR] | None = None


@dataclass(frozen=True)
class JobEvent:
    """One step of a job or of one of its machines."""

    at: datetime
    about: Literal["job", "machine"]
    machine_id: Id | None
    fence: Annotated[Count | None, said("of the machine's lease")]
    event: Annotated[str | None, said("of a machine: queue, lease, start, finish_ok, expire, ask_cancel, ...")]
    state_from: Annotated[str | None, said("null: it began")]
    state_to: str
    conclusion: str | None
    cause: Annotated[str | None, said("why, in words")]
    told_by: Annotated[
        str | None,
        said(
            "who made it known: user, github, agent (the host that held it), clock (its lease ran out), enrolment (its "
            "host started anew without it), demand (the control plane itself)"
        ),
    ]
    agent_id: Annotated[str | None, said("the host that held the lease")]
    subject: Annotated[str | None, said("whose token it was")]
    learned: Annotated[str | None, said("by which way GitHub's word came: webhook, redelivery, poll")]


@dataclass(frozen=True)
class EventPage:
    """Steps in the order in which they happened."""

    job_id: Id
    events: list[JobEvent]
    next: Annotated[str | None, said("the cursor of the next page; null where this is the last so far")]


@dataclass(frozen=True)
class JobWait:
    """What keeps a job from running, and when its turn comes. Places are those of this moment."""

    job_id: Id
    waits: bool
    code: Annotated[WaitCode | Literal["running", "ended"], said("for programs")]
    reason: Annotated[str, said("for people: who must act, and what would help")]
    place: Annotated[Count | None, said("in its organisation's queue, from 1; null where its machine stands in none")]
    length: Annotated[Count | None, said("of that queue")]
    ahead: Annotated[Count | None, said("machines of the whole queue that go before it")]
    estimate_s: Annotated[float | None, Field(ge=0, description="seconds; null where nobody can tell")]
    basis: Annotated[str | None, said("what the estimate is made by, or why there is none")]


_EVENT: JsonObject = {
    "at": "2026-11-21T20:00:00+00:00",
    "about": "job",
    "machine_id": None,
    "fence": None,
    "event": None,
    "state_from": "in_progress",
    "state_to": "queued",
    "conclusion": None,
    "cause": "the host fell silent: its lease expired",
    "told_by": "clock",
    "agent_id": "host-1",
    "subject": None,
    "learned": None,
}

LIST_JOBS = Operation(
    "listJobs",
    "Jobs, page by page",
    Access.ADMIN,
    {200: Answer("one page, the newest first", JobPage, {"jobs": [JOB_EXAMPLE], "next": None})},
    query=JobsQuery,
    errors=frozenset({404}),
    details="404 for an organisation or a repository that the token does not reach.",
)
LIST_JOB_EVENTS = Operation(
    "listJobEvents",
    "Every step of a job and of its machines, with its cause and who told it",
    Access.ADMIN,
    {200: Answer("one page, the oldest first", EventPage, {"job_id": 12, "events": [_EVENT], "next": None})},
    query=EventsQuery,
    paths={"job_id": JOB},
)
EXPLAIN_JOB = Operation(
    "explainJob",
    "Why a job waits, its place in the queue and an estimate",
    Access.ADMIN,
    {
        200: Answer(
            "what it waits for",
            JobWait,
            {
                "job_id": 12,
                "waits": True,
                "code": "turn",
                "reason": "a free host: place 3 of 7 in the queue of octo-org, and 2 of other organisations go first",
                "place": 3,
                "length": 7,
                "ahead": 4,
                "estimate_s": 41.5,
                "basis": "of hosts that fit a machine ends every 8.3 s, measured over the last 15 minutes",
            },
        )
    },
    paths={"job_id": JOB},
)
