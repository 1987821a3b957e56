"""One conversation with a guest, over however many connections: who said what, and what follows from it.

Holds offsets, credit and the output on its way to safety, bounded by that credit. Opens no connection of its own and
decides nothing about leases or records. Called by guest.py alone.
"""

from __future__ import annotations

import math
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping

import trio

from nimbus.host_agent.guestoutput import PendingOutput
from nimbus.host_agent.guestsession import GuestConnected, GuestEvent, GuestSession, OutputGap, OutputSink
from nimbus.model.errors import GuestFault
from nimbus.model.vm import GuestExit, NetPlan
from nimbus.wire.guestjob import ENTROPY_BYTES, GuestNetwork, Job
from nimbus.wire.guestlink import (
    VERSION,
    Bye,
    Exit,
    FromGuest,
    GuestReader,
    GuestState,
    Heartbeat,
    Hello,
    JobStarted,
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
    render_prepare,
    render_stop,
)

WINDOW_BYTES = 512 * 1024  # a stream's bytes between guest and safety: the agent's memory for one VM is twice this
RECEIVE_BYTES = 256 * 1024
HELLO_S = 2.0  # a guest that boots reads the first attach late; one that lost half of it needs another
REPEAT_S = 3.0  # a job or stop that a heartbeat shows as unheard is said again after this
OFFSET_MAX = 2**62  # no guest prints that much; beyond 2**64 an offset could not be answered
RESYNCS_MAX = 20  # without one new byte of output in between
PREPARES_MAX = 3  # answers without `prepared` of a guest that must be: one may have lost the word, not three
RETRY_FIRST_S, _RETRY_MOST_S = 0.01, 0.1
_NAMES = {Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}


class Talk:
    """What the host knows of one session while it lasts."""

    def __init__(
        self, session: GuestSession, sink: OutputSink, on_event: Callable[[GuestEvent], None], stop: trio.Event
    ) -> None:
        self._session, self._sink, self._on_event, self._stop = session, sink, on_event, stop
        self._stream: trio.abc.Stream | None = None
        self._sending = trio.Lock()
        self._attach_id = secrets.randbits(32)
        self._greeted = False  # in this attach
        self._has_greeted = False  # in any
        self._prepared = session.command is None  # an adopted guest has its job, and was prepared before it
        self._unprepared = 0  # hellos that should have told so, and did not
        self._machine_id = uuid.uuid4().bytes  # one for the whole session, however often it is told
        self._resyncs = 0
        self._received = dict(zip(Stream, session.next_offsets, strict=True))
        self._safe = dict(self._received)
        self._limits = dict(self._received)
        self._pending = PendingOutput()
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
            stream = await connect_patiently(connect)
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
            await trio.sleep(RETRY_FIRST_S)

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
        attach = render_attach(self._attach_id, self._session.nonce, _pair(self._received), _pair(self._limits))
        await self._send(self._render_prepare() + attach)

    def _render_prepare(self) -> bytes:
        """Goes before each attach until a hello told that it was done."""
        if self._prepared:
            return b""
        return render_prepare(time.time_ns(), secrets.token_bytes(ENTROPY_BYTES), self._machine_id)

    async def _resync(self, why: str) -> None:
        """Something went missing on the way: attach anew, so that the guest goes on from what was received."""
        self._resyncs += 1
        if self._resyncs > RESYNCS_MAX:
            raise ProtocolError(f"the guest's output cannot be followed: {why}, {RESYNCS_MAX} times in a row")
        await self._attach()

    async def _hear(self, message: FromGuest) -> None:
        match message:
            case Hello() if message.attach_id == self._attach_id and not self._greeted:
                await self._hear_hello(message)
            case Refused() if message.attach_id == self._attach_id:
                raise GuestFault(f"the guest refused: {message.why.name.lower()}: {message.message}")
            case _ if not self._greeted:
                pass  # left over from before this attach
            case Output():
                await self._hear_output(message)
            case Heartbeat():
                await self._hear_heartbeat(message)
            case JobStarted():
                self._on_event(message)
            case Exit():
                await self._hear_exit(message)
            case Bye() if self._acknowledged:
                self._gone.set()
            case _:
                pass

    async def _hear_hello(self, hello: Hello) -> None:
        if hello.version != VERSION or not secrets.compare_digest(hello.nonce, self._session.nonce):
            raise ProtocolError(f"the guest said hello in version {hello.version} or to somebody else")
        if self._session.must_prepare and not (self._prepared or hello.prepared):
            await self._prepare_again()
            return
        for stream, first, end in zip(Stream, hello.first_offsets, hello.end_offsets, strict=True):
            if max(first, end) > OFFSET_MAX:
                raise ProtocolError(f"the guest claims {max(first, end)} bytes of output, which cannot be")
            if end < self._received[stream]:
                raise ProtocolError(f"the guest takes back output: it has {end} bytes of {self._received[stream]}")
            if first > self._received[stream] and self._has_greeted:
                raise ProtocolError(f"the guest forgot output that was not acknowledged, up to byte {first}")
            if first > self._received[stream]:
                self._on_event(OutputGap(_NAMES[stream], self._received[stream], first))
                self._received[stream] = self._safe[stream] = first
                await self._send(render_credit(stream, self._raise_limit(stream)))
        self._greeted = self._has_greeted = True
        self._prepared = self._prepared or hello.prepared
        self._on_event(hello)
        if hello.state is GuestState.IDLE:
            await self._send_job()
        if self._stop.is_set():
            await self._send_stop()

    async def _prepare_again(self) -> None:
        self._unprepared += 1
        if self._unprepared == PREPARES_MAX:
            raise GuestFault(
                "the restored guest does not say that its randomness and clock are fresh: its console tells which "
                "failed, or its image is too old to be restored; build image and template anew"
            )
        await self._attach()

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
            self._pending.put(output.stream, received, memoryview(output.data)[received - output.offset :])
            self._changed.set()

    async def _hear_heartbeat(self, beat: Heartbeat) -> None:
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
            piece = self._pending.take()
            self._writing = True
            safe = await self._sink.write(_NAMES[piece.stream], piece.offset, bytes(piece.data))
            self._writing = False
            self._safe[piece.stream] = max(self._safe[piece.stream], min(safe, piece.end))
            self._changed.set()
            limit = self._raise_limit(piece.stream)
            await self._send(render_ack(piece.stream, self._safe[piece.stream]) + render_credit(piece.stream, limit))

    async def wait_exit(self) -> GuestExit:
        """The command's exit, once all output before it is safe."""
        while True:
            while self._told is None or self._pending or self._writing:
                await self._wait_change()
            await self._sink.flush()  # nothing follows that could make a secret of what was held back
            if not self._pending and not self._writing:
                self._safe = dict(self._received)
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
        job = Job(
            command,
            self._session.hostname,
            _plan_guest_network(net),
            time.time_ns(),
            secrets.token_bytes(ENTROPY_BYTES),
        )
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


async def connect_patiently(connect: Callable[[], Awaitable[trio.abc.Stream]]) -> trio.abc.Stream:
    """A connection, once there is one to be had."""
    wait_s = RETRY_FIRST_S
    while True:
        try:
            return await connect()
        except (OSError, trio.BrokenResourceError):
            await trio.sleep(wait_s)
            wait_s = min(wait_s * 1.2, _RETRY_MOST_S)


def _plan_guest_network(net: NetPlan | None) -> GuestNetwork | None:
    """The guest's view: its resolver is the gateway, which passes questions on to the host's nameserver."""
    if net is None:
        return None
    return GuestNetwork(net.guest, net.gateway.ip, net.gateway.ip if net.nameserver else None)


def _pair(offsets: Mapping[Stream, int]) -> tuple[int, int]:
    return offsets[Stream.STDOUT], offsets[Stream.STDERR]
