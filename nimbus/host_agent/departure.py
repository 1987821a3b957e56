"""How this agent is leaving, once it is told to: what its machines ask before they undo anything.

A value with three states and no I/O. Set by orders.py, and by a bug anywhere in the agent; read by ties.py and
machines.py.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


class Order(enum.Enum):
    """What an agent can be told by a signal."""

    DETACH = "detach"  # SIGTERM: stop leasing, leave running jobs to the next agent
    TEAR_DOWN = "tear_down"  # SIGINT: end every machine and give its lease back
    DRAIN = "drain"  # SIGUSR1: stop leasing, wait for the machines, then leave


@dataclass
class Departure:
    """Whether the agent leaves, and whether its machines outlive it."""

    leaving: bool = False
    detaching: bool = False

    def note(self, order: Order) -> None:
        """DETACH or TEAR_DOWN; the first one counts."""
        if not self.leaving:
            self.leaving = True
            self.detaching = order is Order.DETACH


async def leave_on_a_bug(
    departure: Departure, run: Callable[..., Awaitable[None]], *args: object, **options: Any
) -> None:
    """Run it. What escapes ends the agent, but not the machines of others: they are left to the agent that follows."""
    try:
        await run(*args, **options)
    except Exception:
        departure.note(Order.DETACH)
        raise
