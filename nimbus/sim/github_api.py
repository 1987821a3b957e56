"""The part of GitHub's REST API that Nimbus uses, with GitHub's statuses and messages (facts 5.1 to 5.4).

App JWT: installation tokens and hook deliveries. Installation token: just-in-time runners, listing,
deleting. Paths, bodies and errors are GitHub's; `app.py` registers the blueprint. It holds no state.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import json
from collections.abc import Mapping

from quart import Blueprint, Response, request

from nimbus.model.errors import Conflict, Forbidden, NimbusError, NotFound, RateLimited, Refused, Unauthorized
from nimbus.sim.app_auth import InstallationToken
from nimbus.sim.callers import read_bearer, read_body
from nimbus.sim.deliveries import Delivery
from nimbus.sim.jobs import Runner
from nimbus.sim.payloads import Json, iso_time, render_runner
from nimbus.sim.world import World
from nimbus.wire.github import MAX_LABELS, encode_jit_config, parse_json_object

DEFAULT_GROUP = 1
FORBIDDEN_GROUP = 2  # exists, but the App may not administer it
_STATUS: tuple[tuple[type[NimbusError], int], ...] = (
    (Unauthorized, 401),
    (RateLimited, 403),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Refused, 422),
)


def _reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers=dict(headers or {}), content_type="application/json")


async def _body() -> dict[str, object]:
    raw = await read_body()
    return parse_json_object(raw) if raw.strip() else {}


def github_blueprint(world: World) -> Blueprint:
    """All REST routes over one world."""
    blueprint = Blueprint("github", __name__)

    @blueprint.errorhandler(NimbusError)
    async def refuse(error: NimbusError) -> Response:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        headers = world.rate.headers() if isinstance(error, RateLimited) else {}
        return _reply({"message": str(error), "documentation_url": "https://docs.github.com/rest"}, status, headers)

    _add_app_routes(blueprint, world)
    _add_hook_routes(blueprint, world)
    _add_runner_routes(blueprint, world)
    return blueprint


def _add_app_routes(blueprint: Blueprint, world: World) -> None:
    auth, plan = world.auth, world.plan

    @blueprint.get("/orgs/<owner>/installation")
    @blueprint.get("/repos/<owner>/<repo>/installation")
    async def find_installation(owner: str, repo: str = "") -> Response:
        del repo  # the App is installed on all repositories
        auth.check_app(read_bearer())
        if owner.lower() != plan.owner.lower():
            raise NotFound("Not Found")
        return _reply({"id": plan.installation_id, "account": {"login": plan.owner}, "app_id": plan.app_id})

    @blueprint.post("/app/installations/<int:installation_id>/access_tokens")
    async def mint_token(installation_id: int) -> Response:
        auth.check_app(read_bearer())
        if installation_id != plan.installation_id:
            raise NotFound("Not Found")
        asked = await _body()
        minted = auth.mint(asked.get("permissions"), asked.get("repositories"))
        reply = {
            "token": minted.token,
            "expires_at": iso_time(minted.expires_at_s),
            "permissions": dict(minted.permissions),
            "repository_selection": "all",
        }
        return _reply(reply, 201)


def _add_hook_routes(blueprint: Blueprint, world: World) -> None:
    auth, deliveries = world.auth, world.deliveries

    @blueprint.get("/app/hook/deliveries")
    async def list_deliveries() -> Response:
        auth.check_app(read_bearer())
        count = min(max(request.args.get("per_page", 30, type=int), 1), 100)
        newest = deliveries.newest(count, request.args.get("cursor", type=int))
        return _reply([_render_delivery(each) for each in newest])

    @blueprint.post("/app/hook/deliveries/<int:delivery_id>/attempts")
    async def redeliver(delivery_id: int) -> Response:
        auth.check_app(read_bearer())
        deliveries.redeliver(delivery_id)
        return _reply({}, 202)


def _add_runner_routes(blueprint: Blueprint, world: World) -> None:
    forge = world.forge
    roots = ("/orgs/<owner>/actions/runners", "/repos/<owner>/<repo>/actions/runners")

    async def generate_jitconfig(owner: str, repo: str = "") -> Response:
        scope = _enter(world, owner, repo, write=True)
        name, labels, group_id, work_folder = _jit_request(await _body())
        runner = forge.register(scope, name, labels, group_id, work_folder)
        config = encode_jit_config(render_jit_files(runner, world.plan.public_url))
        return _reply({"runner": render_runner(runner), "encoded_jit_config": config}, 201, world.rate.headers())

    async def list_runners(owner: str, repo: str = "") -> Response:
        found = forge.runners_of(_enter(world, owner, repo, write=False), request.args.get("name"))
        size = min(max(request.args.get("per_page", 30, type=int), 1), 100)
        first = (max(request.args.get("page", 1, type=int), 1) - 1) * size
        body = {"total_count": len(found), "runners": [render_runner(each) for each in found[first : first + size]]}
        return _reply(body, 200, world.rate.headers())

    async def show_runner(owner: str, runner_id: int, repo: str = "") -> Response:
        runner = forge.runner_of(_enter(world, owner, repo, write=False), runner_id)
        return _reply(render_runner(runner), 200, world.rate.headers())

    async def delete_runner(owner: str, runner_id: int, repo: str = "") -> Response:
        forge.delete_runner(_enter(world, owner, repo, write=True), runner_id)
        return Response("", 204, headers=world.rate.headers())

    for number, root in enumerate(roots):
        blueprint.add_url_rule(f"{root}/generate-jitconfig", f"jit{number}", generate_jitconfig, methods=["POST"])
        blueprint.add_url_rule(root, f"list{number}", list_runners, methods=["GET"])
        blueprint.add_url_rule(f"{root}/<int:runner_id>", f"show{number}", show_runner, methods=["GET"])
        blueprint.add_url_rule(f"{root}/<int:runner_id>", f"delete{number}", delete_runner, methods=["DELETE"])


def _enter(world: World, owner: str, repo: str, *, write: bool) -> str:
    """The scope that the path names, if the request's token reaches it."""
    token: InstallationToken = world.auth.check_token(read_bearer())
    world.rate.count()
    if owner.lower() != world.plan.owner.lower():
        raise NotFound("Not Found")  # another account's: GitHub does not say that it exists
    needed = "administration" if repo else "organization_self_hosted_runners"
    if write and not token.may_write(needed):
        raise Forbidden("Resource not accessible by integration")
    return f"{owner}/{repo}" if repo else owner


def _jit_request(body: Mapping[str, object]) -> tuple[str, tuple[str, ...], int, str]:
    name, labels, group_id = body.get("name"), body.get("labels"), body.get("runner_group_id")
    work_folder = body.get("work_folder", "_work")
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        raise Refused("Invalid request.\n\nname: a text of 1 to 64 characters is needed.")
    if not isinstance(group_id, int) or isinstance(group_id, bool):
        raise Refused('Invalid request.\n\n"runner_group_id" wasn\'t supplied.')
    if not isinstance(labels, list) or not 0 < len(labels) <= MAX_LABELS:
        raise Refused(f"Invalid request.\n\nlabels: 1 to {MAX_LABELS} are needed.")
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise Refused("Invalid request.\n\nlabels: each must be text.")
    if not isinstance(work_folder, str):
        raise Refused("Invalid request.\n\nwork_folder: text is needed.")
    if any("\ud800" <= char <= "\udfff" for char in "".join([name, work_folder, *labels])):
        raise Refused("Invalid request.\n\nname, labels and work_folder: half of a character cannot be part of them.")
    if group_id == FORBIDDEN_GROUP:
        raise Forbidden("Resource not accessible by integration")
    if group_id != DEFAULT_GROUP:
        raise NotFound("Runner group not found")
    return name, tuple(labels), group_id, work_folder


def render_jit_files(runner: Runner, server_url: str) -> dict[str, bytes]:
    """A runner's own files; one key a line, so that a shell script can read them with sed."""
    settings = {
        "agentId": runner.runner_id,
        "agentName": runner.name,
        "poolId": runner.group_id,
        "serverUrl": server_url.rstrip("/"),
        "workFolder": runner.work_folder,
        "ephemeral": True,
    }
    credentials = {"scheme": "Bearer", "token": runner.token}
    return {".runner": _lines(settings), ".credentials": _lines(credentials)}


def _lines(value: Json | dict[str, str]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _render_delivery(delivery: Delivery) -> Json:
    return {
        "id": delivery.delivery_id,
        "guid": delivery.guid,
        "delivered_at": iso_time(delivery.delivered_at_s),
        "redelivery": delivery.redelivery,
        "duration": round(delivery.duration_s, 3),
        "status": delivery.status,
        "status_code": delivery.status_code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation_id,
        "repository_id": None,
    }
