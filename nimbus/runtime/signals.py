"""SIGTERM and SIGINT as an event. Never exits by itself: the caller decides what stopping means.

Called by each room's `main`.
"""

from __future__ import annotations

import signal

import trio


async def watch_signals(stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Set `stop` at the first SIGTERM or SIGINT and return; a second one has its default effect again."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for _ in received:
            stop.set()
            return
