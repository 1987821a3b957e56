"""The host's half of the guest link: attach, hand over the job, bring its output to safety, hear its exit.

Reconnects whenever the stream breaks and goes on by byte offset, so that nothing is lost or told twice. Output is
acknowledged only after the sink has it safely, an exit only after `on_exit` has. Never decides that a guest is dead:
that is for the caller, who sees every heartbeat. Called by serve.py.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import trio

from nimbus.model.errors import GuestFault, NimbusError
from nimbus.model.vm import DEFAULT_GRACE_S, Command, GuestExit, NetPlan
from nimbus.wire.guestjob import ENTROPY_BYTES, GuestNetwork, Job
from nimbus.wire.guestlink import (
    VERSION,
    Bye,
    Exit,
    FromGuest,
    GuestReader,
    GuestState,
    Output,
    ProtocolError,
    Refused,
    Stream,
    render_ack,
    render_attach,
    render_credit,
    render_echo,
    render_exit_ack,
    render_job_frames,
    render_stop,
)
from nimbus.wire.guestlink import Heartbeat as GuestHeartbeat
from nimbus.wire.guestlink import Hello as GuestHello
from nimbus.wire.guestlink import JobStarted as GuestJobStarted

__all__ = [
    "GuestConnected",
    "GuestEvent",
    "GuestHeartbeat",
    "GuestHello",
    "GuestJobStarted",
    "GuestSession",
    "OutputGap",
    "OutputSink",
    "parse_session",
    "render_session",
    "run_guest",
]

WINDOW_BYTES = 512 * 1024  # a stream's bytes between guest and safety: the agent's memory for one VM is twice this
RECEIVE_BYTES = 256 * 1024
WRITE_BYTES = 256 * 1024  # small outputs that wait together go to the sink together
HELLO_S = 2.0  # a guest that boots reads the first attach late; one that lost half of it needs another
REPEAT_S = 3.0  # a job or stop that a heartbeat shows as unheard is said again after this
FAREWELL_S = 1.0  # how long the guest's last word is waited for, once its exit is safe
RESYNCS_MAX = 20  # without one new byte of output in between
_RETRY_FIRST_S, _RETRY_MOST_S = 0.01, 0.1
_NAMES = {Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}


@dataclass(frozen=True)
class GuestSession:
    """One guest's one job, from the first attach on. `command` None: an adopted guest, which must have it already."""

    nonce: bytes  # 16 random bytes; the guest obeys nobody with another
    command: Command | None
    net: NetPlan | None = None
    hostname: str = "nimbus"
    next_offsets: tuple[int, int] = (0, 0)  # of stdout and stderr: all below is safe with the sink
    stop_grace_s: float = DEFAULT_GRACE_S  # used when there is no command to ask


def render_session(session: GuestSession) -> dict[str, object]:
    """What a record keeps for adoption. Never the command: its environment may hold secrets."""
    grace_s = session.command.grace_s if session.command else session.stop_grace_s
    return {"nonce": session.nonce.hex(), "next_offsets": list(session.next_offsets), "stop_grace_s": grace_s}


def parse_session(stored: Mapping[str, Any]) -> GuestSession:
    """The session of a guest that runs its job already."""
    first, second = stored["next_offsets"]
    offsets = (int(first), int(second))
    grace_s = float(stored["stop_grace_s"])
    return GuestSession(bytes.fromhex(stored["nonce"]), None, next_offsets=offsets, stop_grace_s=grace_s)


class OutputSink(Protocol):
    """Where output goes."""

    async def write(self, stream: str, offset: int, data: bytes) -> None:
        """Return when the bytes are safe: the guest forgets them then."""
        ...


@dataclass(frozen=True)
class GuestConnected:
    """The VMM took our connection; the guest itself may not listen yet."""


@dataclass(frozen=True)
class OutputGap:
    """The guest does not hold these bytes any more: an earlier host acknowledged and lost them."""

    stream: str
    start: int
    end: int


GuestEvent = GuestConnected | GuestHello | GuestJobStarted | GuestHeartbeat | OutputGap


async def run_guest(
    connect: Callable[[], Awaitable[trio.abc.Stream]],
    session: GuestSession,
    sink: OutputSink,
    *,
    on_event: Callable[[GuestEvent], None],
    on_exit: Callable[[GuestExit], Awaitable[None]],
    stop: trio.Event,
) -> GuestExit:
    """Run the session to its command's exit. Retries connections until the caller's scope ends.

    `on_exit` is the moment of truth: it runs once, when all output is safe, and the guest is told only after it.
    Raises GuestFault for a guest that breaks the rules, and whatever `sink`, `on_exit` and `connect` raise
    (but for OSError of `connect`, which is tried again).
    """
    talk = _Talk(session, sink, on_event, stop)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.write_output)
            nursery.start_soon(talk.pass_stop)
            nursery.start_soon(talk.follow, connect)
            told = await talk.wait_exit()
            await on_exit(told)
            with trio.move_on_after(FAREWELL_S):
                await talk.take_leave()
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise _only_fault(group) from None
    return told


def _only_fault(group: ExceptionGroup[Exception]) -> Exception:
    """The one NimbusError of a group; the group itself where it holds anything else."""
    found: Exception = group
    while isinstance(found, ExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found if isinstance(found, NimbusError) else group


class _Talk:
    """What the host knows of one session while it lasts."""

    def __init__(
        self, session: GuestSession, sink: OutputSink, on_event: Callable[[GuestEvent], None], stop: trio.Event
    ) -> None:
        self._session, self._sink, self._on_event, self._stop = session, sink, on_event, stop
        self._stream: trio.abc.Stream | None = None
        self._sending = trio.Lock()
        self._attach_id = secrets.randbits(32)
        self._greeted = False
        self._resyncs = 0
        self._received = dict(zip(Stream, session.next_offsets, strict=True))
        self._safe = dict(self._received)
        self._limits = dict(self._received)
        self._pending: deque[Output] = deque()  # bounded by the credit that was given
        self._writing = False
        self._changed = trio.Event()
        self._told: GuestExit | None = None
        self._acknowledged = False  # the exit is safe
        self._heard_us = False  # and the guest was told so
        self._gone = trio.Event()
        self._job_sent_at = self._stop_sent_at = -REPEAT_S

    async def follow(self, connect: Callable[[], Awaitable[trio.abc.Stream]]) -> None:
        """Connect, converse, and again, until the guest has gone."""
        while not self._gone.is_set():
            stream = await _connect(connect)
            async with stream:
                self._stream = stream
                self._on_event(GuestConnected())
                try:
                    await self._converse(stream)
                except trio.BrokenResourceError:
                    pass  # the same as an end of file: connect again
                finally:
                    self._stream, self._greeted = None, False
            if self._heard_us:
                self._gone.set()
            await trio.sleep(_RETRY_FIRST_S)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        reader = GuestReader()
        await self._attach()
        while not self._gone.is_set():
            data: bytes | bytearray | None = None
            with trio.move_on_after(math.inf if self._greeted else HELLO_S):
                data = await stream.receive_some(RECEIVE_BYTES)
            if data is None:
                reader.reset()
                await self._attach()
                continue
            if not data:
                return
            for message in reader.feed(data):
                await self._hear(message)

    async def _attach(self) -> None:
        self._greeted = False
        self._attach_id = (self._attach_id + 1) % 2**32
        self._limits = {stream: offset + WINDOW_BYTES for stream, offset in self._safe.items()}
        await self._send(
            render_attach(self._attach_id, self._session.nonce, _pair(self._received), _pair(self._limits))
        )

    async def _resync(self, why: str) -> None:
        """Something went missing on the way: attach anew, so that the guest goes on from what was received."""
        self._resyncs += 1
        if self._resyncs > RESYNCS_MAX:
            raise ProtocolError(f"the guest's output cannot be followed: {why}, {RESYNCS_MAX} times in a row")
        await self._attach()

    async def _hear(self, message: FromGuest) -> None:
        match message:
            case GuestHello() if message.attach_id == self._attach_id:
                await self._hear_hello(message)
            case Refused() if message.attach_id == self._attach_id:
                raise GuestFault(f"the guest refused: {message.why.name.lower()}: {message.message}")
            case _ if not self._greeted:
                pass  # left over from before this attach
            case Output():
                await self._hear_output(message)
            case GuestHeartbeat():
                await self._hear_heartbeat(message)
            case GuestJobStarted():
                self._on_event(message)
            case Exit():
                await self._hear_exit(message)
            case Bye() if self._acknowledged:
                self._gone.set()
            case _:
                pass

    async def _hear_hello(self, hello: GuestHello) -> None:
        if hello.version != VERSION or not secrets.compare_digest(hello.nonce, self._session.nonce):
            raise ProtocolError(f"the guest said hello in version {hello.version} or to somebody else")
        for stream, first, end in zip(Stream, hello.first_offsets, hello.end_offsets, strict=True):
            if end < self._received[stream]:
                raise ProtocolError(f"the guest takes back output: it has {end} bytes of {self._received[stream]}")
            if first > self._received[stream]:
                self._on_event(OutputGap(_NAMES[stream], self._received[stream], first))
                self._received[stream] = self._safe[stream] = first
                await self._send(render_credit(stream, self._raise_limit(stream)))
        self._greeted = True
        self._on_event(hello)
        if hello.state is GuestState.IDLE:
            await self._send_job()
        if self._stop.is_set():
            await self._send_stop()

    async def _hear_output(self, output: Output) -> None:
        received = self._received[output.stream]
        end = output.offset + len(output.data)
        if output.offset > received:
            await self._resync(f"{_NAMES[output.stream]} jumps from {received} to {output.offset}")
        elif end > self._limits[output.stream]:
            raise ProtocolError(f"the guest sent {_NAMES[output.stream]} up to {end}, beyond its credit")
        elif end > received:
            self._resyncs = 0
            self._received[output.stream] = end
            self._pending.append(replace(output, offset=received, data=output.data[received - output.offset :]))
            self._changed.set()

    async def _hear_heartbeat(self, beat: GuestHeartbeat) -> None:
        self._on_event(beat)
        words = [render_echo(beat.uptime_ms)]
        for stream, acked in zip(Stream, beat.acked_offsets, strict=True):
            if acked < self._safe[stream]:
                words += [render_ack(stream, self._safe[stream]), render_credit(stream, self._raise_limit(stream))]
        await self._send(b"".join(words))
        unheard_at = trio.current_time() - REPEAT_S
        if beat.state is GuestState.IDLE and self._job_sent_at <= unheard_at:
            await self._send_job()
        stoppable = beat.state in {GuestState.IDLE, GuestState.RUNNING}
        if self._stop.is_set() and stoppable and self._stop_sent_at <= unheard_at:
            await self._send_stop()

    async def _hear_exit(self, message: Exit) -> None:
        if self._acknowledged:
            await self._acknowledge_exit()
        elif message.end_offsets != _pair(self._received):
            await self._resync(f"it ended at {message.end_offsets}, {_pair(self._received)} came")
        elif self._told is None:
            self._told = message.exit
            self._changed.set()

    async def write_output(self) -> None:
        """Bring what came to safety, and say so: acknowledgement and new credit."""
        while True:
            while not self._pending:
                await self._wait_change()
            output = self._take_output()
            self._writing = True
            await self._sink.write(_NAMES[output.stream], output.offset, output.data)
            self._writing = False
            end = output.offset + len(output.data)
            self._safe[output.stream] = max(self._safe[output.stream], end)
            self._changed.set()
            limit = self._raise_limit(output.stream)
            await self._send(render_ack(output.stream, end) + render_credit(output.stream, limit))

    async def wait_exit(self) -> GuestExit:
        """The command's exit, once all output before it is safe."""
        while self._told is None or self._pending or self._writing:
            await self._wait_change()
        return self._told

    async def take_leave(self) -> None:
        """Tell the guest that its exit is safe; return when it has gone."""
        self._acknowledged = True
        await self._acknowledge_exit()
        await self._gone.wait()

    async def pass_stop(self) -> None:
        """Hand the caller's wish to stop to the guest, once it is there."""
        await self._stop.wait()
        if self._greeted:
            await self._send_stop()

    def _take_output(self) -> Output:
        """The oldest output, with what follows it directly in the same stream."""
        first = self._pending.popleft()
        parts, end, size = [first.data], first.offset + len(first.data), len(first.data)
        while self._pending and size < WRITE_BYTES:
            following = self._pending[0]
            if following.stream is not first.stream or following.offset != end:
                break
            self._pending.popleft()
            parts.append(following.data)
            end, size = end + len(following.data), size + len(following.data)
        return first if len(parts) == 1 else replace(first, data=b"".join(parts))

    def _raise_limit(self, stream: Stream) -> int:
        self._limits[stream] = max(self._limits[stream], self._safe[stream] + WINDOW_BYTES)
        return self._limits[stream]

    async def _wait_change(self) -> None:
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    async def _acknowledge_exit(self) -> None:
        self._heard_us = await self._send(render_exit_ack())

    async def _send_job(self) -> None:
        command, net = self._session.command, self._session.net
        if command is None:
            raise GuestFault("the guest of an adopted session never got its job")
        self._job_sent_at = trio.current_time()
        network = GuestNetwork(net.guest, net.gateway.ip, net.nameserver) if net else None
        job = Job(command, self._session.hostname, network, time.time_ns(), secrets.token_bytes(ENTROPY_BYTES))
        await self._send(render_job_frames(job))

    async def _send_stop(self) -> None:
        self._stop_sent_at = trio.current_time()
        command = self._session.command
        grace_s = command.grace_s if command else self._session.stop_grace_s
        await self._send(render_stop(round(grace_s * 1000)))

    async def _send(self, data: bytes) -> bool:
        """Send on the present connection. False where it broke: the reader notices too, and connects again."""
        async with self._sending:
            if self._stream is None:
                return False
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            return True


async def _connect(connect: Callable[[], Awaitable[trio.abc.Stream]]) -> trio.abc.Stream:
    wait_s = _RETRY_FIRST_S
    while True:
        try:
            return await connect()
        except (OSError, trio.BrokenResourceError):
            await trio.sleep(wait_s)
            wait_s = min(wait_s * 1.2, _RETRY_MOST_S)


def _pair(offsets: Mapping[Stream, int]) -> tuple[int, int]:
    return offsets[Stream.STDOUT], offsets[Stream.STDERR]
