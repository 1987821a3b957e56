"""What the operator wants of this host, as the last heartbeat heard it: which of the agent's tasks run because of it.

Never asks for it and never ends a running job: a host that is cordoned takes no new one, a host that is drained gives
up its pool too. Survives nothing: the control plane keeps it, and grants nothing to such a host whatever it does here.
Set by heartbeat.py, obeyed in main.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from nimbus.wire.heartbeat import Wanted

log = structlog.get_logger()

LEASING = frozenset({Wanted.WORKING})
POOLING = frozenset({Wanted.WORKING, Wanted.CORDONED})


class Pulse:
    """Something of this host has changed: the next heartbeat need not wait for its time."""

    def __init__(self) -> None:
        self._changed = trio.Event()

    def note(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        """Until something has changed since the last time this returned."""
        await self._changed.wait()
        self._changed = trio.Event()


class Wish:
    """See the module. Until a heartbeat is answered the host is taken to be wanted."""

    def __init__(self, pulse: Pulse) -> None:
        self.wanted = Wanted.WORKING
        self._pulse = pulse
        self._changed = trio.Event()

    def hear(self, wanted: Wanted) -> None:
        """The control plane's word, at each heartbeat."""
        if wanted is self.wanted:
            return
        log.info("agent.wanted", wanted=wanted.value, before=self.wanted.value)
        self.wanted = wanted
        self._pulse.note()
        self._changed.set()
        self._changed = trio.Event()

    async def run_while(self, allowed: frozenset[Wanted], run: Callable[[], Awaitable[None]]) -> None:
        """Run it whenever the wish is one of these: cancelled when it is not, begun anew when it is again."""
        has_ended = False
        while not has_ended:
            await self._wait(lambda: self.wanted in allowed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_end, allowed, nursery.cancel_scope)
                try:
                    await run()
                    has_ended = True
                finally:
                    self._pulse.note()
                nursery.cancel_scope.cancel()

    async def _cancel_at_end(self, allowed: frozenset[Wanted], scope: trio.CancelScope) -> None:
        await self._wait(lambda: self.wanted not in allowed)
        scope.cancel()

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()
