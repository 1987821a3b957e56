"""What happened to every machine request, as JSON lines, in order: `python -m nimbus.control_plane.trace`.

Reads `machine_events` and nothing else; a command, a log or a name never stands in it. For whoever replays the lease
protocol (tests/model) and for operators. One line for each event:

    {"id": 7, "at_ms": 1790000000000, "machine_id": 3, "event": "start", "state_from": "leased",
     "state_to": "running", "fence": 1, "agent_id": "host-1", "told_by": "agent"}

`event` is one of model/lease.py's MachineEvent, where (state_from, event) leads to state_to by its table, or one of
two that are no step of it: `queue` (the first; state_from null, fence 0) and `ask_cancel` (state_from = state_to; the
holder is asked to stop). Renewals leave no event. `told_by` says who made the step known: `agent` (the holder), `clock`
(its deadline passed), `enrolment` (its agent, started anew, no longer had it), `user` (a cancel through our API), null
for demand and what was written before it was noted. `id` grows in the order of events for one machine request; `at_ms`
is the database's clock.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from nimbus.control_plane.settings import DatabaseSettings
from nimbus.model.errors import NimbusError
from nimbus.runtime.postgres import Database, Transaction, load_queries, open_database
from nimbus.runtime.settings import read_settings

_SQL = load_queries("nimbus.control_plane", "queries", "trace.sql")
PAGE = 5000


@dataclass(frozen=True)
class TracedEvent:
    """One line of the trace."""

    id: int
    at_ms: int
    machine_id: int
    event: str
    state_from: str | None
    state_to: str
    fence: int
    agent_id: str | None
    told_by: str | None


async def read_trace(database: Database, after: int = 0, limit: int = PAGE) -> list[TracedEvent]:
    """Up to `limit` events that came after the event of that id."""
    return await database.run(_read, after, limit)


async def _read(transaction: Transaction, after: int, limit: int) -> list[TracedEvent]:
    return [TracedEvent(**dict(row)) for row in await transaction.fetch(_SQL["trace"], after, limit)]


def render_trace(events: Iterable[TracedEvent]) -> str:
    """JSON lines."""
    return "".join(json.dumps(vars(event)) + "\n" for event in events)


async def _run() -> int:
    settings = read_settings(DatabaseSettings)
    after = 0
    try:
        async with open_database(settings.database_url.get_secret_value(), pool_size=1) as database:
            while events := await read_trace(database, after):
                sys.stdout.write(render_trace(events))
                after = events[-1].id
    except NimbusError as error:
        print(f"trace: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(trio.run(_run))
