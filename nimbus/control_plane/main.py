"""The control plane's process: `python -m nimbus.control_plane.main`, or Hypercorn with `-k trio` on `main:app`.

Reads the settings once, configures the logs, and holds the nursery: signals -> stop event -> serve until done.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from nimbus.control_plane.app import open_app
from nimbus.control_plane.settings import Settings
from nimbus.runtime.listening import run_room
from nimbus.runtime.serving import App, LazyApp, serve_app
from nimbus.runtime.settings import read_settings, unknown_variables
from nimbus.runtime.signals import watch_signals
from nimbus.runtime.telemetry import configure_logging

log = structlog.get_logger()


def _prepare() -> Settings:
    settings = read_settings(Settings)
    configure_logging(settings.log_level)
    for name in unknown_variables([Settings]):
        log.warning("setting.unknown", name=name)
    return settings


def _settle() -> None:
    """What is here by now stays: each full collection looked through it again, and answers waited 40 ms for that."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _open_for_server() -> AsyncIterator[App]:
    async with open_app(_prepare(), trio.Event()) as app:
        _settle()
        yield app


app = LazyApp(_open_for_server)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = trio.Event()
    async with open_app(settings, stop) as control_plane, trio.open_nursery() as nursery:
        await nursery.start(watch_signals, stop)
        _settle()
        serve = partial(serve_app, setting="NIMBUS_CONTROL_PLANE_BIND")
        binds = await nursery.start(serve, control_plane, [settings.control_plane_bind], stop)
        log.info("control_plane.ready", binds=binds)
    log.info("control_plane.stopped")


def main() -> int:
    """Exit 0 after a signal, 1 where a service is away or the port is taken, 2 where a setting is wrong."""
    return run_room("control plane", run, _prepare())


if __name__ == "__main__":
    raise SystemExit(main())
