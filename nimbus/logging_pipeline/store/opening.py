"""The log store opened: a real ClickHouse server where a URL is set, the embedded engine otherwise.

Called by `app` and by `migrate`; nothing else knows which of the two it is.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nimbus.logging_pipeline.engine.child import Endpoint, serve_engine
from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.table import LogTable

ENGINE_FOLDER = "clickhouse"  # below NIMBUS_STATE_DIR
# at each failure they log the whole address, and what a reader searched for stands in it; store.trouble says it all
_TALKATIVE = ("clickhouse_connect", "urllib3")
_CLOSE_S = 20.0  # above the longest call in flight that matters; the engine's own stop comes after


@asynccontextmanager
async def open_store(settings: StoreSettings) -> AsyncIterator[LogTable]:
    """The table's client for as long as the body runs. A crash of the engine never escapes; a taken folder does."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if settings.clickhouse_url is not None:
        password = settings.clickhouse_password
        endpoint = Endpoint(
            settings.clickhouse_url,
            settings.clickhouse_username or "default",
            "" if password is None else password.get_secret_value(),
        )
        async with _open_table(LogTable(lambda: endpoint, *_names(settings))) as table:
            yield table
        return
    async with trio.open_nursery() as nursery:
        engine = await nursery.start(serve_engine, settings.state_dir / ENGINE_FOLDER)
        async with _open_table(LogTable(lambda: engine.endpoint, *_names(settings))) as table:
            yield table
        nursery.cancel_scope.cancel()


def _names(settings: StoreSettings) -> tuple[str, str, float]:
    return settings.clickhouse_database, settings.clickhouse_table, settings.clickhouse_timeout


@asynccontextmanager
async def _open_table(table: LogTable) -> AsyncIterator[LogTable]:
    try:
        yield table
    finally:
        with trio.move_on_after(_CLOSE_S, shield=True):
            await table.close()
