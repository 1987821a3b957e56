"""Messages of the guest link, version 1: what host and guest say to each other. Tables in docs/guest-link.md.

Sans-IO. `GuestReader` turns bytes into messages and never raises: what makes no sense is dropped and counted, because a
guest is hostile. A message that is well formed but breaks the rules of the talk is a ProtocolError, raised by
host_agent/guest.py, the caller. The other side is native/guest; both are tested against one file of vectors.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass

from nimbus.model.errors import GuestFault
from nimbus.model.vm import ExitReason, GuestExit
from nimbus.wire.guestframe import Frame, FrameCounts, FrameSplitter, render_frame
from nimbus.wire.guestjob import ENTROPY_BYTES, Job, cut_job, render_job

VERSION = 1
NONCE_BYTES = 16
MACHINE_ID_BYTES = 16
MAX_OUTPUT_BYTES = 65536  # of one OUT frame
MAX_MESSAGE_BYTES = 1024


class ProtocolError(GuestFault):
    """The guest broke the rules of the link."""


class Kind(enum.IntEnum):
    """Frame types."""

    ATTACH = 1
    HELLO = 2
    JOB = 3
    JOB_STARTED = 4
    OUT = 5
    ACK = 6
    CREDIT = 7
    HEARTBEAT = 8
    ECHO = 9
    STOP = 10
    EXIT = 11
    EXIT_ACK = 12
    REFUSED = 13
    BYE = 14
    PREPARE = 15


class AttachFlag(enum.IntFlag):
    """What an attach asks for beside; a guest of before them does not look."""

    LOOK = 1  # only say hello: nothing is taken over


class HelloFlag(enum.IntFlag):
    """What a hello tells beside; a guest of before them tells none."""

    PREPARED = 1
    LOOKED = 2


class Stream(enum.IntEnum):
    """The command's output streams."""

    STDOUT = 1
    STDERR = 2


class GuestState(enum.IntEnum):
    """How far the guest's one job is."""

    IDLE = 0
    RUNNING = 1
    STOPPING = 2
    EXITED = 3


class Refusal(enum.IntEnum):
    """Why a guest refused an attach or a job."""

    WRONG_NONCE = 1
    UNKNOWN_VERSION = 2
    BAD_JOB = 3


@dataclass(frozen=True, slots=True)
class Hello:
    """The guest's answer to an attach."""

    version: int
    state: GuestState
    attach_id: int
    nonce: bytes
    kernel_ms: int  # kernel start -> nimbus-init
    init_ms: int  # nimbus-init -> ready to run a job
    first_offsets: tuple[int, int]  # the oldest byte the guest still holds, stdout and stderr
    end_offsets: tuple[int, int]
    kernel_release: str
    prepared: bool = False  # randomness, clock and machine id are fresh: all of a PREPARE was done
    looked: bool = False  # it answers a look, and has forgotten it


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The command runs."""

    pid: int
    boot_ms: int  # since the guest's kernel started


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of one stream, from `offset` on."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The guest lives; once a second."""

    uptime_ms: int
    state: GuestState
    load: float  # of the last minute
    round_trip_ms: int  # of the last heartbeat that the host answered
    mem_total_kib: int
    mem_available_kib: int
    lost_frames: int  # of the host's frames, by the guest's count
    acked_offsets: tuple[int, int]
    end_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Exit:
    """The command ended and all its output was sent."""

    exit: GuestExit
    end_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Refused:
    """The guest does not take an attach or a job."""

    why: Refusal
    attach_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Bye:
    """The guest heard that its exit is safe, and goes."""


FromGuest = Hello | JobStarted | Output | Heartbeat | Exit | Refused | Bye

_ATTACH = struct.Struct("<HHI16sQQQQ")
_PREPARE = struct.Struct(f"<Q{ENTROPY_BYTES}s{MACHINE_ID_BYTES}s")
_HELLO = struct.Struct("<HBBI16sIIQQQQ")
_STARTED = struct.Struct("<II")
_OFFSET = struct.Struct("<B7xQ")
_HEARTBEAT = struct.Struct("<QB3xIIIIIQQQQ")
_EXIT = struct.Struct("<BBHIQQ")  # the third was padding once: a guest of that time says 0 there
_REFUSED = struct.Struct("<B3xI")
_REASONS = (ExitReason.EXITED, ExitReason.TIMEOUT, ExitReason.STOPPED, ExitReason.NOT_STARTED)


def render_attach(attach_id: int, nonce: bytes, next_offsets: tuple[int, int], limits: tuple[int, int]) -> bytes:
    """Take the guest over: where to go on sending, and up to which offset."""
    return render_frame(Kind.ATTACH, _ATTACH.pack(VERSION, 0, attach_id, nonce, *next_offsets, *limits))


def render_look(attach_id: int, nonce: bytes) -> bytes:
    """Ask for a hello, and take nothing over."""
    return render_frame(Kind.ATTACH, _ATTACH.pack(VERSION, AttachFlag.LOOK, attach_id, nonce, 0, 0, 0, 0))


def render_prepare(wall_clock_ns: int, entropy: bytes, machine_id: bytes) -> bytes:
    """Be a machine of your own from now on; `wall_clock_ns` is Unix time as of sending."""
    if (len(entropy), len(machine_id)) != (ENTROPY_BYTES, MACHINE_ID_BYTES) or wall_clock_ns <= 0:
        raise ValueError("a guest is prepared with a time, 32 bytes of entropy and 16 of machine id")
    return render_frame(Kind.PREPARE, _PREPARE.pack(wall_clock_ns, entropy, machine_id))


def render_job_frames(job: Job) -> bytes:
    """All frames of a job, in order."""
    return b"".join(render_frame(Kind.JOB, piece) for piece in cut_job(render_job(job)))


def render_ack(stream: Stream, offset: int) -> bytes:
    """The host has everything below `offset` safely; the guest may forget it."""
    return render_frame(Kind.ACK, _OFFSET.pack(stream, offset))


def render_credit(stream: Stream, limit: int) -> bytes:
    """The guest may send bytes below `limit`."""
    return render_frame(Kind.CREDIT, _OFFSET.pack(stream, limit))


def render_echo(uptime_ms: int) -> bytes:
    """The host heard the heartbeat of `uptime_ms`."""
    return render_frame(Kind.ECHO, uptime_ms.to_bytes(8, "little"))


def render_stop(grace_ms: int) -> bytes:
    """End the command: SIGTERM now, SIGKILL to all after `grace_ms`."""
    return render_frame(Kind.STOP, grace_ms.to_bytes(8, "little"))


def render_exit_ack() -> bytes:
    """The exit is in the record."""
    return render_frame(Kind.EXIT_ACK)


def _parse_hello(data: bytes) -> Hello:
    version, state, flags, attach_id, nonce, kernel_ms, init_ms, *offsets = _HELLO.unpack_from(data)
    release = _text(data[_HELLO.size :])
    first, end = (offsets[0], offsets[1]), (offsets[2], offsets[3])
    prepared, looked = bool(flags & HelloFlag.PREPARED), bool(flags & HelloFlag.LOOKED)
    return Hello(
        version, GuestState(state), attach_id, nonce, kernel_ms, init_ms, first, end, release, prepared, looked
    )


def _parse_started(data: bytes) -> JobStarted:
    return JobStarted(*_STARTED.unpack(data))


def _parse_output(data: bytes) -> Output:
    stream, offset = _OFFSET.unpack_from(data)
    if not _OFFSET.size < len(data) <= _OFFSET.size + MAX_OUTPUT_BYTES:
        raise ValueError("output without bytes, or too many")
    return Output(Stream(stream), offset, data[_OFFSET.size :])


def _parse_heartbeat(data: bytes) -> Heartbeat:
    uptime_ms, state, load, trip, total, free, lost, *offsets = _HEARTBEAT.unpack(data)
    acked, end = (offsets[0], offsets[1]), (offsets[2], offsets[3])
    return Heartbeat(uptime_ms, GuestState(state), load / 100, trip, total, free, lost, acked, end)


def _parse_exit(data: bytes) -> Exit:
    signalled, reason, oom_kills, value, *ends = _EXIT.unpack_from(data)
    if signalled not in {0, 1} or not (1 <= value <= 64 if signalled else value <= 255):
        raise ValueError("neither an exit code nor a signal")
    message = _text(data[_EXIT.size :])
    code, signal = (None, value) if signalled else (value, None)
    return Exit(GuestExit(code, signal, _REASONS[reason], message, oom_kills), (ends[0], ends[1]))


def _parse_refused(data: bytes) -> Refused:
    why, attach_id = _REFUSED.unpack_from(data)
    return Refused(Refusal(why), attach_id, _text(data[_REFUSED.size :]))


def _parse_bye(data: bytes) -> Bye:
    if data:
        raise ValueError("a bye says nothing more")
    return Bye()


def _text(data: bytes) -> str:
    """A guest's words for people: bounded, printable, one line."""
    text = data[:MAX_MESSAGE_BYTES].decode(errors="replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


_PARSERS: dict[int, Callable[[bytes], FromGuest]] = {
    Kind.HELLO: _parse_hello,
    Kind.JOB_STARTED: _parse_started,
    Kind.OUT: _parse_output,
    Kind.HEARTBEAT: _parse_heartbeat,
    Kind.EXIT: _parse_exit,
    Kind.REFUSED: _parse_refused,
    Kind.BYE: _parse_bye,
}


class GuestReader:
    """The host's ear: bytes from the guest in, messages out. Never raises on what it is fed."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self.malformed = 0  # right checksum, wrong content
        self.unknown = 0  # a type of a later version: skipped

    @property
    def counts(self) -> FrameCounts:
        return self._splitter.counts

    def reset(self) -> None:
        """Forget half a frame."""
        self._splitter.reset()

    def feed(self, data: bytes | bytearray | memoryview) -> list[FromGuest]:
        """The messages that end within `data`."""
        return [message for frame in self._splitter.feed(data) if (message := self._parse(frame)) is not None]

    def _parse(self, frame: Frame) -> FromGuest | None:
        parser = _PARSERS.get(frame.kind)
        if parser is None or frame.flags:
            self.unknown += 1
            return None
        try:
            return parser(frame.payload)
        except (ValueError, struct.error, IndexError):
            self.malformed += 1
            return None
