"""The agent API of the control plane as values: what both ends parse and render, so that they cannot drift.

Never opens a connection. Called by the control plane's routes and by the host agent's poller and runner.
Unknown fields are ignored on purpose: an agent one version older or newer must go on working.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from nimbus.model.attestation import Attestation
from nimbus.model.labels import Arch
from nimbus.model.lease import LeaseKey, MachineState
from nimbus.model.vm import Command, Ending, Shape, Usage
from nimbus.wire.fields import Fields, parse_object
from nimbus.wire.vmjson import (
    Json,
    parse_attestation,
    parse_command,
    parse_shape,
    parse_usage,
    render_attestation,
    render_command,
    render_shape,
    render_usage,
)

MAX_WAIT_S = 30.0
MAX_CAUSE_CHARS = 2000


class MachineKind(enum.StrEnum):
    """What a machine request is for."""

    RUNNER = "runner"
    COMMAND = "command"


class HeldState(enum.StrEnum):
    """How far the holder of a lease says it is."""

    BOOTING = "booting"
    RUNNING = "running"


@dataclass(frozen=True)
class EnrolRequest:
    """Who the agent is this time; `boot_id` tells one life of a host, and one ledger on it, from the next.

    `held` None says nothing (a token is renewed). A tuple, sent once when an agent starts, is all that survived:
    every other lease of this agent is given up at once, instead of when its deadline passes.
    """

    version: str
    boot_id: str
    cpus: int
    mem_mib: int
    held: tuple[LeaseKey, ...] | None = None
    start: int | None = None  # grows with each start of the agent: a late copy of an older enrolment tells nothing


@dataclass(frozen=True)
class EnrolReply:
    """The short-lived token an agent works with."""

    agent_id: str
    expires_in_s: float
    lease_ttl_s: float
    token: str = field(repr=False)


@dataclass(frozen=True)
class LeaseRequest:
    """How long the agent waits and what it has room for."""

    wait_s: float
    free_cpus: int
    free_mem_mib: int
    free_slots: int
    labels: tuple[str, ...] = ()
    free_disk_mib: int | None = None  # beyond the host's reserve; None: an agent that does not count it
    arch: Arch = Arch.X64  # what agents are that do not say


@dataclass(frozen=True)
class GrantTimes:
    """Unix milliseconds of the steps before the grant, for the waterfall."""

    webhook: int | None
    queued: int
    leased: int


@dataclass(frozen=True)
class CacheToken:
    """What lets a lease's machine reach its org's stored things, and how long it does from now."""

    text: str = field(repr=False)
    expires_in_s: float


@dataclass(frozen=True)
class Grant:
    """One machine request, leased to one agent until the ttl runs out."""

    key: LeaseKey
    ttl_s: float
    org_id: int
    kind: MachineKind
    shape: Shape
    image: str
    labels: tuple[str, ...]
    command: Command | None = field(repr=False)  # None for a runner; its environment may hold secrets
    log_url: str | None
    log_token: str | None = field(repr=False)
    times_ms: GrantTimes
    cache_token: CacheToken | None = None  # None: a control plane of before it gave any


@dataclass(frozen=True)
class RenewRequest:
    """The lease that is held, how far its machine is and what its VM has used."""

    key: LeaseKey
    state: HeldState
    usage: Usage | None = None  # None: nothing to tell of yet
    wants_cache_token: bool = False  # the holder has none, or half of its life is over


@dataclass(frozen=True)
class JobLink:
    """The job that a runner's machine turned out to run."""

    job_id: int
    repo_id: int | None


@dataclass(frozen=True)
class RenewReply:
    """The new time to live; `cancel` asks the holder to stop its machine."""

    ttl_s: float
    cancel: bool
    job: JobLink | None = None
    cache_token: CacheToken | None = None  # only where it was asked for


@dataclass(frozen=True)
class RunnerReply:
    """What starts GitHub's runner in the guest. The JIT config in `env` is a secret of that guest."""

    runner_name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class FinishRequest:
    """How a machine's life ended."""

    key: LeaseKey
    ending: Ending
    exit_code: int | None = None
    signal: int | None = None
    cause: str = ""
    phases_ms: Mapping[str, float] = field(default_factory=dict)
    attestation: Attestation | None = None  # None: nothing was booted, or an agent that does not tell


@dataclass(frozen=True)
class FinishReply:
    """The machine request's state after the finish was recorded."""

    state: MachineState


# --- enrolment -------------------------------------------------------------------------------------------------


def render_enrol_request(request: EnrolRequest) -> Json:
    body = {"version": request.version, "boot_id": request.boot_id, "cpus": request.cpus, "mem_mib": request.mem_mib}
    if request.start is not None:
        body["start"] = request.start
    if request.held is None:
        return body
    return {**body, "held": [{"machine_id": key.machine_id, **_render_key(key)} for key in request.held]}


def parse_enrol_request(body: bytes) -> EnrolRequest:
    fields = parse_object(body, "enrolment")
    return EnrolRequest(
        version=fields.text("version", 64),
        boot_id=fields.text("boot_id", 64),
        cpus=fields.integer("cpus", 1, 4096),
        mem_mib=fields.integer("mem_mib", 1, 2**30),
        held=_parse_held(fields) if fields.has("held") else None,
        start=fields.integer("start", 1, 2**62) if fields.has("start") else None,
    )


def _parse_held(fields: Fields) -> tuple[LeaseKey, ...]:
    return tuple(_parse_key(each, each.integer("machine_id", 1)) for each in fields.children("held", 4096))


def render_enrol_reply(reply: EnrolReply) -> Json:
    return {
        "token": reply.token,
        "expires_in_s": reply.expires_in_s,
        "agent_id": reply.agent_id,
        "lease_ttl_s": reply.lease_ttl_s,
    }


def parse_enrol_reply(body: bytes) -> EnrolReply:
    fields = parse_object(body, "enrolment reply")
    return EnrolReply(
        agent_id=fields.text("agent_id", 128),
        expires_in_s=fields.number("expires_in_s"),
        lease_ttl_s=fields.number("lease_ttl_s", 0.001),
        token=fields.text("token", 8192),
    )


# --- lease -----------------------------------------------------------------------------------------------------


def render_lease_request(request: LeaseRequest) -> Json:
    free = {"cpus": request.free_cpus, "mem_mib": request.free_mem_mib, "slots": request.free_slots}
    if request.free_disk_mib is not None:
        free["disk_mib"] = request.free_disk_mib
    return {"wait_s": request.wait_s, "free": free, "labels": list(request.labels), "arch": request.arch.value}


def parse_lease_request(body: bytes) -> LeaseRequest:
    fields = parse_object(body, "lease request")
    free = fields.child("free")
    return LeaseRequest(
        wait_s=fields.number("wait_s", 0.0, MAX_WAIT_S),
        free_cpus=free.integer("cpus", 0, 4096),
        free_mem_mib=free.integer("mem_mib", 0, 2**30),
        free_slots=free.integer("slots", 0, 65536),
        labels=fields.texts("labels", 64, 256) if fields.has("labels") else (),
        free_disk_mib=free.integer("disk_mib", 0, 2**40) if free.has("disk_mib") else None,
        arch=fields.choice("arch", Arch) if fields.has("arch") else Arch.X64,
    )


def render_grant(grant: Grant) -> Json:
    return {
        **_render_key(grant.key),
        "machine_id": grant.key.machine_id,
        "ttl_s": grant.ttl_s,
        "org_id": grant.org_id,
        "kind": grant.kind.value,
        "shape": render_shape(grant.shape),
        "image": grant.image,
        "labels": list(grant.labels),
        "command": None if grant.command is None else render_command(grant.command),
        "log_url": grant.log_url,
        "log_token": grant.log_token,
        "times_ms": {
            "webhook": grant.times_ms.webhook,
            "queued": grant.times_ms.queued,
            "leased": grant.times_ms.leased,
        },
        "cache_token": _render_cache_token(grant.cache_token),
    }


def parse_grant(body: bytes) -> Grant:
    fields = parse_object(body, "grant")
    times = fields.child("times_ms")
    return Grant(
        key=_parse_key(fields, fields.integer("machine_id", 1)),
        ttl_s=fields.number("ttl_s", 0.001),
        org_id=fields.integer("org_id"),
        kind=fields.choice("kind", MachineKind),
        shape=parse_shape(fields.child("shape")),
        image=fields.text("image"),
        labels=fields.texts("labels"),
        command=parse_command(fields.child("command")) if fields.has("command") else None,
        log_url=fields.text("log_url") if fields.has("log_url") else None,
        log_token=fields.text("log_token", 8192) if fields.has("log_token") else None,
        times_ms=GrantTimes(
            webhook=times.integer("webhook") if times.has("webhook") else None,
            queued=times.integer("queued"),
            leased=times.integer("leased"),
        ),
        cache_token=_parse_cache_token(fields),
    )


def _render_cache_token(token: CacheToken | None) -> Json | None:
    return None if token is None else {"token": token.text, "expires_in_s": token.expires_in_s}


def _parse_cache_token(fields: Fields) -> CacheToken | None:
    if not fields.has("cache_token"):
        return None
    token = fields.child("cache_token")
    return CacheToken(token.text("token", 8192), token.number("expires_in_s"))


# --- renew, runner, finish -------------------------------------------------------------------------------------


def render_renew_request(request: RenewRequest) -> Json:
    body: Json = {**_render_key(request.key), "state": request.state.value}
    if request.wants_cache_token:
        body["wants_cache_token"] = True
    return body if request.usage is None else {**body, "usage": render_usage(request.usage)}


def parse_renew_request(body: bytes, machine_id: int) -> RenewRequest:
    fields = parse_object(body, "renewal")
    usage = parse_usage(fields.child("usage")) if fields.has("usage") else None
    wants = fields.has("wants_cache_token") and fields.boolean("wants_cache_token")
    return RenewRequest(_parse_key(fields, machine_id), fields.choice("state", HeldState), usage, wants)


def render_renew_reply(reply: RenewReply) -> Json:
    job = None if reply.job is None else {"job_id": reply.job.job_id, "repo_id": reply.job.repo_id}
    body: Json = {"ttl_s": reply.ttl_s, "cancel": reply.cancel, "job": job}
    return body if reply.cache_token is None else {**body, "cache_token": _render_cache_token(reply.cache_token)}


def parse_renew_reply(body: bytes) -> RenewReply:
    fields = parse_object(body, "renewal reply")
    job = None
    if fields.has("job"):
        link = fields.child("job")
        job = JobLink(link.integer("job_id", 1), link.integer("repo_id") if link.has("repo_id") else None)
    ttl_s = fields.number("ttl_s", 0.001)
    return RenewReply(ttl_s, fields.boolean("cancel"), job, _parse_cache_token(fields))


def render_runner_request(key: LeaseKey) -> Json:
    return _render_key(key)


def parse_runner_request(body: bytes, machine_id: int) -> LeaseKey:
    return _parse_key(parse_object(body, "runner request"), machine_id)


def render_runner_reply(reply: RunnerReply) -> Json:
    return {"runner_name": reply.runner_name, "argv": list(reply.argv), "env": dict(reply.env)}


def parse_runner_reply(body: bytes) -> RunnerReply:
    fields = parse_object(body, "runner reply")
    return RunnerReply(
        runner_name=fields.text("runner_name", 128), argv=fields.texts("argv"), env=fields.text_map("env")
    )


def render_finish_request(request: FinishRequest) -> Json:
    attested = request.attestation
    return {
        **_render_key(request.key),
        "ending": request.ending.value,
        "exit_code": request.exit_code,
        "signal": request.signal,
        "cause": _storable(request.cause),
        "phases_ms": dict(request.phases_ms),
        "attestation": None if attested is None else render_attestation(attested),
    }


def _storable(cause: str) -> str:
    """A guest's words may stand in it: whatever they are, the control plane takes the end of its machine."""
    return cause.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_CAUSE_CHARS]


def parse_finish_request(body: bytes, machine_id: int) -> FinishRequest:
    fields = parse_object(body, "finish")
    return FinishRequest(
        key=_parse_key(fields, machine_id),
        ending=fields.choice("ending", Ending),
        exit_code=fields.integer("exit_code", 0, 255) if fields.has("exit_code") else None,
        signal=fields.integer("signal", 1, 64) if fields.has("signal") else None,
        cause=fields.text("cause", MAX_CAUSE_CHARS, empty=True) if fields.has("cause") else "",
        phases_ms=fields.number_map("phases_ms") if fields.has("phases_ms") else {},
        attestation=parse_attestation(fields.child("attestation")) if fields.has("attestation") else None,
    )


def render_finish_reply(reply: FinishReply) -> Json:
    return {"state": reply.state.value}


def parse_finish_reply(body: bytes) -> FinishReply:
    return FinishReply(parse_object(body, "finish reply").choice("state", MachineState))


# --- the key ----------------------------------------------------------------------------------------------------


def _render_key(key: LeaseKey) -> Json:
    return {"lease_id": key.lease_id, "fence": key.fence}


def _parse_key(fields: Fields, machine_id: int) -> LeaseKey:
    return LeaseKey(machine_id=machine_id, lease_id=fields.uuid("lease_id"), fence=fields.integer("fence", 1))
