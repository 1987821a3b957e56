"""Brings the log store's schema up to date: numbered .sql files, each applied once, in order.

Every statement can be repeated, because ClickHouse has no transactions. Called by `main` at its start and by
hand: `python -m nimbus.logging_pipeline.store.migrate`.
"""

from __future__ import annotations

import re
import sys
from importlib import resources

import trio

from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.opening import open_store
from nimbus.logging_pipeline.store.table import LogTable
from nimbus.model.errors import NimbusError
from nimbus.runtime.settings import read_settings

_VERSIONS = """CREATE TABLE IF NOT EXISTS {database}.{table}_migrations (
    version UInt32, name String, applied_at DateTime DEFAULT now()
) ENGINE = MergeTree ORDER BY version"""


async def migrate(store: LogTable, settings: StoreSettings) -> list[str]:
    """Apply what is missing and the retention as it is set now; the names of the files that were applied."""
    names = {
        "database": settings.clickhouse_database,
        "table": settings.clickhouse_table,
        "retention_days": str(settings.logging_retention_days),
    }
    await store.command(_fill("CREATE DATABASE IF NOT EXISTS {database}", names))
    await store.command(_fill(_VERSIONS, names))
    known = {
        int(row["version"])
        for row in await store.rows_of(_fill("SELECT version FROM {database}.{table}_migrations", names))
    }
    applied = []
    for version, name, text in load_migrations():
        if version in known:
            continue
        for statement in split_statements(text):
            await store.command(_fill(statement, names))
        insert = "INSERT INTO {database}.{table}_migrations (version, name) VALUES"
        await store.command(f"{_fill(insert, names)} ({version}, '{name}')")
        applied.append(name)
    await _ensure_retention(store, names)
    return applied


def load_migrations() -> list[tuple[int, str, str]]:
    """(version, file name, text) in the order of their versions."""
    folder = resources.files("nimbus.logging_pipeline").joinpath("store", "migrations")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [(int(entry.name[:4]), entry.name, entry.read_text(encoding="utf-8")) for entry in files]


def split_statements(text: str) -> list[str]:
    """The statements of a file: each ends with a semicolon at the end of a line; comment lines are left out."""
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [part.strip() for part in re.split(r";\s*$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]


def _fill(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


async def _ensure_retention(store: LogTable, names: dict[str, str]) -> None:
    """A changed NIMBUS_LOGGING_RETENTION_DAYS takes effect at the next start."""
    tables = "SELECT create_table_query AS text FROM system.tables WHERE database = '{database}' AND name = '{table}'"
    found = await store.rows_of(_fill(tables, names))
    wanted = f"toIntervalDay({names['retention_days']})"
    if found and wanted not in found[0]["text"]:
        await store.command(_fill("ALTER TABLE {database}.{table} MODIFY TTL toDateTime(ts) + ", names) + wanted)


async def run(settings: StoreSettings) -> None:
    """Open the store, migrate it, say what was done."""
    async with open_store(settings) as store:
        applied = await migrate(store, settings)
    print("\n".join(applied) or "the schema is up to date")  # noqa: T201 - the operator's terminal


def main() -> int:
    """Exit 0 when the schema is current, 1 where the store is away, 2 where a setting is wrong."""
    try:
        trio.run(run, read_settings(StoreSettings))
    except NimbusError as error:
        print(f"migrate: {error}", file=sys.stderr)  # noqa: T201 - the operator's terminal
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
