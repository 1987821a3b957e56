"""The embedded PostgreSQL and Redis, for real: made once, reachable with their password only, kill -9 survived."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nimbus.cli.stack import postgres, redis
from nimbus.cli.stack.child import Child, log_file, open_child
from nimbus.cli.stack.service import LOOPBACK, Service, ask, free_port
from nimbus.model.errors import HostFault

pytestmark = pytest.mark.services

LIMIT_S = 60.0
PASSWORD = "a-password-of-the-test"


@asynccontextmanager
async def running(service: Service, state: Path) -> AsyncIterator[Child]:
    assert service.ready is not None
    async with open_child(service, state) as child:
        while not await service.ready():  # noqa: ASYNC110 - a server of others has no event for us
            await trio.sleep(0.02)
        yield child


async def psql(port: int, sql: str, password: str = PASSWORD) -> tuple[int, str]:
    programs = postgres.find_programs()
    argv = [str(programs / "psql"), "-h", LOOPBACK, "-p", str(port), "-U", "nimbus", "-d", "nimbus", "-wAtc", sql]
    env = {"PATH": "/usr/bin:/bin", "PGPASSWORD": password}
    done = await trio.run_process(argv, env=env, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode, (done.stdout or done.stderr).decode().strip()


@asynccontextmanager
async def open_cluster(folder: Path) -> AsyncIterator[postgres.Cluster]:
    cluster = await trio.to_thread.run_sync(postgres.open_cluster, folder, PASSWORD)
    try:
        yield cluster
    finally:
        os.close(cluster.folder_fd)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A state folder below one that only its owner may enter, as a checkout in root's home is."""
    state = tmp_path / "private" / "state"
    state.mkdir(parents=True)
    state.parent.chmod(0o700)
    return state


async def test_postgres_keeps_its_data_across_a_stop_and_a_start(private: Path) -> None:
    with trio.fail_after(LIMIT_S):
        for sql in ("create table t as select 7 as x", "table t"):
            async with open_cluster(private / "postgres") as cluster:
                service = postgres.plan_server(cluster, free_port())
                async with running(service, private):
                    told = await psql(service.ports["postgres"], sql)
    assert told == (0, "7")


async def test_postgres_logs_that_a_row_was_refused_and_nothing_of_the_row(private: Path) -> None:
    sql = "create table t (x text check (false)); insert into t select 'row of ' || 'secrets'"
    with trio.fail_after(LIMIT_S):
        async with open_cluster(private / "postgres") as cluster:
            service = postgres.plan_server(cluster, free_port())
            async with running(service, private):
                assert (await psql(service.ports["postgres"], sql))[0] != 0
    told = log_file(private, "postgres").read_text()
    assert "violates check constraint" in told
    assert "row of secrets" not in told


async def test_postgres_refuses_a_wrong_password(private: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_cluster(private / "postgres") as cluster:
            service = postgres.plan_server(cluster, free_port())
            async with running(service, private):
                status, told = await psql(service.ports["postgres"], "select 1", "another")
    assert status == 2
    assert "password authentication failed" in told


async def test_postgres_recovers_from_sigkill_and_its_stale_lock(private: Path) -> None:
    folder = private / "postgres"
    with trio.fail_after(LIMIT_S):
        async with open_cluster(folder) as cluster:
            service = postgres.plan_server(cluster, free_port())
            async with running(service, private) as child:
                await psql(service.ports["postgres"], "create table t as select 42 as x")
                os.kill(child.pid, signal.SIGKILL)
                assert await child.wait() == -signal.SIGKILL
        assert (folder / "postmaster.pid").exists()
        async with open_cluster(folder) as cluster:
            service = postgres.plan_server(cluster, free_port())
            async with running(service, private):
                assert await psql(service.ports["postgres"], "select x from t") == (0, "42")


async def test_a_server_that_an_earlier_stack_left_is_stopped_first(private: Path) -> None:
    folder = private / "postgres"
    with trio.fail_after(LIMIT_S):
        async with open_cluster(folder) as cluster:
            service = postgres.plan_server(cluster, free_port())
            async with running(service, private) as left:
                await trio.to_thread.run_sync(postgres.wait_for_leftovers, folder)
                assert await left.wait() == 0


async def test_half_a_cluster_is_made_again(private: Path) -> None:
    (private / "postgres.new").mkdir()
    (private / "postgres.new" / "PG_VERSION").write_text("15")
    with trio.fail_after(LIMIT_S):
        async with open_cluster(private / "postgres"):
            assert not (private / "postgres.new").exists()


async def test_a_cluster_of_another_version_is_refused_by_name(private: Path) -> None:
    (private / "postgres").mkdir()
    (private / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(HostFault, match="made by PostgreSQL 9"):
        await trio.to_thread.run_sync(postgres.open_cluster, private / "postgres", PASSWORD)


async def test_redis_answers_with_its_password_and_shows_it_to_nobody(tmp_path: Path) -> None:
    service = redis.plan_server(free_port(), PASSWORD)
    port = service.ports["redis"]
    with trio.fail_after(LIMIT_S):
        async with running(service, tmp_path) as child:
            assert (await ask(port, b"PING\r\n")).startswith(b"-NOAUTH")
            assert (await ask(port, b"AUTH wrong\r\n")).startswith(b"-WRONGPASS")
            proc = trio.Path(f"/proc/{child.pid}")
            shown = await (proc / "cmdline").read_bytes() + await (proc / "environ").read_bytes()
    assert PASSWORD.encode() not in shown
