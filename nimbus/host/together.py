"""One act for many: threads that ask for the same act at the same moment have it done once for all of them.

For acts whose cost is the kernel's own waiting (the end of a link, of a table): fifty in a row wait fifty times. Who
comes first does it for those that come meanwhile; an act that fails for several, or takes too long, is each one's own
again, so that a fault hits nobody but its cause. Called by host_agent/network.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Ticket:
    name: str
    ended: threading.Event = field(default_factory=threading.Event)
    done: bool = False
    error: Exception | None = None


class Together:
    """`act` does all that it is given, or raises; doing one again must be harmless."""

    def __init__(self, act: Callable[[list[str]], None], patience_s: float) -> None:
        self._act = act
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._led = False

    def do(self, name: str) -> None:
        """Have `name` done. Raises what the act raises for it alone."""
        ticket = _Ticket(name)
        with self._lock:
            self._waiting.append(ticket)
            leads, self._led = not self._led, True
        if leads:
            self._lead()
        else:
            ticket.ended.wait(self._patience_s)
        if ticket.error is not None:
            raise ticket.error
        if not ticket.done:  # it failed with others, or whoever leads hangs
            self._act([name])

    def _lead(self) -> None:
        """Round after round, until nobody waits."""
        while True:
            with self._lock:
                tickets, self._waiting = self._waiting, []
                if not tickets:
                    self._led = False
                    return
            self._do_round(tickets)

    def _do_round(self, tickets: list[_Ticket]) -> None:
        try:
            self._act([ticket.name for ticket in tickets])
        except Exception as error:  # noqa: BLE001 - whoever asked for it is told, or tries alone
            if len(tickets) == 1:
                tickets[0].error = error
        else:
            for ticket in tickets:
                ticket.done = True
        finally:
            for ticket in tickets:
                ticket.ended.set()
