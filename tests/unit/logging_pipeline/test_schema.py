"""The log store's schema: from any version up to date without losing a row, by one service or by two."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.rows import Chunk, JobLink, Row, Source
from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.migrate import (
    fill,
    list_missing,
    load_migrations,
    migrate,
    migrate_store,
    names_of,
    split_statements,
)
from nimbus.logging_pipeline.store.opening import open_store
from nimbus.logging_pipeline.store.table import LogTable
from nimbus.model.errors import Unavailable

NAMES = [name for _, name, _ in load_migrations()]
DAY_MS = 24 * 3600 * 1000


@asynccontextmanager
async def open_empty(engine: Endpoint, database: str, days: int = 30) -> AsyncIterator[tuple[LogTable, StoreSettings]]:
    settings = StoreSettings(
        clickhouse_url=engine.url,
        clickhouse_username=engine.username,
        clickhouse_password=engine.password,
        clickhouse_database=database,
        logging_retention_days=days,
    )
    with trio.fail_after(120):
        async with open_store(settings) as table:
            yield table, settings


async def apply_first(table: LogTable, settings: StoreSettings) -> None:
    """Version 1 as an earlier release left it."""
    version, name, text = load_migrations()[0]
    columns = "(version UInt32, name String, applied_at DateTime DEFAULT now())"
    versions = f"CREATE TABLE {{database}}.{{table}}_migrations {columns} ENGINE = MergeTree ORDER BY version"
    noted = f"INSERT INTO {{database}}.{{table}}_migrations (version, name) VALUES ({version}, '{name}')"  # noqa: S608
    for statement in (*split_statements(text), versions, noted):
        await table.command(fill(statement, names_of(settings)))


async def put(table: LogTable, seqs: range, message: str, age_days: int = 0) -> None:
    """Rows as an earlier release wrote them."""
    await table.command(
        f"INSERT INTO {table.name} (org_id, machine_id, fence, seq, agent_id, stream, level, message, ts) "  # noqa: S608 - ours
        f"SELECT 1, 7, 1, number, 'agent-1', 'stdout', 'info', concat('{message} ', toString(number)), "
        f"now64(3) - toIntervalDay({age_days}) FROM numbers({seqs.start}, {len(seqs)})"
    )


async def describe(table: LogTable) -> list[dict[str, Any]]:
    """Tables, columns and indexes of the database, without what differs from run to run."""
    database = table.name.partition(".")[0]
    columns = "SELECT table, name, type, default_expression, compression_codec FROM system.columns"
    tables = "SELECT name, partition_key, sorting_key, engine_full FROM system.tables"
    told = await table.rows_of(f"{columns} WHERE database = '{database}' ORDER BY table, position")
    indexes = "SELECT table, name, type_full, expr, granularity FROM system.data_skipping_indices"
    told += await table.rows_of(f"{indexes} WHERE database = '{database}' ORDER BY table, name")
    return told + await table.rows_of(f"{tables} WHERE database = '{database}' ORDER BY name")


async def count(table: LogTable, where: str) -> int:
    told = await table.rows_of(f"SELECT count() AS n FROM {table.name} WHERE {where}")  # noqa: S608 - ours
    return int(told[0]["n"])


async def test_a_store_of_version_1_keeps_its_rows_and_ends_in_the_schema_of_a_fresh_one(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_old") as (old, settings), open_empty(engine, "schema_new") as (new, fresh):
        await apply_first(old, settings)
        await put(old, range(20_000), "from before")
        assert await list_missing(old, settings) == NAMES[1:]
        assert await migrate(old, settings) == NAMES[1:]
        assert await migrate(new, fresh) == NAMES
        assert await count(old, "startsWith(message, 'from before')") == 20_000
        assert await count(old, "hasToken(lower(message), 'before')") == 20_000
        assert await count(old, "hasToken(lower(message), '19999')") == 1
        assert await describe(old) == await describe(new)


async def test_what_is_missing_can_be_asked_without_changing_anything(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_asked") as (table, settings):
        assert await list_missing(table, settings) == NAMES
        assert await table.rows_of("SELECT name FROM system.databases WHERE name = 'schema_asked'") == []
        await migrate(table, settings)
        assert await list_missing(table, settings) == []


async def test_two_services_that_start_at_once_end_in_one_schema(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_two") as (one, settings), open_empty(engine, "schema_two") as (two, _):
        await apply_first(one, settings)
        await put(one, range(1000), "from before")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(migrate, one, settings)
            nursery.start_soon(migrate, two, settings)
        assert await list_missing(one, settings) == []
        assert await count(two, "1") == 1000


class WithoutGrants:
    """The store as a user sees it who may read and insert only."""

    def __init__(self, table: LogTable) -> None:
        self.rows_of = table.rows_of

    async def command(self, sql: str) -> None:
        raise Unavailable(f"not enough privileges for {sql}")


async def test_a_user_who_may_change_no_table_starts_on_a_current_schema_only(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_grants") as (table, settings):
        with pytest.raises(Unavailable):
            await migrate(WithoutGrants(table), settings)
        await migrate(table, settings)
        assert await migrate(WithoutGrants(table), settings) == []


async def test_a_migration_that_was_cut_short_anywhere_goes_on_at_the_next_start(engine: Endpoint) -> None:
    statements = [part for _, _, text in load_migrations()[1:] for part in split_statements(text)]
    async with open_empty(engine, "schema_cut") as (table, settings):
        await apply_first(table, settings)
        await put(table, range(100), "from before")
        for statement in statements:  # done, but not noted down
            await table.command(fill(statement, names_of(settings)))
        assert await migrate(table, settings) == NAMES[1:]
        assert await count(table, "1") == 100


async def test_rows_leave_when_their_retention_is_over_and_not_with_the_last_of_their_month(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_ttl", days=7) as (table, settings):
        await migrate(table, settings)
        await table.command(f"ALTER TABLE {table.name} REMOVE TTL")  # else rows that are past it never get in
        await put(table, range(10), "old", age_days=8)
        await put(table, range(10, 20), "young", age_days=6)
        await migrate(table, settings)
        await table.command(f"OPTIMIZE TABLE {table.name} FINAL")
        assert await count(table, "startsWith(message, 'old')") == 0
        assert await count(table, "startsWith(message, 'young')") == 10


async def test_a_changed_retention_reaches_rows_and_links(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_days", days=9) as (table, settings):
        await migrate(table, settings)
        await migrate(table, settings.model_copy(update={"logging_retention_days": 4}))
        told = await table.rows_of(
            "SELECT name, create_table_query AS text FROM system.tables WHERE database = 'schema_days' ORDER BY name"
        )
        texts = {entry["name"]: entry["text"] for entry in told}
        assert "toIntervalDay(4)" in texts["ci_logs"]
        assert "toIntervalDay(35)" in texts["ci_logs_links"]


async def test_an_insert_over_a_months_end_is_one_block_a_month_and_twice_the_same_is_once(engine: Endpoint) -> None:
    noon = datetime.now(UTC).replace(day=15, hour=12)
    first_ms = int(noon.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
    rows = [Row(seq, first_ms + seq - 5, "stdout", "info", f"line {seq} \0 é") for seq in range(10)]
    chunks = [Chunk(Source(1, 7, 1), "agent-1", rows, JobLink(3, 12, 1)), Chunk(Source(2, 8, 1), "agent-1", rows)]
    async with open_empty(engine, "schema_months", days=3650) as (table, settings):
        await migrate(table, settings)
        await table.insert(chunks)
        await table.insert(chunks)
        parts = await table.rows_of(
            "SELECT partition, sum(rows) AS n, count() AS parts FROM system.parts "
            "WHERE database = 'schema_months' AND table = 'ci_logs' AND active GROUP BY partition ORDER BY partition"
        )
        told = await table.rows_of(f"SELECT message, toUnixTimestamp64Milli(ts) AS ms FROM {table.name} ORDER BY ALL")  # noqa: S608 - ours
    assert [(int(part["n"]), int(part["parts"])) for part in parts] == [(10, 1), (10, 1)]
    assert sorted((entry["message"], int(entry["ms"])) for entry in told) == sorted(
        (row.message, row.ts_ms) for row in rows * 2
    )


async def test_the_words_index_skips_what_cannot_match(engine: Endpoint) -> None:
    async with open_empty(engine, "schema_words") as (table, settings):
        await migrate(table, settings)
        await put(table, range(100_000), "Compiling crate")
        plan = await table.rows_of(
            f"EXPLAIN indexes = 1 SELECT seq FROM {table.name} WHERE org_id = 1 AND hasToken(lower(message), 'nowhere')"  # noqa: S608 - ours
        )
        assert "Name: words" in json.dumps(plan)
        assert await count(table, "org_id = 1 AND hasToken(lower(message), 'compiling')") == 100_000


async def test_the_command_migrates_an_embedded_store_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    settings = StoreSettings(state_dir=tmp_path)
    with trio.fail_after(180):
        assert await migrate_store(settings, check=True) == NAMES
        assert await migrate_store(settings, check=False) == NAMES
        assert await migrate_store(settings, check=True) == []


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [version for version, _, _ in load_migrations()] == list(range(1, len(NAMES) + 1))
