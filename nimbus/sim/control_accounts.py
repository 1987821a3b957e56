"""The rehearsal's own API, where it is about accounts: suspend, remove and refuse the App, archive, count calls.

`control_api.py` guards these routes and adds them to its own. GitHub has no such routes.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict

from quart import Blueprint, Response

from nimbus.model.errors import Refused
from nimbus.sim.accounts import WHOLE, Account, Refusal
from nimbus.sim.callers import read_body
from nimbus.sim.payloads import Json, render_ping, render_runner
from nimbus.sim.world import World
from nimbus.wire.github import parse_json_object

SUSPENDED = "suspended"  # a state of the installation, set like a refusal and always of the whole account
_WHOLE_ONLY = frozenset({SUSPENDED, Refusal.IP_ALLOW_LIST.value})
_STATES = frozenset({SUSPENDED, *(refusal.value for refusal in Refusal)})
_REPO = re.compile(r"[A-Za-z0-9._-]{1,100}")


def check_repo(name: object) -> str:
    """The name itself; Refused where it is none, or one with an owner."""
    if not isinstance(name, str) or not _REPO.fullmatch(name) or name in {".", ".."}:
        raise Refused("repo: the name of a repository without its owner is needed")
    return name


def add_account_routes(blueprint: Blueprint, world: World) -> None:
    """Installations, refusals, repositories, and what was asked of us."""
    _add_installation_routes(blueprint, world)
    _add_state_routes(blueprint, world)
    _add_stats_routes(blueprint, world)


def _add_installation_routes(blueprint: Blueprint, world: World) -> None:
    @blueprint.post("/installation")
    async def set_installation() -> Response:
        body = await _fields("owner", "suspended", "installed")
        account = world.accounts.named(_owner(body))
        asked = {name: _flag(body, name) for name in ("installed", SUSPENDED) if name in body}
        if not asked:
            raise Refused("suspended or installed: true or false is needed")
        if "installed" in asked:
            world.accounts.install(account, installed=asked["installed"])
        if SUSPENDED in asked:
            world.accounts.suspend(account, time.time() if asked[SUSPENDED] else None)
        return _reply(_render_account(account))

    @blueprint.post("/ping")
    async def ping() -> Response:
        world.deliveries.add("ping", None, render_ping(world.plan.app_id))
        return _reply({}, 202)

    @blueprint.post("/repos")
    async def set_repo() -> Response:
        body = await _fields("owner", "repo", "archived")
        account = world.accounts.named(_owner(body))
        repo = account.forge.archive(check_repo(body.get("repo")), archived=_flag(body, "archived"))
        return _reply({"repo": repo.full_name, "archived": repo.name.lower() in account.forge.archived})


def _add_state_routes(blueprint: Blueprint, world: World) -> None:
    @blueprint.get("/account")
    async def list_accounts() -> Response:
        return _reply({"accounts": [_render_account(account) for account in world.accounts]})

    @blueprint.post("/account")
    async def set_states() -> Response:
        body = await _fields("owner", "repo", "states")
        account = world.accounts.named(_owner(body))
        repo = check_repo(body["repo"]) if body.get("repo") is not None else WHOLE
        states = _states(body.get("states"), whole=repo == WHOLE)
        if repo == WHOLE:
            world.accounts.suspend(account, time.time() if SUSPENDED in states else None)
        lacked = account.refuses(Refusal.NO_PERMISSION, WHOLE)
        account.refuse(repo, frozenset(Refusal(state) for state in states - {SUSPENDED}))
        if lacked and not account.refuses(Refusal.NO_PERMISSION, WHOLE):
            world.accounts.tell(account, "new_permissions_accepted")
        world.memory.note()
        return _reply(_render_account(account))


def _add_stats_routes(blueprint: Blueprint, world: World) -> None:
    @blueprint.get("/stats")
    async def show_stats() -> Response:
        installations = [
            {"installation_id": account.installation_id, "owner": account.owner}
            | world.tally.summary(account.installation_id)
            for account in world.accounts
        ]
        calls = [{**asdict(call), "count": count} for call, count in world.tally.calls()]
        return _reply({"calls": calls, "installations": installations, "runners": list(_registered(world))})

    @blueprint.delete("/stats")
    async def clear_stats() -> Response:
        world.tally.clear()
        return _reply({})


def _registered(world: World) -> Iterator[Json]:
    """Every registration that exists: once all is over, each of them is a leak."""
    for account in world.accounts:
        for runner in account.forge.runners.values():
            seen_at_ms = None if runner.seen_at_s is None else int(runner.seen_at_s * 1000)
            times = {"registered_at_ms": int(runner.registered_at_s * 1000), "seen_at_ms": seen_at_ms}
            yield {**render_runner(runner), "scope": runner.scope, **times}


def _render_account(account: Account) -> Json:
    return {
        "owner": account.owner,
        "installation_id": account.installation_id,
        "installed": not account.removed,
        "suspended": account.suspended_at_s is not None,
        "refusals": {scope: sorted(refusals) for scope, refusals in sorted(account.refusals.items())},
        "repositories": [
            {"name": repo.name, "archived": repo.name.lower() in account.forge.archived}
            for repo in account.forge.repos.values()
        ],
    }


async def _fields(*known: str) -> dict[str, object]:
    body = parse_json_object(await read_body())
    for name in body:
        if name not in known:
            raise Refused(f"{name[:100]!r} is unknown here: {', '.join(known)} are known")
    return body


def _owner(body: dict[str, object]) -> str | None:
    owner = body.get("owner")
    if owner is not None and not isinstance(owner, str):
        raise Refused("owner: the name of an organisation is needed")
    return owner


def _flag(body: dict[str, object], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool):
        raise Refused(f"{name}: true or false is needed")
    return value


def _states(asked: object, *, whole: bool) -> frozenset[str]:
    """The complete list of what holds from now on for the scope."""
    if not isinstance(asked, list) or not all(isinstance(state, str) and state in _STATES for state in asked):
        raise Refused(f"states: a list of {', '.join(sorted(_STATES))} is needed")
    states = frozenset(str(state) for state in asked)
    if not whole and states & _WHOLE_ONLY:
        raise Refused(f"{', '.join(sorted(states & _WHOLE_ONLY))}: is of a whole account, never of one repository")
    return states


def _reply(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, content_type="application/json")
