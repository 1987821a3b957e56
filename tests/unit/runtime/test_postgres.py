"""Transactions: whole or not at all, whoever cancels, whatever breaks."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncpg
import pytest
import trio

from nimbus.model.errors import Refused, Unavailable
from nimbus.runtime.postgres import Database, Transaction, load_queries, open_database

pytestmark = pytest.mark.services

_TABLE = "CREATE TABLE notes (note text PRIMARY KEY, body jsonb)"


async def _create(transaction: Transaction) -> None:
    await transaction.execute(_TABLE)


async def _insert(transaction: Transaction, note: str, body: object = None) -> None:
    await transaction.execute("INSERT INTO notes VALUES ($1, $2)", note, body)


async def _notes(transaction: Transaction) -> list[str]:
    return [row["note"] for row in await transaction.fetch("SELECT note FROM notes ORDER BY note")]


async def test_an_error_inside_undoes_the_whole_transaction(empty_database_dsn: str) -> None:
    async def fail(transaction: Transaction) -> None:
        await _insert(transaction, "half")
        raise Refused("no")

    async with open_database(empty_database_dsn) as database:
        await database.run(_create)
        with pytest.raises(Refused):
            await database.run(fail)
        left = await database.run(_notes)

    assert left == []


async def test_a_cancelled_caller_finds_its_transaction_committed(empty_database_dsn: str) -> None:
    begun = trio.Event()

    async def slow(transaction: Transaction) -> None:
        await _insert(transaction, "first")
        begun.set()
        await asyncio.sleep(0.3)
        await _insert(transaction, "second")

    async with open_database(empty_database_dsn) as database:
        await database.run(_create)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, slow)
            await begun.wait()
            nursery.cancel_scope.cancel()
        left = await database.run(_notes)

    assert left == ["first", "second"]


async def test_who_waits_for_a_connection_can_be_cancelled(empty_database_dsn: str) -> None:
    busy = trio.Event()

    async def hold(transaction: Transaction) -> None:
        await transaction.fetchval("SELECT 1")
        busy.set()
        await asyncio.sleep(1)

    async with open_database(empty_database_dsn, pool_size=1) as database, trio.open_nursery() as nursery:
        nursery.start_soon(database.run, hold)
        await busy.wait()
        with trio.move_on_after(0.2) as waited:
            await database.run(_notes)

    assert waited.cancelled_caught


async def test_two_transactions_that_block_each_other_both_succeed(empty_database_dsn: str) -> None:
    async def touch(transaction: Transaction, first: str, second: str) -> None:
        update = "UPDATE notes SET body = coalesce(body, '0'::jsonb) WHERE note = $1"
        await transaction.execute(update, first)
        await asyncio.sleep(0.2)
        await transaction.execute(update, second)

    async with open_database(empty_database_dsn) as database:
        await database.run(_create)
        await database.run(_insert, "a")
        await database.run(_insert, "b")
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(database.run, touch, "a", "b")
                nursery.start_soon(database.run, touch, "b", "a")


async def test_json_comes_back_as_it_went_in(empty_database_dsn: str) -> None:
    body = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}

    async def read(transaction: Transaction) -> object:
        return await transaction.fetchval("SELECT body FROM notes")

    async with open_database(empty_database_dsn) as database:
        await database.run(_create)
        await database.run(_insert, "x", body)
        assert await database.run(read) == body


async def test_a_server_that_drops_its_connections_is_unavailable_and_then_back(empty_database_dsn: str) -> None:
    async def kill_all(transaction: Transaction) -> None:
        await transaction.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        )

    async with open_database(empty_database_dsn) as database:
        await database.run(_create)
        with pytest.raises(Unavailable):
            await database.run(kill_all)
        left = await database.run(_notes)

    assert left == []


async def test_a_table_that_gets_a_column_while_we_work_on_it_is_read_on(empty_database_dsn: str) -> None:
    async def read(transaction: Transaction) -> list[str]:
        return [row["note"] for row in await transaction.fetch("SELECT * FROM notes")]

    async def change(transaction: Transaction) -> None:
        await transaction.execute("ALTER TABLE notes ADD COLUMN more text")

    async with open_database(empty_database_dsn, 1) as ours, open_database(empty_database_dsn, 1) as newer:
        await ours.run(_create)
        await ours.run(_insert, "x")
        before = await ours.run(read)
        await newer.run(change)
        after = await ours.run(read)

    assert before == after == ["x"]


async def test_a_database_that_is_not_there_is_unavailable_without_its_password() -> None:
    with pytest.raises(Unavailable) as caught:
        async with open_database("postgresql://me:hunter2@127.0.0.1:1/none"):
            pytest.fail("there is no server")

    assert "hunter2" not in str(caught.value)


async def test_a_wrong_argument_is_a_bug_and_not_an_absence(empty_database_dsn: str) -> None:
    async def confuse(transaction: Transaction) -> None:
        await transaction.fetchval("SELECT $1::bigint", "seven")

    async with open_database(empty_database_dsn) as database:
        with pytest.raises(asyncpg.DataError):
            await database.run(confuse)


def test_every_query_file_of_the_control_plane_can_be_read() -> None:
    names = [load_queries("nimbus.control_plane", "queries", f"{name}.sql") for name in ("leases", "jobs", "agents")]
    assert all(names)
    assert "grant_lease" in names[0]


async def test_a_statement_that_looks_long_is_not_compiled_first(empty_database_dsn: str) -> None:
    """One tenant's long queue made each grant look so: compiling it took twenty times what it ran."""

    async def explain(transaction: Transaction) -> list[str]:
        rows = await transaction.fetch("EXPLAIN ANALYZE SELECT count(*) FROM generate_series(1, 9) n WHERE n % 2 = 0")
        return [row["QUERY PLAN"] for row in rows]

    async def cheapen(transaction: Transaction) -> list[str]:
        await transaction.execute("SET LOCAL jit_above_cost = 0")
        return await explain(transaction)

    async with open_database(empty_database_dsn) as database:
        plan = await database.run(cheapen)
    assert not [line for line in plan if line.startswith("JIT")]


class _Wire:
    """A way to the server on which a test may say what a server says that shuts down."""

    MARK = b"application_name\0marked\0"
    FATAL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._clients: list[trio.SocketStream] = []

    async def tell_the_end(self) -> None:
        """The server's last words, without the end of the connection that follows them a moment later."""
        for client in self._clients:
            await client.send_all(_message(b"S", self.MARK) + _message(b"E", self.FATAL))
        self._clients.clear()

    async def carry(self, client: trio.SocketStream) -> None:
        self._clients.append(client)
        async with await trio.open_unix_socket(self._socket_path) as server, client, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, server, client, nursery.cancel_scope)
            nursery.start_soon(_copy, client, server, nursery.cancel_scope)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


async def _until_heard(database: Database) -> None:
    """The connection has read what stands before the end, so the end as well: they came together."""
    (holder,) = database._pool._holders
    while holder._con.get_settings().application_name != "marked":  # noqa: ASYNC110 - asyncpg tells nobody
        await trio.sleep(0.01)


async def _copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Until one side ends: then both."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await target.send_all(data)
    scope.cancel()


@pytest.mark.parametrize("ssl", ["disable", "prefer"])
@pytest.mark.parametrize("way", ["a transaction", "one statement"])
async def test_a_session_whose_end_was_told_and_not_seen_yet_is_an_absence_and_not_a_bug(
    database_dsn: str, way: str, ssl: str
) -> None:
    async def ask(transaction: Transaction) -> int:
        return int(await transaction.fetchval("SELECT 7"))

    async def once(database: Database) -> int:
        if way == "a transaction":
            return await database.run(ask)
        (row,) = await database.fetch("SELECT 7 AS seven")
        return int(row["seven"])

    name, _, place = database_dsn.removeprefix("postgresql://nimbus@/").partition("?host=")
    wire = _Wire(f"{place.partition('&')[0]}/.s.PGSQL.5432")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, wire.carry, [listener])
            dsn = f"postgresql://nimbus@127.0.0.1:{port}/{name}?sslmode={ssl}"
            async with open_database(dsn, pool_size=1) as database:
                first = await once(database)
                await wire.tell_the_end()
                await _until_heard(database)
                with pytest.raises(Unavailable):
                    await once(database)
                then = await once(database)
            nursery.cancel_scope.cancel()

    assert (first, then) == (7, 7)
