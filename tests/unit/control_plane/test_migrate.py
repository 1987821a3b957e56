"""The schema: applied once, in order, by whoever comes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio

from nimbus.control_plane.migrate import (
    LIMIT_S,
    Migration,
    apply_migrations,
    find_missing,
    load_migrations,
    migrate,
)
from nimbus.model.errors import Conflict
from nimbus.runtime.postgres import Transaction, open_database

pytestmark = pytest.mark.services


async def test_the_second_migration_has_nothing_to_do(empty_database_dsn: str) -> None:
    async with open_database(empty_database_dsn, pool_size=2) as database:
        first = await migrate(database)
        second = await migrate(database)

    assert first == tuple(step.name for step in load_migrations())
    assert second == ()


async def test_four_starts_at_once_apply_each_step_once(empty_database_dsn: str) -> None:
    applied: list[tuple[str, ...]] = []

    async with open_database(empty_database_dsn, pool_size=4) as database:

        async def start() -> None:
            applied.append(await migrate(database))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(start)

    assert sorted(map(len, applied)) == [0, 0, 0, len(load_migrations())]


async def test_a_step_that_was_changed_after_it_ran_is_refused(database_dsn: str) -> None:
    async def tamper(transaction: Transaction) -> None:
        await transaction.execute("UPDATE schema_versions SET digest = 'other' WHERE version = 1")

    async with open_database(database_dsn, pool_size=1) as database:
        await database.run(tamper)
        with pytest.raises(Conflict, match="was changed after it had run"):
            await migrate(database)


_COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"""
_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
_FUNCTIONS = "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
_TRIGGERS = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"


async def describe_schema(transaction: Transaction) -> list[list[tuple[object, ...]]]:
    queries = (_COLUMNS, _CONSTRAINTS, _INDEXES, _FUNCTIONS, _TRIGGERS)
    return [[tuple(row.values()) for row in await transaction.fetch(query)] for query in queries]


async def _install_first(transaction: Transaction) -> None:
    """A database as the first release left it, at work."""
    await apply_migrations(transaction, load_migrations()[:1])
    await transaction.execute(
        """
        INSERT INTO jobs (org_id, source, state) SELECT 1, 'api', 'queued' FROM generate_series(1, 3);
        INSERT INTO machines (org_id, kind, shape, image, state, fence, attempts, agent_id, lease_id, deadline) VALUES
            (1, 'runner', '{}', 'base', 'queued', 2, 2, NULL, NULL, NULL),
            (1, 'runner', '{}', 'base', 'running', 3, 3, 'a', gen_random_uuid(), now() + interval '5 min'),
            (1, 'runner', '{}', 'base', 'done', 1, 1, 'a', gen_random_uuid(), NULL);
        INSERT INTO machine_events (machine_id, state_from, state_to, event, fence) VALUES
            (2, 'queued', 'leased', 'lease', 3), (2, 'leased', 'running', 'start', 3),
            (2, 'running', 'running', 'cancel', 3), (2, 'running', 'running', 'cancel', 3),
            (3, 'queued', 'leased', 'lease', 1), (3, 'leased', 'done', 'finish_ok', 1);
        """
    )


async def _failures(transaction: Transaction) -> list[int]:
    return [row["failures"] for row in await transaction.fetch("SELECT failures FROM machines ORDER BY machine_id")]


async def test_an_upgraded_database_ends_in_the_schema_of_a_fresh_one_and_keeps_what_it_held(
    empty_database_dsn: str, database_dsn: str
) -> None:
    async with open_database(empty_database_dsn, pool_size=1) as old, open_database(database_dsn, pool_size=1) as fresh:
        await old.run(_install_first)
        applied = await migrate(old)
        upgraded, expected = await old.run(describe_schema), await fresh.run(describe_schema)
        failures = await old.run(_failures)

    assert applied == tuple(step.name for step in load_migrations()[1:])
    assert upgraded == expected
    assert failures == [2, 2, 0]


async def test_a_database_that_is_newer_than_nimbus_is_refused_with_words_and_left_as_it_is(database_dsn: str) -> None:
    async with open_database(database_dsn, pool_size=1) as database:
        before = await database.run(describe_schema)
        with pytest.raises(Conflict, match="newer than this Nimbus"):
            await database.run(apply_migrations, load_migrations()[:-1])
        after = await database.run(describe_schema)

    assert after == before


async def test_what_is_missing_is_told_without_changing_anything(empty_database_dsn: str) -> None:
    names = tuple(step.name for step in load_migrations())

    async with open_database(empty_database_dsn, pool_size=1) as database:
        fresh = await find_missing(database)
        tables = await database.run(describe_schema)
        await database.run(apply_migrations, load_migrations()[:2])
        half = await find_missing(database)
        await migrate(database)
        done = await find_missing(database)

    assert (fresh, half, done) == (names, names[2:], ())
    assert tables[0] == []


async def test_a_step_may_take_longer_than_any_request(empty_database_dsn: str) -> None:
    async def kept(transaction: Transaction) -> str:
        return str(await transaction.fetchval("SELECT limit_was FROM seen"))

    step = Migration(
        1, "0001_seen.sql", "CREATE TABLE seen AS SELECT current_setting('statement_timeout') AS limit_was"
    )
    async with open_database(empty_database_dsn, pool_size=1) as database:
        await database.run_long(LIMIT_S, apply_migrations, (step,))
        told = await database.run(kept)

    assert told == "1h"


def test_the_command_applies_what_is_missing_and_says_what(empty_database_dsn: str) -> None:
    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "nimbus", "admin", "migrate", *words]
        env = {**os.environ, "NIMBUS_DATABASE_URL": empty_database_dsn}
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    names = [step.name for step in load_migrations()]
    missing, applied, again, nothing = ask("--check", "--json"), ask("--json"), ask("--check"), ask()

    assert (missing.returncode, json.loads(missing.stdout)) == (1, {"missing": names})
    assert (applied.returncode, json.loads(applied.stdout)) == (0, {"applied": names})
    assert (again.returncode, again.stdout) == (0, "nothing to do\n")
    assert (nothing.returncode, nothing.stdout) == (0, "nothing to do\n")
