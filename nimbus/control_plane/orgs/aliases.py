"""An org's own labels as rows, and what a label set comes to with them. asyncio functions of a caller's transaction.

Never decides what a label means (model/labels.py does). Called by demand.py and orgs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nimbus.model.errors import Conflict
from nimbus.model.labels import Alias, Arch, LabelRules, Refusal, Wanted, judge_labels
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.fields import Fields
from nimbus.wire.vmjson import parse_shape, render_shape

_SQL = load_queries("nimbus.control_plane", "queries", "aliases.sql")
MAX_ALIASES = 100  # of one org: each of its jobs reads all, and each grant of any org counts the capped ones
_NOT_OURS = "none of its labels is Nimbus' any more"


@dataclass(frozen=True)
class CappedAlias:
    """An alias and how many of its machines may run at once; None: no limit but the org's."""

    alias: Alias
    max_machines: int | None = None


async def list_aliases(transaction: Transaction, org_id: int) -> list[CappedAlias]:
    """The org's aliases, by name."""
    rows = await transaction.fetch(_SQL["list_aliases"], org_id)
    return [CappedAlias(_parse_alias(row), row["max_machines"]) for row in rows]


async def load_aliases(transaction: Transaction, org_id: int) -> Mapping[str, Alias]:
    """The org's own words for machines."""
    return {each.alias.alias: each.alias for each in await list_aliases(transaction, org_id)}


def _parse_alias(row: Row) -> Alias:
    shape = parse_shape(Fields(row["shape"], "stored shape"))
    return Alias(row["alias"], shape, Arch(row["arch"]), row["image"], row["priority"])


async def keep_alias(transaction: Transaction, org_id: int, capped: CappedAlias) -> None:
    """Make the alias, or give it another meaning; Conflict where the org has as many as it may have."""
    alias = capped.alias
    others = await transaction.fetchval(_SQL["count_others"], org_id, alias.alias)
    if others >= MAX_ALIASES:
        raise Conflict(f"this organisation has {others} labels, and {MAX_ALIASES} is the most: take one away first")
    what = (render_shape(alias.shape), alias.arch, alias.image, capped.max_machines, alias.priority)
    await transaction.execute(_SQL["keep_alias"], org_id, alias.alias, *what)


async def remove_alias(transaction: Transaction, org_id: int, alias: str) -> bool:
    """Whether there was one."""
    return await transaction.fetchval(_SQL["remove_alias"], org_id, alias) is not None


async def judge(
    transaction: Transaction, org_id: int, labels: tuple[str, ...], rules: LabelRules
) -> Wanted | Refusal | None:
    """What the org's label set asks for."""
    return judge_labels(labels, rules, await load_aliases(transaction, org_id))


def refusal_of(judged: Wanted | Refusal | None) -> str | None:
    """Pure: why a job that was recorded gets no machine; None where it gets one."""
    if isinstance(judged, Refusal):
        return judged.why
    return _NOT_OURS if judged is None else None
