"""REST for runners: just-in-time configs, registration tokens, listing and deleting (facts 5.3, 5.4).

Paths, bodies and errors are GitHub's. It holds no state; `github_api.py` adds the routes.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import json
from collections.abc import Mapping

from quart import Blueprint, Response, request

from nimbus.model.errors import Forbidden, NotFound, Refused
from nimbus.sim.jobs import Runner
from nimbus.sim.payloads import Json, iso_time, render_runner
from nimbus.sim.rest import NO_PERMISSION, check_group, enter_runners, page_of, read_json, reply
from nimbus.sim.world import World
from nimbus.wire.github import MAX_LABELS, encode_jit_config

DEFAULT_GROUP = 1
FORBIDDEN_GROUP = 2  # exists, but the App may not administer it
FULL_GROUP = 3
MAX_NAME_CHARS = 64


def add_runner_routes(blueprint: Blueprint, world: World) -> None:
    """For repositories and organisations alike."""
    for number, root in enumerate(("/orgs/<owner>/actions/runners", "/repos/<owner>/<repo>/actions/runners")):
        _add_minting(blueprint, world, root, number)
        _add_looking(blueprint, world, root, number)


def _add_minting(blueprint: Blueprint, world: World, root: str, number: int) -> None:
    async def generate_jitconfig(owner: str, repo: str = "") -> Response:
        account = enter_runners(world, owner, repo, write=True)
        name, labels, group_id, work_folder = _jit_request(await read_json())
        check_group(account, repo, group_id, FULL_GROUP)
        runner = account.forge.register(_scope(owner, repo), name, labels, group_id, work_folder)
        config = encode_jit_config(render_jit_files(runner, world.plan.public_url))
        return reply({"runner": render_runner(runner), "encoded_jit_config": config}, 201)

    async def issue(owner: str, repo: str, *, removes: bool) -> Response:
        account = enter_runners(world, owner, repo, write=True)
        issued = world.registrations.issue(_scope(account.owner, repo), removes=removes)
        world.memory.note()
        return reply({"token": issued.token, "expires_at": iso_time(issued.expires_at_s)}, 201)

    async def registration_token(owner: str, repo: str = "") -> Response:
        return await issue(owner, repo, removes=False)

    async def remove_token(owner: str, repo: str = "") -> Response:
        return await issue(owner, repo, removes=True)

    blueprint.add_url_rule(f"{root}/generate-jitconfig", f"jit{number}", generate_jitconfig, methods=["POST"])
    blueprint.add_url_rule(f"{root}/registration-token", f"token{number}", registration_token, methods=["POST"])
    blueprint.add_url_rule(f"{root}/remove-token", f"remove{number}", remove_token, methods=["POST"])


def _add_looking(blueprint: Blueprint, world: World, root: str, number: int) -> None:
    async def list_runners(owner: str, repo: str = "") -> Response:
        account = enter_runners(world, owner, repo, write=False)
        there = account.forge.runners_of(_scope(owner, repo), request.args.get("name"))
        found = world.bad_runners.seen(there, account.forge.now_s())
        page, links = page_of(found)
        return reply({"total_count": len(found), "runners": [render_runner(each) for each in page]}, headers=links)

    async def show_runner(owner: str, runner_id: int, repo: str = "") -> Response:
        account = enter_runners(world, owner, repo, write=False)
        return reply(render_runner(account.forge.runner_of(_scope(owner, repo), runner_id)))

    async def delete_runner(owner: str, runner_id: int, repo: str = "") -> Response:
        account = enter_runners(world, owner, repo, write=True)
        account.forge.delete_runner(_scope(owner, repo), runner_id)
        return Response("", 204)

    blueprint.add_url_rule(root, f"list{number}", list_runners, methods=["GET"])
    blueprint.add_url_rule(f"{root}/<int:runner_id>", f"show{number}", show_runner, methods=["GET"])
    blueprint.add_url_rule(f"{root}/<int:runner_id>", f"delete{number}", delete_runner, methods=["DELETE"])


def _scope(owner: str, repo: str) -> str:
    return f"{owner}/{repo}" if repo else owner


def _jit_request(body: Mapping[str, object]) -> tuple[str, tuple[str, ...], int, str]:
    name, labels, group_id = body.get("name"), body.get("labels"), body.get("runner_group_id")
    work_folder = body.get("work_folder", "_work")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise Refused(f"Invalid request.\n\nname: a text of 1 to {MAX_NAME_CHARS} characters is needed.")
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
        raise Forbidden(NO_PERMISSION)
    if group_id not in {DEFAULT_GROUP, FULL_GROUP}:
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
