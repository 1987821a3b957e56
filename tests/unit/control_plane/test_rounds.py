"""Rounds: one process at a time, once in an interval, and nobody waits for anybody."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import trio
from structlog.testing import capture_logs

from nimbus.control_plane.queue.silence import expire_leases, sweep_leases
from nimbus.control_plane.rounds import begin_round
from nimbus.control_plane.services import LeaseTerms, Services
from nimbus.runtime.postgres import Database, Transaction, open_database
from tests.unit.control_plane.plane import open_services

pytestmark = pytest.mark.services

HOUR_S = 3600.0
AT_ONCE = 8
SWEEP_S = 0.2


async def test_of_many_processes_that_look_at_once_one_does_the_round(database_dsn: str) -> None:
    did: list[bool] = []

    async with open_database(database_dsn, AT_ONCE) as database:

        async def look() -> None:
            did.append(await database.run(begin_round, "test", HOUR_S))

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(look)

    assert sorted(did) == [False] * (AT_ONCE - 1) + [True]


async def test_a_round_is_due_again_after_its_interval_and_not_before(database_dsn: str) -> None:
    async with open_database(database_dsn, 1) as database:
        first = await database.run(begin_round, "test", HOUR_S)
        early = await database.run(begin_round, "test", HOUR_S)
        await database.fetch("UPDATE duties SET done_at = done_at - interval '1 hour' WHERE name = 'test'")
        late = await database.run(begin_round, "test", HOUR_S)
        other = await database.run(begin_round, "another", HOUR_S)

    assert (first, early, late, other) == (True, False, True, True)


async def test_who_comes_while_another_is_at_it_goes_on_without_waiting(database_dsn: str) -> None:
    async with open_database(database_dsn, 1) as one, open_database(database_dsn, 1) as other:
        at_it, seen = trio.Event(), trio.Event()

        async def work() -> None:
            assert await one.run(_hold_round, at_it, seen)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await at_it.wait()
                came = await other.run(begin_round, "test", 0.0)
                seen.set()
            then = await other.run(begin_round, "test", 0.0)

    assert (came, then) == (False, True)


async def _hold_round(transaction: Transaction, at_it: trio.Event, seen: trio.Event) -> bool:
    """Begin the round and stay in it until that was seen. An asyncio function: it cannot wait for Trio's events."""

    begun = await begin_round(transaction, "test", 0.0)
    at_it.set()
    while not seen.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return begun


async def test_a_process_that_dies_in_its_round_is_followed_at_the_next_look(database_dsn: str) -> None:
    async def die(transaction: Transaction) -> None:
        assert await begin_round(transaction, "test", HOUR_S)
        await transaction.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async with open_database(database_dsn, 1) as one, open_database(database_dsn, 1) as other:
        with pytest.raises(Exception, match="away"):
            await one.run(die)
        followed = await other.run(begin_round, "test", HOUR_S)

    assert followed


async def test_two_planes_do_one_round_in_each_interval_and_either_goes_on_alone(
    database_dsn: str, redis_url: str
) -> None:
    terms, prefix = LeaseTerms(sweep_s=SWEEP_S), f"test:{uuid.uuid4()}:"

    with trio.fail_after(60):
        async with (
            open_services(database_dsn, redis_url, terms=terms, prefix=prefix) as first,
            open_services(database_dsn, redis_url, terms=terms, prefix=prefix) as second,
            trio.open_nursery() as nursery,
        ):
            ends = await nursery.start(_sweep, first)
            nursery.start_soon(_sweep, second)
            took_s = await _until_rounds(second.database, 5)
            ends.cancel()
            await _until_rounds(second.database, 2)
            nursery.cancel_scope.cancel()

    assert took_s > 3 * SWEEP_S * 0.9  # the first two come from the processes' starts


async def _sweep(
    services: Services, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await sweep_leases(services)


async def _until_rounds(database: Database, wanted: int) -> float:
    """How long it took until so many rounds were seen: each writes its row anew."""
    began = trio.current_time()
    seen: set[str] = set()
    while len(seen) <= wanted:
        for row in await database.fetch("SELECT xmin::text AS written FROM duties WHERE name = 'leases'"):
            seen.add(row["written"])
    return trio.current_time() - began


async def test_a_pause_is_told_by_whoever_sees_its_reason_also_without_a_round(
    database_dsn: str, redis_url: str
) -> None:
    async with open_services(database_dsn, redis_url) as services:
        await expire_leases(services)
        await services.database.fetch("UPDATE database_watch SET identity = 'the one before'")
        with capture_logs() as logs:
            await expire_leases(services, HOUR_S)
    assert [each["event"] for each in logs] == ["grants.paused"]
