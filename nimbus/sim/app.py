"""The fake GitHub as one application, and its nursery: server, webhook sender, sweeper, writer of its memory.

`main.py` runs it from the settings; tests and the rehearsal run it inside their own nursery.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio
from quart import Response, request

from nimbus.runtime.http import open_http
from nimbus.runtime.serving import App, build_app, json_response, serve_app
from nimbus.sim.control_api import control_blueprint
from nimbus.sim.deliveries import ANSWER_WITHIN_S
from nimbus.sim.faults_rest import strike_rest
from nimbus.sim.github_api import github_blueprint
from nimbus.sim.runner_api import runner_blueprint
from nimbus.sim.world import World

SWEEP_EVERY_S = 1.0
GRACEFUL_S = 1.0  # what is in flight at a stop is a long poll of a runner, which asks again


def create_app(world: World) -> App:
    """All routes over one world."""
    app = build_app("nimbus-sim")
    app.register_blueprint(github_blueprint(world))
    app.register_blueprint(runner_blueprint(world))
    app.register_blueprint(control_blueprint(world))

    async def healthz() -> Response:
        return json_response({"status": "ok"})

    app.add_url_rule("/healthz", "healthz", healthz)

    @app.after_request
    async def keep(response: Response) -> Response:
        if request.method not in {"GET", "HEAD"}:
            await world.memory.wait_written()  # whoever was told of a change finds it again after a SIGKILL
        return response

    strike_rest(app, world)
    return app


async def serve_sim(
    world: World,
    binds: Sequence[str],
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; hands over the URLs it listens on. An earlier sim's world is taken up first."""
    await world.memory.recall()
    async with open_http(read_s=ANSWER_WITHIN_S) as client, trio.open_nursery() as nursery:
        nursery.start_soon(world.deliveries.run_sender, client, world.memory.wait_written)
        nursery.start_soon(world.memory.run_writer)
        nursery.start_soon(_sweep, world)
        async with trio.open_nursery() as server:
            serve = partial(serve_app, create_app(world), binds, stop, graceful_s=GRACEFUL_S, setting="NIMBUS_SIM_BIND")
            urls: list[str] = await server.start(serve)
            task_status.started(urls)
        with trio.move_on_after(GRACEFUL_S):
            await world.memory.wait_written()
        nursery.cancel_scope.cancel()


async def _sweep(world: World) -> None:
    while True:
        world.sweep()
        await trio.sleep(SWEEP_EVERY_S)
