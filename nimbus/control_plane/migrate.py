"""Brings the control plane's schema up to date: numbered .sql files, each run once, in order, in one transaction.

Never changes a file that has run (its digest is kept and compared), and never goes back. Called by `nimbus up`, by the
control plane's start and by hand: `nimbus admin migrate`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import trio

from nimbus.control_plane.settings import DatabaseSettings
from nimbus.model.errors import Conflict, NimbusError
from nimbus.runtime.postgres import Database, Transaction, open_database
from nimbus.runtime.settings import read_settings

LIMIT_S = 3600.0  # of all steps together, and of waiting for another process that applies them
_LOCK = 0x6E696D62_75730001  # "nimbus", 1: so that two starts at once take turns
_VERSIONS = """
CREATE TABLE IF NOT EXISTS {table} (
    version integer PRIMARY KEY,
    name text NOT NULL,
    digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True)
class Migration:
    """One numbered step."""

    version: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(name: str = "migrations") -> tuple[Migration, ...]:
    """All steps of a folder in the order of their numbers, which start at 1 and have no gap."""
    folder = resources.files("nimbus.control_plane").joinpath(name)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    steps = tuple(Migration(int(name[:4]), name, folder.joinpath(name).read_text("utf-8")) for name in names)
    if [step.version for step in steps] != list(range(1, len(steps) + 1)):
        raise Conflict("the migrations are not numbered 1, 2, 3, ...")
    return steps


async def migrate(database: Database) -> tuple[str, ...]:
    """Apply what is missing; the names of what was applied. Whoever comes second waits, and finds nothing to do."""
    return await database.run_long(LIMIT_S, apply_migrations, load_migrations())


async def find_missing(database: Database) -> tuple[str, ...]:
    """The names of the steps that have not run yet; changes nothing. Conflict as `migrate` has it."""
    return await database.run(_find_missing, load_migrations())


async def _find_missing(transaction: Transaction, steps: tuple[Migration, ...]) -> tuple[str, ...]:
    known: dict[int, str] = {}
    if await transaction.fetchval("SELECT to_regclass('schema_versions')") is not None:
        known = await _read_known(transaction, "schema_versions")
    return tuple(step.name for step in _plan_missing(steps, known))


async def apply_migrations(
    transaction: Transaction, steps: tuple[Migration, ...], table: str = "schema_versions"
) -> tuple[str, ...]:
    """The steps that have not run here yet, as part of the caller's transaction. `table` names those that have."""
    await transaction.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
    await transaction.execute(_VERSIONS.format(table=table))
    missing = _plan_missing(steps, await _read_known(transaction, table))
    for step in missing:
        await transaction.execute(step.sql)
        insert = f"INSERT INTO {table} (version, name, digest) VALUES ($1, $2, $3)"  # noqa: S608 - ours
        await transaction.execute(insert, step.version, step.name, step.digest)
    return tuple(step.name for step in missing)


async def _read_known(transaction: Transaction, table: str) -> dict[int, str]:
    rows = await transaction.fetch(f"SELECT version, digest FROM {table} ORDER BY version")  # noqa: S608 - ours
    return {row["version"]: row["digest"] for row in rows}


def _plan_missing(steps: tuple[Migration, ...], known: Mapping[int, str]) -> list[Migration]:
    """Pure: what is to be applied; Conflict where the database is newer, or ran what is not in our files any more."""
    if len(known) > len(steps):
        raise Conflict("the database is newer than this Nimbus: upgrade Nimbus, never the other way round")
    for step in steps:
        if known.get(step.version, step.digest) != step.digest:
            raise Conflict(f"{step.name} was changed after it had run here: write a new migration instead")
    return [step for step in steps if step.version not in known]


async def _run() -> int:
    settings = read_settings(DatabaseSettings)
    try:
        async with open_database(settings.database_url.get_secret_value(), pool_size=1) as database:
            applied = await migrate(database)
    except NimbusError as error:
        print(f"migrate: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 1
    print("\n".join(f"applied {name}" for name in applied) or "nothing to do")  # noqa: T201 - a command's answer
    return 0


if __name__ == "__main__":
    raise SystemExit(trio.run(_run))
