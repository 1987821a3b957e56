"""The host's half of the guest link: attach, hand over the job, bring its output to safety, hear its exit.

Reconnects whenever the stream breaks and goes on by byte offset, so that nothing is lost or told twice. Output is
acknowledged only after the sink has it safely, an exit only after `on_exit` has. Never decides that a guest is dead:
that is for the caller, who sees every heartbeat. Called by attend.py; the builder of templates only looks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable

import trio

from nimbus.host_agent.guestsession import (
    GuestConnected,
    GuestEvent,
    GuestSession,
    OutputGap,
    OutputSink,
    parse_session,
    render_session,
)
from nimbus.host_agent.guesttalk import HELLO_S, RECEIVE_BYTES, RETRY_FIRST_S, Talk, connect_patiently
from nimbus.model.errors import GuestFault, NimbusError
from nimbus.model.vm import GuestExit
from nimbus.wire.guestjob import ENTROPY_BYTES
from nimbus.wire.guestlink import MACHINE_ID_BYTES, NONCE_BYTES, GuestReader, Refused, render_look, render_prepare
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
    "look_at_guest",
    "parse_session",
    "render_session",
    "run_guest",
]

FAREWELL_S = 1.0  # how long the guest's last word is waited for, once its exit is safe


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
    talk = Talk(session, sink, on_event, stop)
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


async def look_at_guest(connect: Callable[[], Awaitable[trio.abc.Stream]], *, prepare: bool = False) -> GuestHello:
    """The hello of a guest that waits for its host, and goes on to wait: nothing in it remembers the look.

    With `prepare` it is first made a machine of its own, as before an attach: fresh randomness, which it keeps.
    Retries until the caller's scope ends. GuestFault for a guest that has a host, was prepared, or whose image knows no
    looks.
    """
    while True:
        stream = await connect_patiently(connect)
        async with stream:
            hello = await _look(stream, prepare)
        if hello is not None:
            return hello
        await trio.sleep(RETRY_FIRST_S)


async def _look(stream: trio.abc.Stream, prepare: bool) -> GuestHello | None:
    """Ask on this connection, again and again, for a guest that boots reads late. None where it broke."""
    reader, attach_id, nonce = GuestReader(), secrets.randbits(32), secrets.token_bytes(NONCE_BYTES)
    try:
        while True:
            await stream.send_all((_render_prepare() if prepare else b"") + render_look(attach_id, nonce))
            with trio.move_on_after(HELLO_S):
                hello = await _hear_look(stream, reader, attach_id, nonce)
                return None if hello is None else _check_looked(hello, prepare)
            reader.reset()
    except trio.BrokenResourceError:
        return None


def _render_prepare() -> bytes:
    return render_prepare(time.time_ns(), secrets.token_bytes(ENTROPY_BYTES), secrets.token_bytes(MACHINE_ID_BYTES))


async def _hear_look(stream: trio.abc.Stream, reader: GuestReader, attach_id: int, nonce: bytes) -> GuestHello | None:
    while data := await stream.receive_some(RECEIVE_BYTES):
        for message in reader.feed(data):
            match message:
                case GuestHello() if (message.attach_id, message.nonce) == (attach_id, nonce):
                    return message
                case Refused() if message.attach_id == attach_id:
                    raise GuestFault(f"the guest cannot be looked at: {message.message}")
    return None


def _check_looked(hello: GuestHello, prepare: bool) -> GuestHello:
    if not hello.looked:
        raise GuestFault("the guest took a look for its host: its image is too old for templates, build it anew")
    if prepare and not hello.prepared:
        raise GuestFault("the guest does not say that its randomness and clock are fresh")
    if hello.prepared and not prepare:
        raise GuestFault("the guest is a machine of its own already: its clones would tell so before they are")
    return hello


def _only_fault(group: ExceptionGroup[Exception]) -> Exception:
    """The one NimbusError of a group; the group itself where it holds anything else."""
    found: Exception = group
    while isinstance(found, ExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found if isinstance(found, NimbusError) else group
