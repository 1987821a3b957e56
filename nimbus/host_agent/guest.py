"""The host's half of the guest link: attach, hand over the job, bring its output to safety, hear its exit.

Reconnects whenever the stream breaks and goes on by byte offset, so that nothing is lost or told twice. Output is
acknowledged only after the sink has it safely, an exit only after `on_exit` has. Never decides that a guest is dead:
that is for the caller, who sees every heartbeat. Called by serve.py.
"""

from __future__ import annotations

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
from nimbus.host_agent.guesttalk import Talk
from nimbus.model.errors import NimbusError
from nimbus.model.vm import GuestExit
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


def _only_fault(group: ExceptionGroup[Exception]) -> Exception:
    """The one NimbusError of a group; the group itself where it holds anything else."""
    found: Exception = group
    while isinstance(found, ExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found if isinstance(found, NimbusError) else group
