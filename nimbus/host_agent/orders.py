"""What signals mean to an agent: SIGTERM detach, SIGINT tear down, SIGUSR1 drain.

Stops the leasing at once, whatever the order; the first of DETACH and TEAR_DOWN decides what becomes of the machines,
and later signals change nothing: an impatient second one must not cut a teardown short. Called by main.py.
"""

from __future__ import annotations

import signal

import structlog
import trio

from nimbus.host_agent.departure import Departure, Order

log = structlog.get_logger()

ORDERS = {signal.SIGTERM: Order.DETACH, signal.SIGINT: Order.TEAR_DOWN, signal.SIGUSR1: Order.DRAIN}


async def obey_signals(
    departure: Departure,
    leasing: trio.CancelScope,
    working: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled: end `leasing` at the first order, and `working` unless it is to drain."""
    with trio.open_signal_receiver(*ORDERS) as received:
        task_status.started()
        async for number in received:
            order = ORDERS[signal.Signals(number)]
            log.info("agent.told", order=order.value)
            leasing.cancel()
            if order is not Order.DRAIN:
                departure.note(order)
                working.cancel()
