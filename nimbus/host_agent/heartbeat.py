"""Tells the control plane of this host every few seconds, and at once where something changed; hears what is wanted.

A task of its own that waits for nothing else and that nothing waits for. It renews no lease and never stops the agent:
without a single heartbeat heard, jobs are leased, run and told as ever. Called by main.py.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.host_agent.wish import Pulse, Wish
from nimbus.model.errors import NimbusError
from nimbus.wire.heartbeat import Doing, Heartbeat, HeartbeatReply

log = structlog.get_logger()

INTERVAL_S = 15.0  # until the control plane says another: NIMBUS_AGENT_HEARTBEAT_INTERVAL is its setting
JITTER = 0.1  # of it, to either side: hosts that started together do not report together for ever
LEAST_S = 1.0  # between two of them, however much changes: a VM comes and goes in a second
FAREWELL_S = 1.0  # an agent that leaves waits no longer for its last word to be heard


class Listener(Protocol):
    """Who is told."""

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Raises a NimbusError where it is not heard."""
        ...


@dataclass
class Heart:
    """What is told, to whom, and who hears the answer."""

    listener: Listener
    survey: Callable[[], Awaitable[Heartbeat]]
    wish: Wish
    pulse: Pulse
    interval_s: float = INTERVAL_S
    is_heard: bool = True
    barred: str | None = None

    async def beat_forever(self) -> None:
        """Until cancelled."""
        while True:
            await self._beat()
            await trio.sleep(LEAST_S)
            # not secret: it spreads the hosts
            wait_s = self.interval_s * random.uniform(1 - JITTER, 1 + JITTER) - LEAST_S  # noqa: S311
            with trio.move_on_after(max(0.0, wait_s)):
                await self.pulse.wait()

    async def say_farewell(self) -> None:
        """One last time, for a moment: this host falls silent because its agent leaves."""
        with trio.move_on_after(FAREWELL_S):
            await self._beat(leaving=True)

    async def _beat(self, *, leaving: bool = False) -> None:
        try:
            beat = await self.survey()
            reply = await self.listener.heartbeat(replace(beat, doing=Doing.LEAVING) if leaving else beat)
        except NimbusError as error:
            self._note_unheard(str(error))
        except Exception as error:
            # at the task's edge: a bug in a report of this host must never cost it a job, and each time is told in full
            log.exception("heartbeat.failed")
            self._note_unheard(repr(error))
        else:
            self._hear(reply)

    def _hear(self, reply: HeartbeatReply) -> None:
        metrics.HEARTBEATS.labels("heard").inc()
        if not self.is_heard:
            log.info("heartbeat.heard_again")
        self.is_heard = True
        self.interval_s = reply.interval_s
        if reply.barred is not None and reply.barred != self.barred:
            log.warning("agent.granted_nothing", why=reply.barred)
        self.barred = reply.barred
        self.wish.hear(reply.wanted)

    def _note_unheard(self, why: str) -> None:
        metrics.HEARTBEATS.labels("unheard").inc()
        if self.is_heard:
            log.warning("heartbeat.not_heard", error=why)
        self.is_heard = False
