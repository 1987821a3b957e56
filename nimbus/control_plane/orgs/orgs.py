"""Orgs as their operators see and limit them: caps, the runner group, their own labels, what GitHub refuses them.

Every read and write is scoped by the caller's org: a tenant sees its own and may not raise what limits it. Never
decides what a label means (model/labels.py) or whose turn it is (leases.py). Called by orgs_api.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from nimbus.control_plane.access import Caller
from nimbus.control_plane.demand.demand import DemandRules, lock_org, rejudge_org
from nimbus.control_plane.jobs.submission import MAX_PRIORITY, check_image
from nimbus.control_plane.jobs.waiting import explain_problem
from nimbus.control_plane.orgs.aliases import CappedAlias, keep_alias, list_aliases, load_aliases, remove_alias
from nimbus.control_plane.services import ADMISSION, MACHINES, RUNNERS, Services
from nimbus.model.errors import Forbidden, NotFound
from nimbus.model.labels import Alias, Arch, LabelRules, check_alias
from nimbus.model.vm import Shape
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import Fields, parse_object
from nimbus.wire.vmjson import Json, render_shape

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "orgs.sql")
CAPS = ("max_machines", "max_cpus")
_LIMITS = (*CAPS, "runner_group_id", "weight")
_OPERATORS = (*CAPS, "weight")  # what only an operator may raise
_ALIAS_FIELDS = frozenset({"cpus", "mem_mib", "disk_mib", "arch", "image", "max_machines", "priority"})
WEIGHTS = (1, 10_000)
DEFAULT_WEIGHT = 100
_MOST = 1_000_000  # machines or CPUs of one org: a larger number is a slip


@dataclass(frozen=True)
class OrgChange:
    """The limits that a request mentions; None takes one away."""

    limits: dict[str, int | None]


def parse_change(body: bytes) -> OrgChange:
    """What a PATCH asks for; Refused with the field's name where it is wrong."""
    fields = parse_object(body, "org")
    fields.refuse_unknown(_LIMITS)
    limits = {name: _limit(fields, name) for name in _LIMITS if fields.mentions(name)}
    return OrgChange(limits)


def _limit(fields: Fields, name: str) -> int | None:
    if name == "weight":
        return fields.integer(name, *WEIGHTS) if fields.has(name) else DEFAULT_WEIGHT
    if not fields.has(name):
        return None
    return fields.integer(name, 0, _MOST) if name in CAPS else fields.integer(name, 1)


def parse_alias(body: bytes, alias: str, rules: LabelRules) -> CappedAlias:
    """The machine that a label of an org is to stand for; Refused where that cannot be."""
    fields = parse_object(body, "label")
    fields.refuse_unknown(_ALIAS_FIELDS)
    image = fields.text("image", 255) if fields.has("image") else None
    if image is not None:
        check_image(image)
    shape = Shape(
        cpus=fields.integer("cpus", 1, _MOST),
        mem_mib=fields.integer("mem_mib", 1, 2**30),
        disk_mib=fields.integer("disk_mib", 1, 2**30) if fields.has("disk_mib") else rules.shape.disk_mib,
    )
    arch = fields.choice("arch", Arch) if fields.has("arch") else Arch.X64
    most = fields.integer("max_machines", 0, _MOST) if fields.has("max_machines") else None
    priority = fields.integer("priority", -MAX_PRIORITY, MAX_PRIORITY) if fields.has("priority") else 0
    parsed = CappedAlias(Alias(alias.lower(), shape, arch, image, priority), most)
    check_alias(parsed.alias, rules)
    return parsed


# --- reading ------------------------------------------------------------------------------------------------------


async def list_orgs(services: Services, caller: Caller) -> list[Json]:
    """The orgs that the caller may see, with what they hold and what GitHub refuses them."""
    return await services.database.run(_list, caller.org_id)


async def _list(transaction: Transaction, caller_org: int | None) -> list[Json]:
    return await _describe(transaction, await transaction.fetch(_SQL["list_orgs"], caller_org))


async def show_org(services: Services, name: str, caller: Caller) -> Json:
    """One org by our id or its login, with its labels; NotFound where the caller has no such org."""
    return await services.database.run(_show, name, caller.org_id)


async def _show(transaction: Transaction, name: str, caller_org: int | None) -> Json:
    row = await require_org(transaction, name, caller_org)
    [org] = await _describe(transaction, [row])
    return {**org, "labels": await _labels(transaction, str(row["org_id"]), caller_org)}


async def list_labels(services: Services, name: str, caller: Caller) -> list[Json]:
    """The org's own labels."""
    return await services.database.run(_labels, name, caller.org_id)


async def _labels(transaction: Transaction, name: str, caller_org: int | None) -> list[Json]:
    row = await require_org(transaction, name, caller_org)
    return [_render_alias(each) for each in await list_aliases(transaction, row["org_id"])]


async def require_org(transaction: Transaction, name: str, caller_org: int | None) -> Row:
    """The org of this id or login; NotFound where the caller has no such org."""
    row = await transaction.fetchrow(_SQL["find_org"], name, caller_org)
    if row is None:
        raise NotFound(f"there is no org {name[:64]}")
    return row


async def _describe(transaction: Transaction, orgs: Sequence[Row]) -> list[Json]:
    ids = [row["org_id"] for row in orgs]
    nothing = {"machines": 0, "cpus": 0, "queued": 0}
    held = {row["org_id"]: row for row in await transaction.fetch(_SQL["count_held"], ids)}
    installations = await transaction.fetch(_SQL["installations"], ids)
    problems = await transaction.fetch(_SQL["problems"], ids)
    return [
        {
            **row,
            "holds": {name: held.get(row["org_id"], nothing)[name] for name in nothing},
            "installations": [_without_org(each) for each in installations if each["org_id"] == row["org_id"]],
            "problems": [_render_problem(each, row["login"]) for each in problems if each["org_id"] == row["org_id"]],
        }
        for row in orgs
    ]


def _without_org(row: Row) -> Json:
    return {name: value for name, value in row.items() if name != "org_id"}


def _render_problem(row: Row, login: str) -> Json:
    return {
        "installation_id": row["installation_id"],
        "repo": row["scope"] or None,
        "kind": row["kind"],
        "task": row["task"],
        "means": explain_problem(row["kind"], login, row["scope"], row["retry_at"]),
        "said": row["said"],
        "since": row["since"].isoformat(),
        "retry_at": None if row["retry_at"] is None else row["retry_at"].isoformat(),
    }


def _render_alias(capped: CappedAlias) -> Json:
    alias = capped.alias
    what = {"arch": alias.arch.value, "image": alias.image, "max_machines": capped.max_machines}
    return {"label": alias.alias, **render_shape(alias.shape), **what, "priority": alias.priority}


# --- writing ------------------------------------------------------------------------------------------------------


async def limit_org(services: Services, name: str, change: OrgChange, caller: Caller) -> Json:
    """Set or take away an org's limits; Forbidden where a tenant would raise its own."""
    org = await services.database.run(_limit_org, name, change, caller.org_id)
    log.info("org.limited", org=org["org_id"], by=caller.subject, **change.limits)
    await services.bell.ring(MACHINES)  # what waited for a cap may go on
    return org


async def _limit_org(transaction: Transaction, name: str, change: OrgChange, caller_org: int | None) -> Json:
    row = await require_org(transaction, name, caller_org)
    await lock_org(transaction, row["org_id"])
    row = await require_org(transaction, str(row["org_id"]), caller_org)  # as it is under the lock
    if caller_org is not None:
        for limit in _OPERATORS:
            if _raises(row[limit], change.limits.get(limit, row[limit])):
                raise Forbidden(f"{limit} of {row['login']} is {row[limit]}: only the operator may raise it")
    limits = {limit: change.limits.get(limit, row[limit]) for limit in _LIMITS}
    await transaction.execute(_SQL["limit_org"], row["org_id"], *limits.values())
    return await _show(transaction, str(row["org_id"]), caller_org)


def _raises(now: int | None, then: int | None) -> bool:
    return now is not None and (then is None or then > now)


async def set_label(services: Services, name: str, capped: CappedAlias, rules: DemandRules, caller: Caller) -> Json:
    """Make or change a label of the org; its queued jobs are judged anew."""
    org_id, queued = await services.database.run(_set_label, name, capped, rules, caller.org_id)
    log.info("org.label_set", org=org_id, label=capped.alias.alias, by=caller.subject, queued=queued)
    await _ring(services)
    return _render_alias(capped)


async def _set_label(
    transaction: Transaction, name: str, capped: CappedAlias, rules: DemandRules, caller_org: int | None
) -> tuple[int, int]:
    org_id: int = (await require_org(transaction, name, caller_org))["org_id"]
    await lock_org(transaction, org_id)
    wanted = capped.alias
    if caller_org is not None and wanted.priority > 0:
        known = (await load_aliases(transaction, org_id)).get(wanted.alias)
        if known is None or wanted.priority > known.priority:
            raise Forbidden(f"the label {wanted.alias}: only the operator may give it a priority above 0")
    await keep_alias(transaction, org_id, capped)
    return org_id, await rejudge_org(transaction, org_id, rules)


async def drop_label(services: Services, name: str, alias: str, rules: DemandRules, caller: Caller) -> None:
    """Take a label away; jobs that still wait for it are refused, and say so."""
    org_id = await services.database.run(_drop_label, name, alias.lower(), rules, caller.org_id)
    log.info("org.label_removed", org=org_id, label=alias.lower(), by=caller.subject)
    await _ring(services)


async def _drop_label(
    transaction: Transaction, name: str, alias: str, rules: DemandRules, caller_org: int | None
) -> int:
    row: Any = await require_org(transaction, name, caller_org)
    await lock_org(transaction, row["org_id"])
    if not await remove_alias(transaction, row["org_id"], alias):
        raise NotFound(f"{row['login']} has no label {alias[:64]}")
    await rejudge_org(transaction, row["org_id"], rules)
    return int(row["org_id"])


async def _ring(services: Services) -> None:
    services.bell.ring_nowait(ADMISSION)  # jobs that were refused may be asked for now
    await services.bell.ring(MACHINES)
    await services.bell.ring(RUNNERS)
