"""What the agents' routes take and answer; bodies and replies are wire/leaseapi.py's, as they stand in JSON.

Fields that a parser does not know are ignored there on purpose, so these bodies are open. Called by agents_api.py and
runners.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from nimbus.control_plane.openapi.fields import Id, JsonObject, UnixMs, Uuid, said, storable, within
from nimbus.control_plane.openapi.jobs import MachineShape, MachineUsage
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation
from nimbus.model.labels import Arch
from nimbus.model.lease import MachineState
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import MAX_CAUSE_CHARS, MAX_WAIT_S, HeldState, MachineKind

_MEM = within(0, 2**30)
_CPUS = within(0, 4096)


@dataclass(frozen=True)
class LeaseHeld:
    """A lease that survived on the host."""

    machine_id: Id
    lease_id: Uuid
    fence: Id


@dataclass(frozen=True)
class Enrolment:
    """Who the agent is this time."""

    version: Annotated[str, storable(64)]
    boot_id: Annotated[str, storable(64, "tells one life of a host, and one ledger on it, from the next")]
    cpus: Annotated[int, within(1, 4096)]
    mem_mib: Annotated[int, within(1, 2**30)]
    held: Annotated[
        Annotated[list[LeaseHeld], Field(max_length=4096)] | None,
        said("once at a start: all that survived; every other lease of this agent is given up"),
    ] = None
    start: Annotated[int | None, Field(ge=1, le=2**62, description="grows with each start of the agent")] = None


@dataclass(frozen=True)
class EnrolmentReply:
    """The short-lived token that an agent works with."""

    token: str
    expires_in_s: float
    agent_id: str
    lease_ttl_s: float


@dataclass(frozen=True)
class Room:
    """What a host has left."""

    cpus: Annotated[int, _CPUS]
    mem_mib: Annotated[int, _MEM]
    slots: Annotated[int, within(0, 65536)]
    disk_mib: Annotated[int, within(0, 2**40)] | None = None


@dataclass(frozen=True)
class WorkRequest:
    """How long the agent waits and what it has room for."""

    wait_s: Annotated[float, within(0, MAX_WAIT_S)]
    free: Room
    labels: Annotated[list[Annotated[str, storable(256, empty=True)]], Field(max_length=64)] | None = None
    arch: Arch | None = None


@dataclass(frozen=True)
class CommandView:
    """What runs in the guest."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    user: str
    timeout_s: float | None
    grace_s: float


@dataclass(frozen=True)
class GrantTimesView:
    """When each step before the grant was."""

    webhook: UnixMs | None
    queued: UnixMs
    leased: UnixMs


@dataclass(frozen=True)
class CacheTokenView:
    """What lets a lease's machine reach its org's stored things."""

    token: str
    expires_in_s: float


@dataclass(frozen=True)
class LeaseGrant:
    """One machine request, leased to one agent until the ttl runs out."""

    machine_id: Id
    lease_id: Uuid
    fence: Id
    ttl_s: float
    org_id: Id
    kind: MachineKind
    shape: MachineShape
    image: str
    labels: list[str]
    command: Annotated[CommandView | None, said("null for a runner; its environment may hold secrets")]
    log_url: str | None
    log_token: str | None
    cache_token: CacheTokenView | None
    times_ms: GrantTimesView


@dataclass(frozen=True)
class LeaseRenewal:
    """The lease that is held, how far its machine is and what its VM has used."""

    lease_id: Uuid
    fence: Id
    state: HeldState
    usage: MachineUsage | None = None
    wants_cache_token: Annotated[bool | None, said("the holder has none, or half of its life is over")] = None


@dataclass(frozen=True)
class JobLinkView:
    """The job that a runner's machine turned out to run."""

    job_id: Id
    repo_id: Id | None


@dataclass(frozen=True)
class LeaseRenewed:
    """The new time to live; `cancel` asks the holder to stop its machine."""

    ttl_s: float
    cancel: bool
    job: JobLinkView | None
    cache_token: Annotated[CacheTokenView | None, said("only where it was asked for")] = None


@dataclass(frozen=True)
class LeaseNamed:
    """The lease that is held."""

    lease_id: Uuid
    fence: Id


@dataclass(frozen=True)
class RunnerView:
    """What starts GitHub's runner in the guest."""

    runner_name: str
    argv: list[str]
    env: Annotated[dict[str, str], said("secrets of that guest")]


@dataclass(frozen=True)
class AttestationTold:
    """What the machine was booted from, by content."""

    image: Annotated[str, storable(64)]
    manifest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    kernel: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    initramfs: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rootfs: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    verified_at: Annotated[float, within(0, 1e15)]
    overridden: Annotated[list[Annotated[str, storable(16, empty=True)]], Field(max_length=8)] | None = None
    template: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


@dataclass(frozen=True)
class LeaseFinish:
    """How a machine's life ended."""

    lease_id: Uuid
    fence: Id
    ending: Ending
    exit_code: Annotated[int, within(0, 255)] | None = None
    signal: Annotated[int, within(1, 64)] | None = None
    cause: Annotated[str, storable(MAX_CAUSE_CHARS, empty=True)] | None = None
    phases_ms: Annotated[dict[str, Annotated[float, within(0, 1e15)]], Field(max_length=64)] | None = None
    attestation: AttestationTold | None = None


@dataclass(frozen=True)
class LeaseFinished:
    """The machine request's state after the end was recorded."""

    state: MachineState


_MACHINE = {"machine_id": "of the lease"}
_HELD: JsonObject = {"lease_id": "9f0c1d9e-3d0e-4a53-9d1e-0a4a0f6d2b11", "fence": 1}
_FENCED = frozenset({409})

ENROL_AGENT = Operation(
    "enrolAgent",
    "Exchange the enrolment token, or a token that is still good, for a short-lived one",
    Access.ENROLMENT,
    {
        200: Answer(
            "the token",
            EnrolmentReply,
            {"token": "eyJ...", "expires_in_s": 3600.0, "agent_id": "host-1", "lease_ttl_s": 300.0},
        )
    },
    body=Body(Enrolment, {"version": "0.1.0", "boot_id": "7c1f", "cpus": 8, "mem_mib": 16384, "held": [], "start": 1}),
    errors=frozenset({429}),
)
LEASE_MACHINE = Operation(
    "leaseMachine",
    "Wait for a machine request that the host has room for",
    Access.AGENT,
    {
        200: Answer(
            "a lease",
            LeaseGrant,
            {
                "machine_id": 34,
                **_HELD,
                "ttl_s": 30.0,
                "org_id": 1,
                "kind": "command",
                "shape": {"cpus": 1, "mem_mib": 256, "disk_mib": 2048},
                "image": "base",
                "labels": [],
                "command": {
                    "argv": ["uname", "-a"],
                    "env": {},
                    "cwd": "/",
                    "user": "root",
                    "timeout_s": 60.0,
                    "grace_s": 30.0,
                },
                "log_url": "http://127.0.0.1:8002/ingest",
                "log_token": "eyJ...",
                "cache_token": {"token": "eyJ...", "expires_in_s": 3600.0},
                "times_ms": {"webhook": None, "queued": 1795291200000, "leased": 1795291200100},
            },
        ),
        204: Answer("nothing came in that time"),
    },
    body=Body(
        WorkRequest,
        {"wait_s": 0, "free": {"cpus": 8, "mem_mib": 16384, "slots": 4}, "labels": ["nimbus"], "arch": "x64"},
    ),
)
RENEW_LEASE = Operation(
    "renewLease",
    "Keep a lease",
    Access.AGENT,
    {200: Answer("its new time to live", LeaseRenewed, {"ttl_s": 300.0, "cancel": False, "job": None})},
    body=Body(LeaseRenewal, {**_HELD, "state": "running"}),
    errors=_FENCED,
    paths=_MACHINE,
)
FINISH_LEASE = Operation(
    "finishLease",
    "Tell how a machine ended",
    Access.AGENT,
    {200: Answer("it is recorded", LeaseFinished, {"state": "done"})},
    body=Body(LeaseFinish, {**_HELD, "ending": "done", "exit_code": 0}),
    errors=_FENCED,
    paths=_MACHINE,
)
MINT_RUNNER = Operation(
    "mintRunner",
    "Register GitHub's runner for a machine",
    Access.AGENT,
    {
        200: Answer(
            "what starts it",
            RunnerView,
            {"runner_name": "nimbus-3f2a-34-1", "argv": ["/usr/local/bin/nimbus-runner"], "env": {"NAME": "value"}},
        )
    },
    body=Body(LeaseNamed, _HELD),
    errors=frozenset({409, 410, 429}),
    paths=_MACHINE,
)
