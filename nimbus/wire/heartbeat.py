"""What a host tells of itself every few seconds, and what it hears back: values that both ends parse and render.

Never opens a connection, and carries no org: whose work a machine is, the control plane knows from its own rows.
Called by the agent's control.py and by the control plane's routes. Unknown fields are ignored and words are taken as
text: an agent one version older or newer must go on being heard.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from nimbus.model.labels import Arch
from nimbus.wire.fields import Fields, parse_object
from nimbus.wire.vmjson import Json

MAX_RECORDS = 4096  # as many as a host has slots, at most
MAX_HEARTBEAT_BYTES = 4 * 1024 * 1024  # four times what so many records take
MAX_BARRED_CHARS = 1000
MAX_VMM_CHARS = 256  # with what must be said of it
_MAX_CLAIMS = 64
_MAX_POOL = 16


class Wanted(enum.StrEnum):
    """What an operator wants of a host."""

    WORKING = "working"
    CORDONED = "cordoned"  # no new job; what runs goes on, and what waits in its pool stays
    DRAINED = "drained"  # no new job and no pool; what runs goes on to its end


class Doing(enum.StrEnum):
    """What a host says that it does."""

    WORKING = "working"
    CORDONED = "cordoned"
    DRAINING = "draining"  # told to empty itself, from afar or by `nimbus agent drain`
    DRAINED = "drained"  # and nothing is left on it
    LEAVING = "leaving"  # its agent stops; machines may live on for the next one


class RecordState(enum.StrEnum):
    """How far the VM of a ledger record is."""

    BOOTING = "booting"
    RUNNING = "running"
    ENDED = "ended"  # it is being torn down
    UNTOLD = "untold"  # nothing of it is left but its end, which the control plane has not heard
    WAITING = "waiting"  # in the pool, for a job
    LOCAL = "local"  # of `nimbus run`
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class HostRoom:
    """What a host has, or has left. Disk None: not known now."""

    cpus: int
    mem_mib: int
    slots: int
    disk_mib: int | None = None


@dataclass(frozen=True)
class RecordLine:
    """One ledger record. Without a lease it is the pool's, or a local run's."""

    vm: str
    state: str
    machine_id: int | None = None
    fence: int | None = None
    claims: tuple[str, ...] = ()
    left_s: float | None = None  # until its host stops it where no renewal is answered; below 0: it should be gone


@dataclass(frozen=True)
class Heartbeat:
    """A host at one moment. `start` and `beat` number them: of two, the later one is true."""

    version: str
    boot_id: str  # as at the enrolment: one life of a host, and one ledger on it
    start: int
    beat: int
    doing: str
    vmm: str
    arch: Arch
    labels: tuple[str, ...]
    total: HostRoom
    free: HostRoom
    pool: Mapping[str, int] = field(default_factory=dict)
    records: tuple[RecordLine, ...] | None = None  # None: the ledger could not be read now


@dataclass(frozen=True)
class HeartbeatReply:
    """What the operator wants, when to tell again, and why nothing is granted although the host is to work."""

    wanted: Wanted
    interval_s: float
    barred: str | None = None


def render_heartbeat(beat: Heartbeat) -> Json:
    return {
        "version": beat.version,
        "boot_id": beat.boot_id,
        "start": beat.start,
        "beat": beat.beat,
        "doing": beat.doing,
        "vmm": beat.vmm,
        "arch": beat.arch.value,
        "labels": list(beat.labels),
        "total": _render_room(beat.total),
        "free": _render_room(beat.free),
        "pool": dict(beat.pool),
        "records": None if beat.records is None else [_render_line(line) for line in beat.records[:MAX_RECORDS]],
    }


def parse_heartbeat(body: bytes) -> Heartbeat:
    fields = parse_object(body, "heartbeat")
    return Heartbeat(
        version=fields.text("version", 64),
        boot_id=fields.text("boot_id", 64),
        start=fields.integer("start", 0, 2**62),
        beat=fields.integer("beat", 0, 2**62),
        doing=fields.text("doing", 32),
        vmm=fields.text("vmm", MAX_VMM_CHARS),
        arch=fields.choice("arch", Arch),
        labels=fields.texts("labels", 64, 256),
        total=_parse_room(fields.child("total")),
        free=_parse_room(fields.child("free")),
        pool=_parse_pool(fields) if fields.has("pool") else {},
        records=_parse_lines(fields) if fields.has("records") else None,
    )


def render_heartbeat_reply(reply: HeartbeatReply) -> Json:
    return {"wanted": reply.wanted.value, "interval_s": reply.interval_s, "barred": reply.barred}


def parse_heartbeat_reply(body: bytes) -> HeartbeatReply:
    fields = parse_object(body, "heartbeat reply")
    return HeartbeatReply(
        wanted=fields.choice("wanted", Wanted),
        interval_s=fields.number("interval_s", 0.1, 3600.0),
        barred=fields.text("barred", MAX_BARRED_CHARS) if fields.has("barred") else None,
    )


def _render_room(room: HostRoom) -> Json:
    return {"cpus": room.cpus, "mem_mib": room.mem_mib, "slots": room.slots, "disk_mib": room.disk_mib}


def _parse_room(fields: Fields) -> HostRoom:
    return HostRoom(
        cpus=fields.integer("cpus", 0, 4096),
        mem_mib=fields.integer("mem_mib", 0, 2**30),
        slots=fields.integer("slots", 0, 65536),
        disk_mib=fields.integer("disk_mib", 0, 2**40) if fields.has("disk_mib") else None,
    )


def _render_line(line: RecordLine) -> Json:
    return {
        "vm": line.vm,
        "state": line.state,
        "machine_id": line.machine_id,
        "fence": line.fence,
        "claims": list(line.claims),
        "left_s": line.left_s,
    }


def _parse_pool(fields: Fields) -> dict[str, int]:
    counted = fields.number_map("pool", _MAX_POOL)
    return {kind: int(number) for kind, number in counted.items()}


def _parse_lines(fields: Fields) -> tuple[RecordLine, ...]:
    return tuple(_parse_line(each) for each in fields.children("records", MAX_RECORDS))


def _parse_line(fields: Fields) -> RecordLine:
    return RecordLine(
        vm=fields.text("vm", 64),
        state=fields.text("state", 32),
        machine_id=fields.integer("machine_id", 1) if fields.has("machine_id") else None,
        fence=fields.integer("fence", 1) if fields.has("fence") else None,
        claims=fields.texts("claims", _MAX_CLAIMS, 32),
        left_s=fields.number("left_s", -1e9, 1e9) if fields.has("left_s") else None,
    )
