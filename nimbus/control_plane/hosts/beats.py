"""Heartbeats that come together, written by one statement: what a statement costs is mostly not its rows.

The first one waits a moment for others, writes for all of them and hands out the answers. Never judges what a host
tells. Called by agents.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Database, Row, load_queries
from nimbus.wire.vmjson import Json

GATHER_S = 0.1  # no host waits for the answer: it tells of itself beside all that it does

_SQL = load_queries("nimbus.control_plane", "queries", "agents.sql")


@dataclass(eq=False)
class _Batch:
    told: dict[str, Json] = field(default_factory=dict)  # by agent
    answers: Mapping[str, Row] | None = None  # None: not written
    over: trio.Event = field(default_factory=trio.Event)


class Beats:
    """The heartbeats that this process gathers now."""

    def __init__(self) -> None:
        self._open: _Batch | None = None

    async def write(self, database: Database, agent_id: str, told: Json, rival_s: float) -> Row | None:
        """Note what this host told, and what is known of it; None where it is not known at all."""
        while self._open is not None and agent_id in self._open.told:
            await self._open.over.wait()  # two hosts of one name: the second one is another statement's, or goes unseen
        if self._open is None:
            batch = self._open = _Batch({agent_id: told})
            await self._lead(batch, database, rival_s)
        else:
            batch = self._open
            batch.told[agent_id] = told
            await batch.over.wait()
        if batch.answers is None:
            raise Unavailable("the database took too long, or the service stops: tell it again")
        return batch.answers.get(agent_id)

    async def _lead(self, batch: _Batch, database: Database, rival_s: float) -> None:
        try:
            await trio.sleep(GATHER_S)
            self._open = None
            rows = await database.fetch(_SQL["hear_heartbeats"], list(batch.told.values()), rival_s)
            batch.answers = {row["agent_id"]: row for row in rows}
        finally:
            if self._open is batch:
                self._open = None
            batch.over.set()
