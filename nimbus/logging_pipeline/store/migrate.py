"""Brings the log store's schema up to date: numbered .sql files, each applied once, in order.

Every statement can be repeated, because ClickHouse has no transactions: a run that was cut short, and two services
that start at once, end in the same schema. Never takes a column or a row away. Called by `app` at its start and by
`nimbus logs migrate`.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, Protocol

from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.opening import open_store

_VERSIONS = """CREATE TABLE IF NOT EXISTS {database}.{table}_migrations (
    version UInt32, name String, applied_at DateTime DEFAULT now()
) ENGINE = MergeTree ORDER BY version"""
_LINKS_LONGER_DAYS = 31  # than the rows: no machine prints for longer after its link
_TIMES = {"": ("ts", "retention_days"), "_links": ("linked_at", "links_days")}  # what retention goes by, table by table


class Statements(Protocol):
    """What migrating needs of a table."""

    async def command(self, sql: str) -> None:
        """One statement that changes something."""

    async def rows_of(self, sql: str) -> list[dict[str, Any]]:
        """The result of one that reads."""


async def migrate(store: Statements, settings: StoreSettings) -> list[str]:
    """Apply what is missing and the retention as it is set now; the names of the files that were applied."""
    names = names_of(settings)
    if not await _has_versions(store, names):
        # only then: where the schema is current, a user who may not create tables is enough
        await store.command(fill("CREATE DATABASE IF NOT EXISTS {database}", names))
        await store.command(fill(_VERSIONS, names))
    applied = []
    for version, name, text in await _find_missing(store, names):
        for statement in split_statements(text):
            await store.command(fill(statement, names))
        insert = "INSERT INTO {database}.{table}_migrations (version, name) VALUES"
        await store.command(f"{fill(insert, names)} ({version}, '{name}')")
        applied.append(name)
    await _ensure_retention(store, names)
    return applied


async def list_missing(store: Statements, settings: StoreSettings) -> list[str]:
    """The names of the files that `migrate` would apply. Changes nothing."""
    names = names_of(settings)
    if not await _has_versions(store, names):
        return [name for _, name, _ in load_migrations()]
    return [name for _, name, _ in await _find_missing(store, names)]


async def migrate_store(settings: StoreSettings, *, check: bool) -> list[str]:
    """Open the store, and apply what is missing or, to `check`, only say it: the names of the files.

    HostFault where a running service holds the embedded engine: it has migrated at its start.
    """
    async with open_store(settings) as store:
        return await (list_missing if check else migrate)(store, settings)


async def _has_versions(store: Statements, names: dict[str, str]) -> bool:
    tables = "SELECT name FROM system.tables WHERE database = '{database}' AND name = '{table}_migrations'"
    return bool(await store.rows_of(fill(tables, names)))


async def _find_missing(store: Statements, names: dict[str, str]) -> list[tuple[int, str, str]]:
    told = await store.rows_of(fill("SELECT version FROM {database}.{table}_migrations", names))
    known = {int(row["version"]) for row in told}
    return [step for step in load_migrations() if step[0] not in known]


def load_migrations() -> list[tuple[int, str, str]]:
    """(version, file name, text) in the order of their versions."""
    folder = resources.files("nimbus.logging_pipeline").joinpath("store", "migrations")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [(int(entry.name[:4]), entry.name, entry.read_text(encoding="utf-8")) for entry in files]


def split_statements(text: str) -> list[str]:
    """The statements of a file: each ends with a semicolon at the end of a line; comment lines are left out."""
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [part.strip() for part in re.split(r";\s*$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]


def names_of(settings: StoreSettings) -> dict[str, str]:
    """What stands in braces in our .sql files; the settings let only plain identifiers and whole numbers through."""
    return {
        "database": settings.clickhouse_database,
        "table": settings.clickhouse_table,
        "retention_days": str(settings.logging_retention_days),
        "links_days": str(settings.logging_retention_days + _LINKS_LONGER_DAYS),
    }


def fill(text: str, names: dict[str, str]) -> str:
    """The text with each name in braces replaced by its value."""
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


async def _ensure_retention(store: Statements, names: dict[str, str]) -> None:
    """A changed NIMBUS_LOGGING_RETENTION_DAYS takes effect at the next start."""
    for ending, (column, days) in _TIMES.items():
        table = names["table"] + ending
        told = "SELECT create_table_query AS text FROM system.tables WHERE database = '{database}' AND name = "
        found = await store.rows_of(fill(told, names) + f"'{table}'")
        wanted = f"toIntervalDay({names[days]})"
        if found and wanted not in found[0]["text"]:
            alter = f"ALTER TABLE {names['database']}.{table} MODIFY TTL toDateTime({column}) + {wanted}"
            await store.command(alter)
