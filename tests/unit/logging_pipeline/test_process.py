"""The logging pipeline as the process that operators start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import trio

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.settings import StoreSettings
from nimbus.logging_pipeline.store.migrate import migrate, split_statements
from tests.unit.logging_pipeline.rig import SECRET, open_rig, run_engine, wait_until

ARGV = [sys.executable, "-m", "nimbus.logging_pipeline.main"]


def environment(state: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
    ours = {
        "NIMBUS_STATE_DIR": str(state),
        "NIMBUS_CONTROL_PLANE_URL": "http://127.0.0.1:9",
        "NIMBUS_JWT_SECRET": SECRET,
        "NIMBUS_LOGGING_BIND": "127.0.0.1:0",
    }
    return kept | ours | more


async def test_it_tells_its_address_serves_and_stops_without_leaving_its_engine(tmp_path: Path) -> None:
    with trio.fail_after(90):
        process = await trio.lowlevel.open_process(ARGV, stderr=subprocess.PIPE, env=environment(tmp_path))
        assert process.stderr is not None
        told = b""
        while b"logging_pipeline.ready" not in told:
            told += await process.stderr.receive_some(4096)
        events = {event["event"]: event for event in map(json.loads, told.decode().splitlines())}
        engine_pid = events["engine.ready"]["pid"]
        url = events["logging_pipeline.ready"]["binds"][0]
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/readyz")).json()["status"] == "ready"
            assert (await client.get(f"{url}/logs/jobs/1")).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        rest = await process.stderr.receive_some(65536)
        await process.stderr.aclose()
        assert b"logging_pipeline.stopped" in rest
        assert SECRET.encode() not in told + rest
        await wait_until(lambda: not os.path.isdir(f"/proc/{engine_pid}"))


async def test_a_missing_setting_is_named_and_ends_it_with_2(tmp_path: Path) -> None:
    with trio.fail_after(60):
        env = environment(tmp_path) | {"NIMBUS_JWT_SECRET": "", "NIMBUS_CLICKHOUSE_TABLE": "x; DROP"}
        done = await trio.run_process(ARGV, check=False, capture_stderr=True, env=env)
        assert done.returncode == 2
        assert b"NIMBUS_JWT_SECRET: is required" in done.stderr
        assert b"NIMBUS_CLICKHOUSE_TABLE: needs a plain name" in done.stderr


async def test_a_folder_that_another_pipeline_serves_is_told_in_one_line(tmp_path: Path) -> None:
    with trio.fail_after(90), run_engine(tmp_path / "clickhouse"):
        done = await trio.run_process(ARGV, check=False, capture_stderr=True, env=environment(tmp_path))
        assert done.returncode == 125
        assert done.stderr.splitlines()[-1].startswith(b"logging pipeline: the log store in ")


async def test_migrations_can_be_repeated_and_a_changed_retention_takes_effect(
    tmp_path: Path, engine: Endpoint
) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            table = rig.services.table
            database, _, name = table.name.partition(".")
            settings = StoreSettings(clickhouse_database=database, clickhouse_table=name, logging_retention_days=7)
            assert await migrate(table, settings) == []
            told = await table.rows_of(
                f"SELECT create_table_query AS text FROM system.tables WHERE database = '{database}'"  # noqa: S608 - ours
            )
            assert any("toIntervalDay(7)" in entry["text"] for entry in told)


def test_statements_of_a_migration_are_split_at_semicolons_that_end_a_line() -> None:
    text = "-- why; because\nCREATE a;\n\n-- more\nCREATE b (\n  'x;y'\n);\n"
    assert split_statements(text) == ["CREATE a", "CREATE b (\n  'x;y'\n)"]
