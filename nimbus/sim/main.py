"""`python -m nimbus.sim.main`: the bundled fake GitHub as a process. SIGTERM and SIGINT end it."""

from __future__ import annotations

import sys

import structlog
import trio

from nimbus.model.errors import NimbusError
from nimbus.runtime.listening import run_room
from nimbus.runtime.masking import mask_text
from nimbus.runtime.settings import read_settings
from nimbus.runtime.signals import watch_signals
from nimbus.runtime.telemetry import configure_logging
from nimbus.sim.app import serve_sim
from nimbus.sim.settings import SimSettings
from nimbus.sim.world import World, WorldPlan

log = structlog.get_logger()


async def run_sim(plan: WorldPlan, bind: str) -> None:
    """Serve until a signal arrives."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, stop)
        urls: list[str] = await nursery.start(serve_sim, World(plan), [bind], stop)
        log.info("sim.serving", urls=urls, public_url=plan.public_url)
        await stop.wait()


def main() -> int:
    """Exit 0 after a signal, 1 where the address cannot be had, 2 where a setting is wrong."""
    settings = read_settings(SimSettings)
    configure_logging(settings.log_level)
    try:
        plan = settings.world_plan()
    except NimbusError as error:
        print(mask_text(str(error)), file=sys.stderr)  # noqa: T201 -- the operator's terminal
        return error.exit_code
    return run_room("sim", run_sim, plan, settings.sim_bind)


if __name__ == "__main__":
    raise SystemExit(main())
