"""The mirror's database: opened, migrated and written to for as long as the control plane runs, however often it goes.

Nobody needs it to go on: while it is away, or refuses us, it is only tried again. What is written is mirror.py's.
Called by app.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from nimbus.control_plane.migrate import apply_migrations, load_migrations
from nimbus.control_plane.services import Services
from nimbus.model.errors import NimbusError
from nimbus.runtime.postgres import Database, DatabaseRefusal, Transaction, load_queries, open_database
from nimbus.runtime.retry import Backoff

log = structlog.get_logger()

_AGENTS = load_queries("nimbus.control_plane", "queries", "agents.sql")
POOL_SIZE = 2  # one writes, one reads
_WAITS = Backoff(1.0, 30.0)  # between two tries to open it


@dataclass
class _Outlook:
    """What is known of the mirror's database, told once at each change."""

    services: Services
    task_status: trio.TaskStatus[None]
    is_started: bool = False
    is_away: bool = False

    def note_open(self) -> None:
        if self.is_away:
            log.info("mirror.back")
        self._note(away=False)

    def note_away(self, error: Exception) -> None:
        if not self.is_away:
            reason = str(error) if isinstance(error, NimbusError) else type(error).__name__
            log.warning("mirror.away", reason=reason, lost="nothing: hosts go on, and tell it again")
        self._note(away=True)

    def _note(self, *, away: bool) -> None:
        self.is_away = away
        self.services.metrics.hosts.mirror_connected.set(not away)
        if not self.is_started:
            self.is_started = True
            self.task_status.started()


async def keep_mirror(  # noqa: ASYNC128 - the outlook calls it
    services: Services, dsn: str | None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Open the mirror and write to it until cancelled; started once that was tried. While it is away: again and again.

    `dsn` None: the control plane's own database.
    """
    outlook = _Outlook(services, task_status)
    delays = _WAITS.delays_s()
    while True:
        try:
            async with _open(services, dsn) as database:
                await database.run(_prepare)
                await services.database.fetch(_AGENTS["forget_mirrored"])  # it may have come back without its content
                delays = _WAITS.delays_s()
                outlook.note_open()
                await services.mirror.write_pending(database, services.database)
        except (NimbusError, DatabaseRefusal) as error:  # nobody needs the mirror to go on; what else escapes is a bug
            outlook.note_away(error)
        await trio.sleep(next(delays))


@asynccontextmanager
async def _open(services: Services, dsn: str | None) -> AsyncIterator[Database]:
    if dsn is None:
        yield services.database
        return
    async with open_database(dsn, POOL_SIZE, services.database.bridge) as database:
        yield database


async def _prepare(transaction: Transaction) -> None:
    await apply_migrations(transaction, load_migrations("migrations_mirror"), "mirror_versions")
