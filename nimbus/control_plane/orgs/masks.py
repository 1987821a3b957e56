"""What orgs register to be hidden in their jobs' output. Values come in and go to services, never back to people.

Every write is scoped by the caller's org. Values are sealed in the database (seals.py), never logged and in no error.
Called by masks_api.py, and by app.py when it starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import structlog

from nimbus.control_plane.access import Caller
from nimbus.control_plane.demand.demand import lock_org
from nimbus.control_plane.orgs.orgs import require_org
from nimbus.control_plane.orgs.seals import Sealed, Seals
from nimbus.control_plane.services import Services
from nimbus.model.errors import Conflict, NotFound, Refused
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import parse_object
from nimbus.wire.vmjson import Json

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MIN_CHARS = 8  # of a line: a shorter one would hide half of every log
LINE_PATTERN = r"[^\s\u0000][^\r\n\u0000]{6,}[^\s\u0000]"  # so many, without blanks around
MAX_VALUE_CHARS = 16 * 1024
# of one org: the log pipeline looks for all of them in every line
MAX_MASKS = 200
MAX_BYTES = 128 * 1024
MAX_LINES = 1000
_NAME = re.compile(NAME_PATTERN)
_LINE = re.compile(r"[\r\n]+")
_SQL = load_queries("nimbus.control_plane", "queries", "masks.sql")
log = structlog.get_logger()


@dataclass(frozen=True)
class Mask:
    """A value to hide."""

    name: str
    value: str = field(repr=False)
    lines: int  # of it, that are long enough to be hidden

    @property
    def size_bytes(self) -> int:
        return len(self.value.encode())


def parse_mask(body: bytes, name: str) -> Mask:
    """What a request registers; Refused, without a word of the value, where it cannot be hidden."""
    if _NAME.fullmatch(name) is None:
        raise Refused("a mask's name is 1 to 64 letters, digits, dots, dashes and underscores, the first no sign")
    fields = parse_object(body, "the mask")
    fields.refuse_unknown({"value"})
    value = fields.text("value", MAX_VALUE_CHARS).strip()
    if re.search(LINE_PATTERN, value) is None:
        raise Refused(
            f"the mask's value needs a line of {MIN_CHARS} characters at least: a shorter one is in every log"
        )
    lines = sum(len(line.strip().encode()) >= MIN_CHARS for line in _LINE.split(value))
    return Mask(name, value, lines)


def _place(org_id: int, name: str) -> str:
    return f"org_masks/{org_id}/{name}"


async def list_masks(services: Services, org: str, caller: Caller) -> list[Json]:
    """What the org registered: names, sizes and times."""
    return await services.database.run(_list, org, caller.org_id)


async def _list(transaction: Transaction, org: str, caller_org: int | None) -> list[Json]:
    row = await require_org(transaction, org, caller_org)
    return [_render(each) for each in await transaction.fetch(_SQL["list_masks"], row["org_id"])]


def _render(row: Row) -> Json:
    times = {name: row[name].isoformat() for name in ("created_at", "changed_at")}
    return {"name": row["name"], "bytes": row["size_bytes"], "lines": row["lines"], **times}


async def set_mask(services: Services, org: str, mask: Mask, caller: Caller) -> Json:
    """Register a value, or another one in its place; Conflict where the org has as much as it may have."""
    org_id, told = await services.database.run(_set, org, mask, services.seals, caller.org_id)
    log.info("org.mask_set", org=org_id, mask=mask.name, by=caller.subject)
    return told


async def _set(
    transaction: Transaction, org: str, mask: Mask, seals: Seals, caller_org: int | None
) -> tuple[int, Json]:
    org_id: int = (await require_org(transaction, org, caller_org))["org_id"]
    await lock_org(transaction, org_id)
    others = await transaction.fetchrow(_SQL["count_others"], org_id, mask.name)
    assert others is not None  # noqa: S101 - a count
    for what, held, most in (
        ("masks", others["masks"] + 1, MAX_MASKS),
        ("bytes of masks", others["size_bytes"] + mask.size_bytes, MAX_BYTES),
        ("lines of masks", others["lines"] + mask.lines, MAX_LINES),
    ):
        if held > most:
            raise Conflict(f"this organisation would have {held} {what}, and {most} is the most: take one away first")
    sealed = seals.seal(mask.value.encode(), _place(org_id, mask.name))
    kept = (org_id, mask.name, sealed.kid, sealed.box, mask.size_bytes, mask.lines)
    row = await transaction.fetchrow(_SQL["keep_mask"], *kept)
    assert row is not None  # noqa: S101 - RETURNING
    return org_id, _render(row)


async def drop_mask(services: Services, org: str, name: str, caller: Caller) -> None:
    """Forget a value; what was hidden stays hidden."""
    org_id = await services.database.run(_drop, org, name, caller.org_id)
    log.info("org.mask_removed", org=org_id, mask=name, by=caller.subject)


async def _drop(transaction: Transaction, org: str, name: str, caller_org: int | None) -> int:
    row = await require_org(transaction, org, caller_org)
    if await transaction.fetchval(_SQL["remove_mask"], row["org_id"], name) is None:
        raise NotFound(f"{row['login']} has no mask {name[:64]}")
    return int(row["org_id"])


# --- for services -----------------------------------------------------------------------------------------------------


async def read_masks(services: Services, org_id: int) -> list[str]:
    """An org's values in clear; none for an org that is not known. What a rotation left is sealed anew in passing."""
    return await services.database.run(_read, org_id, services.seals)


async def _read(transaction: Transaction, org_id: int, seals: Seals) -> list[str]:
    values = []
    for row in await transaction.fetch(_SQL["read_sealed"], org_id):
        place = _place(org_id, row["name"])
        value = seals.open(Sealed(row["kid"], row["sealed"]), place)
        if value is None:  # its secret is gone, or somebody wrote into the database
            log.error("org.mask_unreadable", org=org_id, mask=row["name"], kid=row["kid"])
            continue
        values.append(value.decode())
        if row["kid"] not in seals.lasting:
            sealed = seals.seal(value, place)
            await transaction.execute(_SQL["seal_anew"], org_id, row["name"], row["sealed"], sealed.kid, sealed.box)
    return values


async def reseal_masks(services: Services) -> None:
    """Have everything sealed under a key that stays: the previous secret may go with the next restart."""
    for row in await services.database.fetch(_SQL["find_due"], services.seals.lasting):
        await read_masks(services, row["org_id"])
