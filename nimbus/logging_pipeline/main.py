"""The logging pipeline's process: `python -m nimbus.logging_pipeline.main`, or Hypercorn with `-k trio` on `main:app`.

Reads the settings once, configures the logs, and holds the nursery: signals -> stop event -> serve until done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from nimbus.logging_pipeline.app import open_app
from nimbus.logging_pipeline.settings import Settings
from nimbus.runtime.listening import run_room
from nimbus.runtime.serving import App, LazyApp, serve_app
from nimbus.runtime.settings import read_settings, unknown_variables
from nimbus.runtime.signals import watch_signals
from nimbus.runtime.telemetry import configure_logging

GRACEFUL_S = 5.0  # an insert takes milliseconds; streams never end by themselves and may be cut: they resume
log = structlog.get_logger()


def _prepare() -> Settings:
    settings = read_settings(Settings)
    configure_logging(settings.log_level)
    for name in unknown_variables([Settings]):
        log.warning("setting.unknown", name=name)
    return settings


@asynccontextmanager
async def _open_for_server() -> AsyncIterator[App]:
    async with open_app(_prepare()) as pipeline:
        yield pipeline


app = LazyApp(_open_for_server)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, stop)
        async with open_app(settings) as pipeline, trio.open_nursery() as serving:
            serve = partial(serve_app, graceful_s=GRACEFUL_S, setting="NIMBUS_LOGGING_BIND")
            binds = await serving.start(serve, pipeline, [settings.logging_bind], stop)
            log.info("logging_pipeline.ready", binds=binds)
        nursery.cancel_scope.cancel()
    log.info("logging_pipeline.stopped")


def main() -> int:
    """Exit 0 after a signal, 1 where the store is away or the port is taken, 2 where a setting is wrong."""
    return run_room("logging pipeline", run, _prepare())


if __name__ == "__main__":
    raise SystemExit(main())
