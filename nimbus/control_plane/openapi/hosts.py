"""What the operator's routes of hosts, and the heartbeat, take and answer. Called by hosts_api.py and agents_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from nimbus.control_plane.openapi.fields import CLOSED, Count, Id, JsonObject, said, storable, within
from nimbus.control_plane.openapi.operation import Access, Answer, Body, Operation
from nimbus.model.labels import Arch
from nimbus.model.lease import MachineState
from nimbus.wire.heartbeat import MAX_BARRED_CHARS, MAX_RECORDS, MAX_VMM_CHARS, Wanted
from nimbus.wire.leaseapi import MachineKind

Left = Annotated[int | None, said("null: not told yet")]


@dataclass(frozen=True)
class HostView:
    """A host as it was last heard of, and what is wanted of it."""

    agent_id: str
    state: Annotated[str, said("working, cordoned, draining, drained, leaving, outdated or silent")]
    version: str
    behind: Annotated[bool | None, said("whether it is of an older release than this control plane")]
    vmm: str | None
    arch: Arch
    labels: list[str]
    doing: Annotated[str | None, said("as the host says itself; null: it has sent no heartbeat")]
    wanted: Wanted
    wanted_by: str | None
    wanted_at: datetime | None
    drained: Annotated[bool, said("it was to be drained, and nothing is left on it")]
    cpus: Count
    mem_mib: Count
    slots: Left
    disk_mib: Left
    free_cpus: Left
    free_mem_mib: Left
    free_slots: Left
    free_disk_mib: Left
    pool: Annotated[dict[str, int], said("machines that wait there for a job, by kind")]
    machines: Annotated[Count, said("leased to it now")]
    held_cpus: Annotated[Count, said("of these machines together")]
    problems: Annotated[list[str], said("what somebody must know or do, in words")]
    last_seen: datetime
    silent_s: float
    heartbeat_at: datetime | None
    enrolled_at: datetime


@dataclass(frozen=True)
class LeasedView:
    """A machine that is leased to the host."""

    machine_id: Id
    fence: Id
    state: MachineState
    org_id: Id
    job_id: Id | None
    kind: MachineKind
    leased_at: datetime
    deadline: datetime


@dataclass(frozen=True)
class RecordView:
    """A record of the host's ledger, as the host told it."""

    vm: str
    state: str
    machine_id: Annotated[Id | None, said("null: it has no lease")]
    fence: Id | None
    claims: list[str]
    lease_until: Annotated[datetime | None, said("until when its host lets it run unrenewed, within a minute")]
    since: datetime


@dataclass(frozen=True)
class HostPage(HostView):
    """A host with what is leased to it and what it told of its ledger."""

    leased: list[LeasedView]
    records: Annotated[list[RecordView] | None, said("null: the copy of the ledgers is away")]


@dataclass(frozen=True)
class HostList:
    """Hosts in the order of their ids."""

    hosts: list[HostView]
    next: Annotated[str | None, said("give it as `after` for the page that follows; null: that was the last")]


@dataclass(frozen=True)
class HostQuery:
    """Where the page begins."""

    after: Annotated[str, storable(128, "only hosts whose ids come after this one", empty=True)] = ""


@dataclass(frozen=True)
class Wish:
    """What an operator wants of a host."""

    __pydantic_config__: ClassVar = CLOSED

    wanted: Wanted


@dataclass(frozen=True)
class HostForgotten:
    """The host that is not known any more."""

    agent_id: str
    forgotten: bool


@dataclass(frozen=True)
class RoomTold:
    """What a host has, or has left."""

    cpus: Annotated[int, within(0, 4096)]
    mem_mib: Annotated[int, within(0, 2**30)]
    slots: Annotated[int, within(0, 65536)]
    disk_mib: Annotated[int, within(0, 2**40)] | None = None


@dataclass(frozen=True)
class RecordTold:
    """One record of the ledger."""

    vm: Annotated[str, storable(64)]
    state: Annotated[str, storable(32)]
    claims: Annotated[list[Annotated[str, storable(32, empty=True)]], Field(max_length=64)]
    machine_id: Id | None = None
    fence: Id | None = None
    left_s: Annotated[float | None, Field(ge=-1e9, le=1e9, description="until its host stops it, unrenewed")] = None


@dataclass(frozen=True)
class HeartbeatTold:
    """A host at one moment. No org: whose work a machine is, is not the host's to say. Unknown fields are ignored."""

    __pydantic_config__: ClassVar = ConfigDict(extra="allow")

    version: Annotated[str, storable(64)]
    boot_id: Annotated[str, storable(64, "as at the enrolment")]
    start: Annotated[int, within(0, 2**62)]
    beat: Annotated[int, within(0, 2**62, "of two of one start the higher is the later")]
    doing: Annotated[str, storable(32)]
    vmm: Annotated[str, storable(MAX_VMM_CHARS)]
    arch: Arch
    labels: Annotated[list[Annotated[str, storable(256, empty=True)]], Field(max_length=64)]
    total: RoomTold
    free: RoomTold
    pool: Annotated[dict[str, Annotated[float, within(0, 1e15)]], Field(max_length=16)] | None = None
    records: Annotated[
        Annotated[list[RecordTold], Field(max_length=MAX_RECORDS)] | None,
        said("null: the ledger could not be read"),
    ] = None


@dataclass(frozen=True)
class HeartbeatHeard:
    """What the operator wants of the host, and when to tell again."""

    wanted: Wanted
    interval_s: float
    barred: Annotated[str | None, Field(max_length=MAX_BARRED_CHARS, description="why it is granted nothing")]


_AGENT = {"agent_id": "the host's id (NIMBUS_AGENT_ID)"}
_OPERATOR = "For the operator: a token of one org is refused."
_HOST: JsonObject = {
    "agent_id": "host-1",
    "state": "working",
    "version": "0.1.0",
    "behind": False,
    "vmm": "firecracker",
    "arch": "x64",
    "labels": ["nimbus"],
    "doing": "working",
    "wanted": "working",
    "wanted_by": None,
    "wanted_at": None,
    "drained": False,
    "cpus": 8,
    "mem_mib": 16384,
    "slots": 64,
    "disk_mib": 200000,
    "free_cpus": 6,
    "free_mem_mib": 12288,
    "free_slots": 63,
    "free_disk_mib": 150000,
    "pool": {"warm": 1},
    "machines": 1,
    "held_cpus": 2,
    "problems": [],
    "last_seen": "2026-11-21T20:00:00+00:00",
    "silent_s": 0.4,
    "heartbeat_at": "2026-11-21T20:00:00+00:00",
    "enrolled_at": "2026-11-20T08:00:00+00:00",
}

LIST_HOSTS = Operation(
    "listHosts",
    "Hosts, what they do and what they have left",
    Access.ADMIN,
    {200: Answer("a page of hosts", HostList, {"hosts": [_HOST], "next": None})},
    query=HostQuery,
    errors=frozenset({403}),
    details=_OPERATOR,
)
GET_HOST = Operation(
    "getHost",
    "One host with its machines and its ledger",
    Access.ADMIN,
    {200: Answer("the host", HostPage, {**_HOST, "leased": [], "records": []})},
    errors=frozenset({403}),
    details=_OPERATOR,
    paths=_AGENT,
)
WANT_HOST = Operation(
    "wantHost",
    "Have a host work, take no new job, or empty itself",
    Access.WRITE,
    {200: Answer("the host", HostView, {**_HOST, "state": "cordoned", "wanted": "cordoned", "wanted_by": "alice"})},
    body=Body(Wish, {"wanted": "cordoned"}),
    errors=frozenset({403}),
    details=f"{_OPERATOR} Granting obeys at once; the host hears it with its next heartbeat.",
    paths=_AGENT,
)
FORGET_HOST = Operation(
    "forgetHost",
    "Drop a host that is gone for good",
    Access.WRITE,
    {200: Answer("it is not known any more", HostForgotten, {"agent_id": "host-1", "forgotten": True})},
    errors=frozenset({403, 409}),
    details=f"{_OPERATOR} 409: it still speaks, or a lease of it has not ended.",
    paths=_AGENT,
)
HEAR_HEARTBEAT = Operation(
    "hearHeartbeat",
    "Tell of a host",
    Access.AGENT,
    {
        200: Answer(
            "what is wanted of the host",
            HeartbeatHeard,
            {"wanted": "working", "interval_s": 15.0, "barred": None},
        )
    },
    body=Body(
        HeartbeatTold,
        {
            "version": "0.1.0",
            "boot_id": "8c9e5a3c 1f0",
            "start": 1763755200,
            "beat": 7,
            "doing": "working",
            "vmm": "firecracker",
            "arch": "x64",
            "labels": ["nimbus"],
            "total": {"cpus": 8, "mem_mib": 16384, "slots": 64, "disk_mib": 200000},
            "free": {"cpus": 6, "mem_mib": 12288, "slots": 63, "disk_mib": 150000},
            "pool": {"warm": 1},
            "records": [
                {
                    "vm": "0a1b2c3d",
                    "state": "running",
                    "machine_id": 12,
                    "fence": 1,
                    "claims": ["slot", "network", "disk", "jail", "cgroup", "vmm"],
                    "left_s": 280.5,
                }
            ],
        },
    ),
    details="It renews no lease: what falls silent loses its leases by their deadlines alone.",
)
