"""Whose trouble it is: the store's is told with its kind and who must act, ours never hides behind it."""

from __future__ import annotations

import socket
from pathlib import Path

import clickhouse_connect
import pytest
import trio
import trio.testing
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from structlog.testing import capture_logs
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ReadTimeoutError

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.store.trouble import ACTIONS, REMEMBERED_S, StoreHealth, Trouble, diagnose
from tests.unit.logging_pipeline.rig import open_rig, row
from tests.unit.logging_pipeline.test_store_faults import open_proxy


def test_a_failure_is_known_by_its_code_and_by_nothing_that_the_server_says() -> None:
    assert diagnose(DatabaseError("Code: 60", code=516)) is Trouble.STRANGER
    assert diagnose(DatabaseError("x", code=243)) is Trouble.FULL
    assert diagnose(DatabaseError("x", code=60)) is Trouble.SCHEMA
    assert diagnose(DatabaseError("x", code=99_999)) is Trouble.BROKEN


def test_a_failure_without_a_server_is_one_of_the_way_there() -> None:
    assert diagnose(ConnectionRefusedError()) is Trouble.AWAY
    late = OperationalError("late")
    late.__cause__ = ReadTimeoutError(HTTPConnectionPool("127.0.0.1"), "/", "late")
    assert diagnose(late) is Trouble.SLOW


def test_a_refused_connection_is_no_slow_store() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(OperationalError) as caught:
            clickhouse_connect.get_client(host="127.0.0.1", port=taken.getsockname()[1], query_retries=0)
    assert diagnose(caught.value) is Trouble.AWAY


def test_each_trouble_says_who_must_act() -> None:
    assert set(ACTIONS) == set(Trouble)


async def test_a_store_that_answers_and_takes_no_rows_is_in_trouble_until_it_takes_some(
    autojump_clock: trio.testing.MockClock,
) -> None:
    health = StoreHealth()
    kinds: list[str] = []
    health.on_trouble = kinds.append
    with capture_logs() as logs:
        for _ in range(3):
            health.note(Trouble.FULL, wrote=True)
            health.note_good(wrote=False)
            await trio.sleep(1)
        assert (health.standing.trouble, health.standing.for_s) == (Trouble.FULL, 3.0)
        health.note_good(wrote=True)
    assert health.standing.trouble is None
    assert kinds == [Trouble.FULL] * 3
    assert [each["event"] for each in logs] == ["store.trouble", "store.back"]


async def test_that_a_store_takes_no_rows_is_forgotten_where_nobody_tries_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    health = StoreHealth()
    health.note(Trouble.READONLY, wrote=True)
    await trio.sleep(REMEMBERED_S + 1)
    assert health.standing.trouble is None


@pytest.mark.parametrize(
    ("fault", "state"), [("refuses us", "refuses_us"), ("readonly", "read_only"), ("slow", "slow"), ("busy", "away")]
)
async def test_readiness_tells_the_stores_trouble_from_ours(
    tmp_path: Path, engine: Endpoint, fault: str, state: str
) -> None:
    with trio.fail_after(60):
        async with open_proxy(engine) as proxy, open_rig(tmp_path, proxy.endpoint, timeout_s=1) as rig:
            ready = await rig.client.get(f"{rig.url}/readyz")
            assert (ready.status_code, ready.json()["store"]) == (200, {"state": "ok"})
            await rig.ingest([row(0)])
            proxy.fault = fault
            assert (await rig.ingest([row(1)])).status_code == 503
            told = await rig.client.get(f"{rig.url}/readyz")
            assert (told.status_code, told.headers["retry-after"]) == (503, "1")
            assert (told.json()["status"], told.json()["store"]["state"]) == ("not_ready", state)
            assert told.json()["keys"] == "fresh"
            assert (await rig.client.get(f"{rig.url}/healthz")).json() == {"status": "ok"}
            assert "nimbus_logs_store_up 0.0" in (await rig.client.get(f"{rig.url}/metrics")).text
            proxy.fault = None
            assert (await rig.ingest([row(1)])).status_code == 200
            assert (await rig.client.get(f"{rig.url}/readyz")).json()["status"] == "ready"
            page = (await rig.client.get(f"{rig.url}/metrics")).text
            assert f'nimbus_logs_store_trouble_total{{kind="{state}"}} 1.0' in page
            assert "nimbus_logs_store_up 1.0" in page
