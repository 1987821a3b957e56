"""The schema: applied once, in order, by whoever comes first."""

from __future__ import annotations

import pytest
import trio

from nimbus.control_plane.migrate import apply_migrations, load_migrations, migrate
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


async def _describe(transaction: Transaction) -> list[list[tuple[object, ...]]]:
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
        upgraded, expected = await old.run(_describe), await fresh.run(_describe)
        failures = await old.run(_failures)

    assert applied == tuple(step.name for step in load_migrations()[1:])
    assert upgraded == expected
    assert failures == [2, 2, 0]
