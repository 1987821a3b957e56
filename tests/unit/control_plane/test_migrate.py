"""The schema: applied once, in order, by whoever comes first."""

from __future__ import annotations

import pytest
import trio

from nimbus.control_plane.migrate import load_migrations, migrate
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
