"""Serves the agent's metrics on loopback, and looks around the host each time it is asked.

What is counted as it happens is in metrics.py; what is counted by looking (claims, slots, use) is looked at for each
request, in a thread, so that the page is never older than its reader. Called by main.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

import structlog
import trio
from hypercorn.config import Config
from prometheus_client import make_asgi_app

from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.metrics import show_census
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.sight.census import take_census
from nimbus.model.errors import NimbusError
from nimbus.runtime.listening import start_hypercorn

log = structlog.get_logger()

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def serve_metrics(
    layout: HostLayout, host: str, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `/metrics` until cancelled; hands over the address."""
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.accesslog = None
    config.errorlog = None
    app = partial(_answer, layout, make_asgi_app())
    async with trio.open_nursery() as nursery:
        binds = await start_hypercorn(nursery, app, config, trio.sleep_forever, "NIMBUS_AGENT_METRICS_PORT")
        task_status.started(binds[0])
        await trio.sleep_forever()


async def _answer(layout: HostLayout, page: Any, scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        try:
            show_census(await in_thread(partial(take_census, layout)))
        except (NimbusError, OSError) as error:
            log.warning("metrics.census_failed", error=str(error))  # the rest of the page is as true as ever
    await page(scope, receive, send)
