"""`python -m nimbus.sim.main`: the bundled fake GitHub as a process. SIGTERM and SIGINT end it."""

from __future__ import annotations

import structlog
import trio

from nimbus.runtime.settings import read_settings
from nimbus.runtime.signals import watch_signals
from nimbus.runtime.telemetry import configure_logging
from nimbus.sim.app import serve_sim
from nimbus.sim.settings import SimSettings
from nimbus.sim.world import World

log = structlog.get_logger()


async def run_sim(settings: SimSettings) -> None:
    """Serve until a signal arrives."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, stop)
        urls: list[str] = await nursery.start(serve_sim, World(settings.world_plan()), [settings.sim_bind], stop)
        log.info("sim.serving", urls=urls, public_url=settings.sim_public_url)
        await stop.wait()


def main() -> None:
    settings = read_settings(SimSettings)
    configure_logging(settings.log_level)
    trio.run(run_sim, settings)


if __name__ == "__main__":
    main()
