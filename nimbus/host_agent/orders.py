"""What signals mean to an agent: SIGTERM detach, SIGINT tear down, SIGUSR1 drain.

Stops the leasing at once, whatever the order; the first of DETACH and TEAR_DOWN decides what becomes of the machines,
and later signals change nothing: an impatient second one must not cut a teardown short. Called by main.py.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

import structlog
import trio

from nimbus.host_agent.departure import Departure, Order

log = structlog.get_logger()

LEAVE_S = 4.5
ORDERS = {signal.SIGTERM: Order.DETACH, signal.SIGINT: Order.TEAR_DOWN, signal.SIGUSR1: Order.DRAIN}


async def obey_signals(
    departure: Departure,
    leasing: trio.CancelScope,
    working: trio.CancelScope,
    limit_leaving: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled: end `leasing` at the first order, and `working` unless it is to drain.

    `limit_leaving` is called once, when the agent begins to detach. When this has ended the agent is leaving, and a
    signal that comes then is ignored.
    """
    for obeyed in ORDERS:
        signal.signal(obeyed, signal.SIG_IGN)  # what the receiver puts back at its end: no moment lies between
    with trio.open_signal_receiver(*ORDERS) as received:
        task_status.started()
        async for number in received:
            order = ORDERS[signal.Signals(number)]
            log.info("agent.told", order=order.value)
            leasing.cancel()
            if order is not Order.DRAIN:
                if order is Order.DETACH and not departure.leaving:
                    limit_leaving()
                departure.note(order)
                working.cancel()


def limit_leaving() -> None:
    """An agent that detaches is gone in 5 s, whatever hangs: what it did not get done, the next one does."""
    timer = threading.Timer(LEAVE_S, _leave_now)
    timer.daemon = True
    timer.start()


def _leave_now() -> None:
    log.warning("agent.stopped", why=f"something took longer than {LEAVE_S:g} s: it is left to the next agent")
    sys.stdout.flush()
    os._exit(0)  # past threads that sit in the kernel there is no other way
