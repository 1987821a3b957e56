"""The part of GitHub's REST API that Nimbus uses, with GitHub's statuses and messages (facts 5.1 to 5.6).

Puts the routes together and gives each answer what all have: GitHub's form of an error, the limit's headers, a tag,
a count. `app.py` registers the blueprint.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

from quart import Blueprint, Response, g, request

from nimbus.model.errors import Conflict, Forbidden, NimbusError, NotFound, RateLimited, Refused, Unauthorized
from nimbus.sim.app_routes import add_app_routes
from nimbus.sim.callers import read_bearer
from nimbus.sim.calls import Call
from nimbus.sim.rest import ForbiddenInErrors, reply, tag
from nimbus.sim.run_routes import add_run_routes
from nimbus.sim.runner_routes import add_runner_routes
from nimbus.sim.world import World

_STATUS: tuple[tuple[type[NimbusError], int], ...] = (
    (Unauthorized, 401),
    (RateLimited, 403),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Refused, 422),
)


def github_blueprint(world: World) -> Blueprint:
    """All REST routes over one world."""
    blueprint = Blueprint("github", __name__)

    @blueprint.errorhandler(NimbusError)
    async def refuse(error: NimbusError) -> Response:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        said = {"message": "Forbidden", "errors": str(error)} if isinstance(error, ForbiddenInErrors) else {}
        body = {"message": str(error), "documentation_url": "https://docs.github.com/rest", **said}
        return reply(body | {"status": str(status)}, status)

    @blueprint.after_request
    async def finish(response: Response) -> Response:
        response = await tag(response)
        if "rate" in g:
            for name, value in g.rate.headers().items():
                response.headers.setdefault(name, value)
        world.tally.count(Call(_whose(world), request.method, str(request.url_rule), response.status_code))
        return response

    add_app_routes(blueprint, world)
    add_run_routes(blueprint, world)
    add_runner_routes(blueprint, world)
    return blueprint


def _whose(world: World) -> int | None:
    asked: int | None = (request.view_args or {}).get("installation_id")
    if asked is not None:
        return asked
    try:
        return world.auth.check_token(read_bearer()).installation_id
    except Unauthorized:
        return None
