"""The embedded engine behind ClickHouse's protocol, driven by the real client; and its supervisor."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import httpx2
import pytest
import trio
from clickhouse_connect.driver import httputil
from clickhouse_connect.driver.exceptions import DatabaseError

from nimbus.logging_pipeline.engine.child import EXIT_LOCKED, Endpoint, serve_engine
from nimbus.logging_pipeline.engine.session import EngineRefusal, EngineRequest, EngineSession
from nimbus.logging_pipeline.engine.statements import Statement
from nimbus.model.errors import HostFault
from tests.unit.logging_pipeline.rig import run_engine, wait_until


@pytest.fixture
def client(engine: Endpoint) -> Iterator[Any]:
    pool = httputil.get_pool_manager(num_pools=1)
    client = connect(engine, pool_mgr=pool)
    yield client
    client.close()
    pool.clear()


def connect(engine: Endpoint, **options: Any) -> Any:
    parts = urlsplit(engine.url)
    return clickhouse_connect.get_client(
        host=parts.hostname, port=parts.port, username=engine.username,
        **{"password": engine.password, "autogenerate_session_id": False, **options},
    )  # fmt: skip


def test_the_real_client_inserts_and_selects_in_native_format(client: Any) -> None:
    client.command("CREATE TABLE native (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    client.insert("native", [[1, "x;y"], [2, "ü" * 1000]], column_names=["a", "b"])
    found = client.query("SELECT a, b FROM native WHERE a = {wanted:UInt64}", parameters={"wanted": 1})
    assert found.result_rows == [(1, "x;y")]
    assert client.query("SELECT * FROM native LIMIT 0").column_names == ("a", "b")
    assert client.ping()


def test_compressed_inserts_and_many_rows_arrive(engine: Endpoint) -> None:
    pool = httputil.get_pool_manager(num_pools=1)
    client = connect(engine, pool_mgr=pool, compress="lz4")
    client.command("CREATE TABLE packed (a UInt64) ENGINE = MergeTree ORDER BY a")
    client.insert("packed", [[number] for number in range(100_000)], column_names=["a"])
    assert client.query("SELECT count(), max(a) FROM packed").result_rows == [(100_000, 99_999)]
    client.close()
    pool.clear()


def test_a_summary_counts_written_rows_and_settings_do_not_outlive_their_request(client: Any) -> None:
    client.command("CREATE TABLE summed (a UInt64) ENGINE = MergeTree ORDER BY a")
    summary = client.raw_insert("summed", ["a"], b'{"a":1}\n{"a":2}\n', fmt="JSONEachRow", settings={"async_insert": 0})
    assert summary.written_rows == 2
    with pytest.raises(DatabaseError):
        client.query("SELECT a FROM summed", settings={"max_result_rows": 1, "result_overflow_mode": "throw"})
    assert len(client.query("SELECT a FROM summed").result_rows) == 2


def test_a_setting_that_does_not_exist_leaves_nothing_of_its_request_behind(client: Any) -> None:
    found = "SELECT getSetting('max_result_rows')"
    for _ in range(6):  # each session has its turn
        with pytest.raises(DatabaseError):
            client.raw_query("SELECT 1", settings={"max_result_rows": 77, "no_setting_at_all": 1})
    assert {client.raw_query(found, fmt="TSV") for _ in range(6)} == {b"0\n"}


def test_a_parameter_is_a_value_and_never_sql(client: Any) -> None:
    with pytest.raises(DatabaseError):
        client.raw_query("SELECT 1 WHERE 1 = {x:UInt64}", parameters={"x": "1 OR 1=1"})
    echoed = client.raw_query("SELECT {x:String}", parameters={"x": "'; DROP TABLE t --"}, fmt="TabSeparatedRaw")
    assert echoed == b"'; DROP TABLE t --\n"


def test_an_insert_with_a_bad_row_stores_nothing_and_the_next_one_works(client: Any) -> None:
    client.command("CREATE TABLE strict (a UInt64) ENGINE = MergeTree ORDER BY a")
    with pytest.raises(DatabaseError):
        client.raw_insert("strict", ["a"], b'{"a":1}\n{"a":-1}\n', fmt="JSONEachRow")
    client.raw_insert("strict", ["a"], b'{"a":3}\n', fmt="JSONEachRow", settings={"async_insert": 0})
    assert client.query("SELECT a FROM strict").result_rows == [(3,)]


def test_a_block_that_was_stored_is_dropped_when_it_comes_again_under_its_token(client: Any) -> None:
    client.command(
        "CREATE TABLE once (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 10"
    )
    for _ in range(3):
        settings = {"async_insert": 0, "insert_deduplication_token": "same"}
        client.raw_insert("once", ["a"], b'{"a":1}\n', fmt="JSONEachRow", settings=settings)
    assert client.query("SELECT count() FROM once").result_rows == [(1,)]


@pytest.mark.parametrize(
    ("headers", "params", "status", "code"),
    [
        ({}, {"query": "SELECT 1"}, 403, "516"),
        ({"X-ClickHouse-User": "nimbus", "X-ClickHouse-Key": "wrong"}, {"query": "SELECT 1"}, 403, "516"),
        ({"Authorization": "Basic !!!"}, {"query": "SELECT 1"}, 403, "516"),
        (None, {"query": "SELECT 1; SELECT 2"}, 400, "62"),
        (None, {"query": "SELECT 1", "database": "default"}, 400, "62"),
        (None, {"query": "SELECT 1", "database": "a`; DROP"}, 400, "62"),
        (None, {"query": "SELECT 1", "x' = 1, y": "1"}, 400, "62"),
        (None, {"query": "SELECT * FROM absent"}, 404, "60"),
        (None, {"query": "CREATE TABLE g (a Int8) ENGINE = Memory"}, 500, "164"),
        (None, {"query": "SELECT 1", "max_threads": "x"}, 500, None),
    ],
)
async def test_a_wrong_request_gets_clickhouses_own_error(
    engine: Endpoint, headers: dict[str, str] | None, params: dict[str, str], status: int, code: str | None
) -> None:
    known = {"X-ClickHouse-User": engine.username, "X-ClickHouse-Key": engine.password}
    with trio.fail_after(30):
        async with httpx2.AsyncClient(trust_env=False) as client:
            reply = await client.get(f"{engine.url}/", params=params, headers=known if headers is None else headers)
            assert reply.status_code == status
            assert code in (None, reply.headers["x-clickhouse-exception-code"])
            assert reply.text.startswith("Code: ")
            assert (await client.get(f"{engine.url}/ping")).text == "Ok.\n"


def test_a_second_process_on_the_same_folder_is_told_so(tmp_path: Path) -> None:
    with run_engine(tmp_path / "store"):
        argv = [sys.executable, "-m", "nimbus.logging_pipeline.engine.main", str(tmp_path / "store")]
        second = subprocess.run(argv, input=b"x\n", capture_output=True, check=False, timeout=60)
    assert second.returncode == EXIT_LOCKED
    assert b"another process serves the log store" in second.stderr


async def test_the_supervisor_starts_a_killed_engine_again_and_nothing_stored_is_lost(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            engine = await nursery.start(serve_engine, tmp_path / "store")
            first = engine.endpoint
            await trio.to_thread.run_sync(run, first, "CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
            await trio.to_thread.run_sync(run, first, "INSERT INTO kept VALUES (7)")
            engine.process.send_signal(signal.SIGKILL)
            await wait_until(lambda: engine.endpoint not in (None, first))
            assert await trio.to_thread.run_sync(run, engine.endpoint, "SELECT a FROM kept") == b"7\n"
            pid = engine.process.pid
            nursery.cancel_scope.cancel()
        assert not is_alive(pid)


async def test_a_long_search_holds_up_neither_an_insert_nor_a_page(tmp_path: Path) -> None:
    ended = False

    async def search(endpoint: Endpoint) -> None:
        nonlocal ended
        with suppress(httpx2.HTTPError):  # it ends with the engine
            await trio.to_thread.run_sync(run, endpoint, "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
        ended = True

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            engine = await nursery.start(serve_engine, tmp_path / "store")
            endpoint = engine.endpoint
            await trio.to_thread.run_sync(run, endpoint, "CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
            nursery.start_soon(search, endpoint)
            await trio.to_thread.run_sync(wait_for_query, endpoint)
            await trio.to_thread.run_sync(run, endpoint, "INSERT INTO kept VALUES (7)")
            assert await trio.to_thread.run_sync(run, endpoint, "SELECT a FROM kept") == b"7\n"
            assert not ended
            engine.process.kill()
            await wait_until(lambda: ended)
            nursery.cancel_scope.cancel()


def wait_for_query(endpoint: Endpoint) -> None:
    """Return once the engine works on a search over numbers."""
    sql = "SELECT count() FROM system.processes WHERE query LIKE '%sip' || 'Hash64%'"
    while run(endpoint, sql) == b"0\n":
        pass


def test_a_session_that_reads_cannot_write_whatever_gets_past_the_guard(tmp_path: Path) -> None:
    statement = Statement("select", "CREATE TABLE main.forged (a UInt64) ENGINE = Memory", "TabSeparated")
    session = EngineSession(str(tmp_path / "store"), reads_only=True)
    with pytest.raises(EngineRefusal) as refused:
        session.run(EngineRequest(statement, "main", "TabSeparated", {}, {}))
    session.close()
    assert refused.value.code == 164


def run(endpoint: Endpoint, sql: str) -> bytes:
    auth = (endpoint.username, endpoint.password)
    with httpx2.Client(trust_env=False) as client:
        return client.post(endpoint.url, content=sql, auth=auth).raise_for_status().content


async def test_the_supervisor_gives_up_on_a_folder_that_another_process_serves(tmp_path: Path) -> None:
    with trio.fail_after(60), run_engine(tmp_path / "store"), pytest.raises(HostFault, match="another process"):
        await serve_engine(tmp_path / "store")


async def test_the_engine_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'nimbus.logging_pipeline.engine.main', sys.argv[1]],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdin.write(b'x\\n'); child.stdin.flush(); child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with trio.fail_after(60):
        argv = [sys.executable, "-c", program, str(tmp_path / "store")]
        parent = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
        assert parent.stdout is not None
        pid = int(await parent.stdout.receive_some(100))
        parent.kill()
        await parent.wait()
        await wait_until(lambda: not is_alive(pid))
        await parent.stdout.aclose()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
