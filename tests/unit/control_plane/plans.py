"""How much PostgreSQL reads for one of our statements, by its own word."""

from __future__ import annotations

import json
from typing import Any

from nimbus.runtime.postgres import Row, Transaction, load_queries
from tests.unit.control_plane.plane import Plane

_JOBS = load_queries("nimbus.control_plane", "queries", "jobs.sql")


async def rows_read(plane: Plane, text: str, *args: object) -> int:
    """Rows of machines and jobs that are looked at, with those that a filter leaves out; planned for these args."""

    async def explain(transaction: Transaction) -> Row | None:
        await transaction.execute(_JOBS["plan_anew"])
        return await transaction.fetchrow(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {text}", *args)

    row = await plane.services.database.run(explain)
    assert row is not None
    return _count(json.loads(row["QUERY PLAN"])[0]["Plan"])


def _count(node: dict[str, Any]) -> int:
    own = 0
    if node.get("Relation Name") in {"machines", "jobs"}:
        left_out = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        own = (node["Actual Rows"] + left_out) * node["Actual Loops"]
    return int(own) + sum(_count(child) for child in node.get("Plans", []))
