"""The fake GitHub's side of a runner that registers itself by a token, as `config.sh` does: lines of text both ways.

The token says how far it reaches, the url where in there the runner wants to be. `runner_api.py` adds the routes.
"""

# Quart runs a handler that is not async in a thread, and the forge belongs to Trio's thread alone:
# flake8: noqa: ASYNC124

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from quart import Blueprint, Response

from nimbus.model.errors import NotFound, Refused
from nimbus.sim.accounts import Account
from nimbus.sim.callers import read_bearer, read_body
from nimbus.sim.jobs import Runner
from nimbus.sim.rest import check_group
from nimbus.sim.runner_routes import DEFAULT_GROUP, FULL_GROUP, MAX_NAME_CHARS
from nimbus.sim.world import World
from nimbus.wire.github import MAX_LABEL_CHARS, MAX_LABELS

WORK_FOLDER = "_work"
MAX_BODY_BYTES = 64 * 1024
_GROUPS = {"default": DEFAULT_GROUP, "full": FULL_GROUP}  # by name: config.sh knows no ids


def say(*lines: str, status: int = 200) -> Response:
    return Response("".join(f"{line}\n" for line in lines), status, content_type="text/plain; charset=utf-8")


def add_registration_routes(blueprint: Blueprint, world: World) -> None:
    """Register and remove."""

    @blueprint.post("/register")
    async def register() -> Response:
        fields = await _fields()
        registration = world.registrations.check(read_bearer(), removes=False)
        account, scope = _where(world, registration.scope, fields)
        group_id = _GROUPS.get(fields.get("group", "default").lower())
        if group_id is None:
            raise NotFound(f"there is no runner group {fields['group']!r}")
        check_group(account, scope.partition("/")[2], group_id, FULL_GROUP)
        runner = account.forge.register(scope, _name(fields), _labels(fields), group_id, WORK_FOLDER)
        return say("ok", f"token {runner.token}", f"work {runner.work_folder}")

    @blueprint.post("/remove")
    async def remove() -> Response:
        fields = await _fields()
        registration = world.registrations.check(read_bearer(), removes=True)
        account, scope = _where(world, registration.scope, fields)
        runner = _find(account, scope, _name(fields))
        account.forge.delete_runner(scope, runner.runner_id)
        return say("ok")


async def _fields() -> dict[str, str]:
    """The body's lines: a word, and what it is."""
    raw = await read_body()
    if len(raw) > MAX_BODY_BYTES:
        raise Refused("this is too long")
    lines = (line.partition(" ") for line in raw.decode("utf-8", "replace").splitlines())
    return {word: rest.strip() for word, _, rest in lines if rest.strip()}


def _where(world: World, reach: str, fields: Mapping[str, str]) -> tuple[Account, str]:
    """The scope that the url names, if the token reaches it: an organisation's reaches its repositories too."""
    try:
        scope = urlsplit(fields.get("url", "")).path.strip("/") or reach
    except ValueError:
        raise Refused("url: the address of an organisation or a repository is needed") from None
    lowered, reached = scope.lower(), reach.lower()
    if lowered != reached and (("/" in reached) or lowered.partition("/")[0] != reached):
        raise NotFound("Not Found")
    if scope.count("/") > 1:
        raise NotFound("Not Found")
    return world.accounts.installed(scope.partition("/")[0]), scope


def _find(account: Account, scope: str, name: str) -> Runner:
    found = account.forge.runners_of(scope, name)
    if not found:
        raise NotFound(f"there is no runner {name!r}")
    return found[0]


def _name(fields: Mapping[str, str]) -> str:
    name = fields.get("name", "")
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise Refused(f"name: 1 to {MAX_NAME_CHARS} printable characters are needed")
    return name


def _labels(fields: Mapping[str, str]) -> tuple[str, ...]:
    """Exactly these: `--no-default-labels` is how we are called."""
    labels = tuple(label.strip() for label in fields.get("labels", "").split(",") if label.strip())
    if not 0 < len(labels) <= MAX_LABELS or any(len(label) > MAX_LABEL_CHARS for label in labels):
        raise Refused(f"labels: 1 to {MAX_LABELS} are needed")
    return labels
