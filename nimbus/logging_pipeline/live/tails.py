"""What all streams of this process share, opened: the watch over jobs, and what carries rows between replicas.

Called by app.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import trio

from nimbus.logging_pipeline.directory import Directory
from nimbus.logging_pipeline.live.follow import FollowTerms, Surroundings
from nimbus.logging_pipeline.live.hub import Hub, HubTerms
from nimbus.logging_pipeline.live.jobwatch import JobWatch
from nimbus.logging_pipeline.live.relay import open_live_relay
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.revoked import RevokedTokens
from nimbus.logging_pipeline.settings import Settings
from nimbus.logging_pipeline.store.table import LogTable

_LOOKS = 8  # pages that streams read at the same time
_LATE = 3.0  # times the store's limit: the insert before it, its own, and some; later it failed, and comes again


def plan_hub(settings: Settings) -> HubTerms:
    """How much readers may take."""
    return HubTerms(
        readers=settings.logging_tail_limit,
        readers_per_org=settings.logging_tail_org_limit,
        queue_rows=settings.logging_tail_queue_rows,
        queue_bytes=settings.logging_tail_queue_kib * 1024,
    )


@asynccontextmanager
async def open_tails(
    settings: Settings, table: LogTable, hub: Hub, directory: Directory, revoked: RevokedTokens, metrics: Metrics
) -> AsyncIterator[Surroundings]:
    """Everything that a stream works with, for as long as the body runs."""
    terms = FollowTerms(
        heartbeat_s=settings.logging_tail_heartbeat,
        late_s=max(FollowTerms.late_s, _LATE * settings.clickhouse_timeout),
    )
    watch = JobWatch(directory.jobs)
    url = settings.redis_url
    relay = nullcontext() if url is None else open_live_relay(url.get_secret_value(), hub)
    async with relay, trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield Surroundings(table, hub, watch, metrics, revoked.holds, trio.CapacityLimiter(_LOOKS), terms)
        nursery.cancel_scope.cancel()
