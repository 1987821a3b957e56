"""What the routes of jobs take and answer. Called by jobs_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from nimbus.control_plane.jobs.submission import MAX_PRIORITY, MAX_TIMEOUT_S, MAX_WORD_BYTES
from nimbus.control_plane.openapi.fields import (
    MIN_DISK_MIB,
    MOST_DISK_MIB,
    MOST_MEM_MIB,
    Count,
    Digest,
    Id,
    ImageName,
    JsonObject,
    UnixMs,
    said,
    storable,
    within,
)
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation
from nimbus.model.job import JobSource, JobState, Learned
from nimbus.model.labels import Arch
from nimbus.model.lease import MachineState
from nimbus.model.vm import MAX_CPUS, MIN_MEM_MIB, Ending

_WORD = storable(MAX_WORD_BYTES, empty=True)
_FIRST_WORD: JsonObject = {  # the program: the one word that may not be empty
    "prefixItems": [{"type": "string", "minLength": 1, "maxLength": MAX_WORD_BYTES, "pattern": r"^[^\u0000]*$"}]
}


def _one_of(*names: str) -> JsonObject:
    """Exactly one of these fields, null counting as absent."""
    return {"oneOf": [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]}


@dataclass(frozen=True)
class JobSubmission:
    """A command to run in a machine of its own: `argv`, or `cmd` for a shell line."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", json_schema_extra=_one_of("argv", "cmd"))

    argv: (
        Annotated[list[Annotated[str, _WORD]], Field(min_length=1, max_length=4096, json_schema_extra=_FIRST_WORD)]
        | None
    ) = None
    cmd: Annotated[str, storable(MAX_WORD_BYTES, "run by /bin/sh -c")] | None = None
    image: Annotated[ImageName | None, said("left out: NIMBUS_DEFAULT_IMAGE")] = None
    name: Annotated[str, storable(256)] | None = None
    env: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[^=\u0000]+$", max_length=4096)], Annotated[str, _WORD]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    cwd: Annotated[str, storable()] | None = None
    user: Annotated[str, storable(256)] | None = None
    timeout_s: Annotated[float, within(0.001, MAX_TIMEOUT_S)] | None = None
    cpus: Annotated[int, within(1, MAX_CPUS)] | None = None
    mem_mib: Annotated[int, within(MIN_MEM_MIB, MOST_MEM_MIB)] | None = None
    disk_mib: Annotated[int, within(MIN_DISK_MIB, MOST_DISK_MIB)] | None = None
    arch: Arch | None = None
    size: (
        Annotated[
            str,
            Field(
                pattern=r"^[1-9][0-9]{0,8}cpu-[1-9][0-9]{0,8}gb(-[1-9][0-9]{0,8}gb-disk)?(-(x64|arm64))?$",
                max_length=64,
                description="instead of cpus, mem_mib and disk_mib, as in labels: 4cpu-8gb, 4cpu-8gb-20gb-disk-arm64",
            ),
        ]
        | None
    ) = None
    priority: (
        Annotated[
            int, within(-MAX_PRIORITY, MAX_PRIORITY, "within its org, the higher first; above 0 for the operator only")
        ]
        | None
    ) = None
    org_id: Annotated[Id | None, said("left out: the token's org")] = None
    idempotency_key: (
        Annotated[str, storable(256, "the same key gives the same job again, and never a second one")] | None
    ) = None


@dataclass(frozen=True)
class SubmittedJob:
    """The job of a submission."""

    job_id: Id
    machine_id: Id
    state: JobState
    idempotency_key: str | None


@dataclass(frozen=True)
class MachineShape:
    """What a machine has."""

    cpus: Count
    mem_mib: Count
    disk_mib: Count


@dataclass(frozen=True)
class AttestationView:
    """What a machine was booted from, by content."""

    image: str
    manifest: Digest
    kernel: Digest
    initramfs: Digest
    rootfs: Digest
    verified_at: float
    overridden: list[str]
    template: Digest | None


@dataclass(frozen=True)
class MachineUsage:
    """What a machine's VM has used; what its host cannot count is left out."""

    cpu_ms: Count | None = None
    memory_bytes: Count | None = None
    disk_bytes: Count | None = None
    received_bytes: Count | None = None
    sent_bytes: Count | None = None


@dataclass(frozen=True)
class MachineTimes:
    """When each step was."""

    webhook: UnixMs | None
    queued: UnixMs | None
    leased: UnixMs | None
    used: UnixMs | None
    finished: UnixMs | None


@dataclass(frozen=True)
class MachineView:
    """A machine that was asked for, for this job."""

    machine_id: Id
    state: MachineState
    fence: Count
    agent_id: str | None
    image: str
    shape: MachineShape
    arch: Arch
    attempts: Count
    ending: Ending | None
    exit_code: int | None
    signal: int | None
    cause: str | None
    phases: Annotated[dict[str, float] | None, said("milliseconds of each phase")]
    attestation: AttestationView | None
    usage: MachineUsage | None
    failures: Count
    cancel_requested: bool
    times_ms: MachineTimes


@dataclass(frozen=True)
class JobView:
    """A job. Its command is never shown: it may hold secrets."""

    job_id: Id
    org_id: Id
    repo_id: Id | None
    source: JobSource
    forge_job_id: Annotated[Id | None, said("GitHub's")]
    run_id: Id | None
    run_attempt: Count | None
    name: str
    workflow_name: str | None
    labels: list[str]
    priority: Annotated[int, said("within its org, the higher first")]
    state: JobState
    conclusion: str | None
    runner_name: str | None
    html_url: str | None
    queued_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    cause: str | None
    learned_by: Learned
    repaired_by: Learned | None
    waits_for: Annotated[str | None, said("who must act, in a sentence; null where it does not wait")]
    machines: list[MachineView]


@dataclass(frozen=True)
class RecentQuery:
    """How many."""

    limit: Annotated[int, within(1, 200)] = 20


@dataclass(frozen=True)
class JobList:
    """Jobs, the newest first."""

    jobs: list[JobView]


@dataclass(frozen=True)
class CancelledJob:
    """Where the job stands now: a running machine is stopped by its host a moment later."""

    job_id: Id
    state: JobState
    conclusion: str | None
    happens: Annotated[str, said("what comes of it, in a sentence")]


@dataclass(frozen=True)
class AgentSeen:
    """A host's agent as it was last heard of."""

    agent_id: str
    state: Annotated[str, said("working, cordoned, draining, drained, leaving, outdated or silent")]
    version: str
    cpus: Count
    mem_mib: Count
    last_seen: datetime
    silent_s: float


@dataclass(frozen=True)
class StatusView:
    """What waits and runs now."""

    machines: Annotated[dict[MachineState, Count], said("machine requests by state")]
    jobs: dict[JobState, Count]
    oldest_queued_s: float | None
    bell: Annotated[Literal["redis", "polling"], said("`polling`: Redis is away, work is found later")]
    agents: Annotated[list[AgentSeen], said("empty for a token of an org: hosts are the operator's")]


@dataclass(frozen=True)
class JobLease:
    """A machine and fence under which output of a job was written."""

    machine_id: Id
    fence: Count


@dataclass(frozen=True)
class JobOutput:
    """Where a job's output lies."""

    job_id: Id
    org_id: Id
    repo_id: Id | None
    state: JobState
    machines: list[JobLease]


JOB = "our id of the job, or GitHub's"
_SHAPE: JsonObject = {"cpus": 1, "mem_mib": 256, "disk_mib": 2048}
JOB_EXAMPLE: JsonObject = {
    "job_id": 12,
    "org_id": 1,
    "repo_id": None,
    "source": "api",
    "forge_job_id": None,
    "run_id": None,
    "run_attempt": None,
    "name": "hello",
    "workflow_name": None,
    "labels": [],
    "priority": 0,
    "state": "queued",
    "conclusion": None,
    "runner_name": None,
    "html_url": None,
    "queued_at": "2026-11-21T20:00:00+00:00",
    "started_at": None,
    "completed_at": None,
    "cause": None,
    "learned_by": "api",
    "repaired_by": None,
    "waits_for": "a free host: place 1 of 1 in the queue of local",
    "machines": [
        {
            "machine_id": 34,
            "state": "queued",
            "fence": 0,
            "agent_id": None,
            "image": "base",
            "shape": _SHAPE,
            "arch": "x64",
            "attempts": 0,
            "ending": None,
            "exit_code": None,
            "signal": None,
            "cause": None,
            "phases": None,
            "attestation": None,
            "usage": None,
            "failures": 0,
            "cancel_requested": False,
            "times_ms": {"webhook": None, "queued": 1795291200000, "leased": None, "used": None, "finished": None},
        }
    ],
}
_SUBMITTED: JsonObject = {"job_id": 12, "machine_id": 34, "state": "queued", "idempotency_key": "hello-1"}

SUBMIT_JOB = Operation(
    "submitJob",
    "Submit a command that runs in a machine of its own",
    Access.WRITE,
    {
        201: Answer("it is queued", SubmittedJob, _SUBMITTED),
        200: Answer("this idempotency key's job, which was submitted before", SubmittedJob, _SUBMITTED),
    },
    body=Body(JobSubmission, {"cmd": "uname -a", "name": "hello", "timeout_s": 60, "idempotency_key": "hello-1"}),
    errors=frozenset({404, 409, 429}),
)
LIST_RECENT_JOBS = Operation(
    "listRecentJobs",
    "The newest jobs",
    Access.ADMIN,
    {200: Answer("the newest first", JobList, {"jobs": [JOB_EXAMPLE]})},
    query=RecentQuery,
)
GET_JOB = Operation(
    "getJob",
    "One job, with its machines and what it waits for",
    Access.ADMIN,
    {200: Answer("the job", JobView, JOB_EXAMPLE)},
    paths={"job_id": JOB},
)
CANCEL_JOB = Operation(
    "cancelJob",
    "Cancel a job of our own API",
    Access.WRITE,
    {
        200: Answer(
            "where it stands now; one that had ended stays as it was",
            CancelledJob,
            {
                "job_id": 12,
                "state": "completed",
                "conclusion": "cancelled",
                "happens": "it is cancelled: no host had begun it",
            },
        )
    },
    paths={"job_id": JOB},
    errors=frozenset({400}),
    details="A job of GitHub's is refused: its run is cancelled there.",
)
GET_STATUS = Operation(
    "getStatus",
    "What waits and runs now, and on which hosts",
    Access.ADMIN,
    {
        200: Answer(
            "counts by state",
            StatusView,
            {
                "machines": {"queued": 0, "leased": 0, "running": 1},
                "jobs": {"queued": 0, "in_progress": 1},
                "oldest_queued_s": None,
                "bell": "redis",
                "agents": [
                    {
                        "agent_id": "host-1",
                        "state": "working",
                        "version": "0.1.0",
                        "cpus": 8,
                        "mem_mib": 16384,
                        "last_seen": "2026-11-21T20:00:00+00:00",
                        "silent_s": 0.4,
                    }
                ],
            },
        )
    },
)
LIST_JOB_LEASES = Operation(
    "listJobLeases",
    "Under which machines and fences a job's output was written",
    Access.SERVICE,
    {
        200: Answer(
            "every lease that the job's machines had",
            JobOutput,
            {
                "job_id": 12,
                "org_id": 1,
                "repo_id": None,
                "state": "completed",
                "machines": [{"machine_id": 34, "fence": 1}],
            },
        )
    },
    paths={"job_id": JOB},
)
