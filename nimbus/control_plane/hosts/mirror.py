"""A copy of every host's ledger as its heartbeats tell it, for operators to query. Nothing is ever decided by it.

In the database of NIMBUS_AGENT_STATE_DATABASE_URL where that is set, else in the control plane's own; by the same code.
Written by one task a process, beside the heartbeats and never in their way: where the mirror's database is away they
are answered as ever, and the last report of each host waits. Called by agents.py and hosts.py; mirror_database.py opens
the database and lets it write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from nimbus.model.errors import Unavailable
from nimbus.runtime.postgres import Database, Row, Transaction, load_queries
from nimbus.wire.heartbeat import Heartbeat, RecordLine
from nimbus.wire.vmjson import Json

_SQL = load_queries("nimbus.control_plane", "queries", "mirror.sql")
_AGENTS = load_queries("nimbus.control_plane", "queries", "agents.sql")
MAX_PENDING = 65536  # records that wait for the mirror in this process; what is refused comes again with a heartbeat
COARSE_S = 60.0  # a lease is renewed every few seconds: only once a minute is that news
READ_AFTER_S = 5.0  # for what a host has just told to be written; then what is there is read


@dataclass(frozen=True)
class Report:
    """One host's records as it told them last."""

    agent_id: str
    life: str
    start: int
    beat: int
    records: tuple[Json, ...]
    digest: str


def plan_report(agent_id: str, beat: Heartbeat, lines: Sequence[RecordLine], now_s: float) -> Report:
    """Pure: what the mirror is to hold. Of two lines about one VM the later counts."""
    records = tuple(_plan_record(line, now_s) for line in {line.vm: line for line in lines}.values())
    digest = hashlib.sha256(json.dumps([beat.boot_id, records]).encode()).hexdigest()
    return Report(agent_id, beat.boot_id, beat.start, beat.beat, records, digest)


def _plan_record(line: RecordLine, now_s: float) -> Json:
    until = None if line.left_s is None else round((now_s + line.left_s) / COARSE_S) * COARSE_S
    return {
        "vm": line.vm,
        "state": line.state,
        "machine_id": line.machine_id,
        "fence": line.fence,
        "claims": list(line.claims),
        "lease_until": None if until is None else datetime.fromtimestamp(until, UTC).isoformat(),
    }


@dataclass
class Mirror:
    """The reports that are still to be written, and the database while it is there."""

    pending: dict[str, Report | None] = field(default_factory=dict)  # None: forget that host
    database: Database | None = None
    _arrived: trio.Event = field(default_factory=trio.Event)
    _written: trio.Event = field(default_factory=trio.Event)

    def offer(self, report: Report) -> None:
        """Have it written soon, in place of an earlier one of that host that still waits."""
        waiting = sum(len(other.records) for other in self.pending.values() if other is not None)
        if waiting + len(report.records) <= MAX_PENDING:
            self._put(report.agent_id, report)

    def forget(self, agent_id: str) -> None:
        """Have all of that host removed soon."""
        self._put(agent_id, None)

    async def read(self, agent_id: str) -> Sequence[Row]:
        """What that host last told, this process' latest word included. Unavailable where the mirror is away."""
        with trio.move_on_after(READ_AFTER_S):
            while agent_id in self.pending and self.database is not None:
                await self._written.wait()
        if self.database is None:
            raise Unavailable("the mirror's database is away")
        return await self.database.fetch(_SQL["list_records"], agent_id)

    async def write_pending(self, database: Database, owner: Database) -> None:
        """Write what comes, until the database is away; `owner` is the control plane's own, which notes the digests."""
        self.database = database
        try:
            while True:
                arrived = self._arrived
                while self.pending:
                    await self._write_first(database, owner)
                await arrived.wait()
        finally:
            self.database = None
            self._note_written()

    async def _write_first(self, database: Database, owner: Database) -> None:
        agent_id, report = next(iter(self.pending.items()))
        kept = await database.run(_write, agent_id, report)
        if report is not None and kept:
            await owner.fetch(_AGENTS["note_mirrored"], agent_id, report.digest)
        if self.pending[agent_id] is report:  # else a later one has come meanwhile
            del self.pending[agent_id]
        self._note_written()

    def _put(self, agent_id: str, report: Report | None) -> None:
        self.pending[agent_id] = report
        self._arrived.set()
        self._arrived = trio.Event()

    def _note_written(self) -> None:
        self._written.set()
        self._written = trio.Event()


async def _write(transaction: Transaction, agent_id: str, report: Report | None) -> bool:
    """Whether this report is the latest now."""
    if report is None:
        await transaction.execute(_SQL["forget_report"], agent_id)
        return False
    latest = await transaction.fetchval(_SQL["note_report"], agent_id, report.life, report.start, report.beat)
    if not latest:
        return False
    await transaction.execute(_SQL["drop_records"], agent_id, [str(record["vm"]) for record in report.records])
    await transaction.execute(_SQL["keep_records"], agent_id, list(report.records))
    return True
