"""The copy of the hosts' ledgers: what was told last, written only for news, and missed by nobody while it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog
import trio

from nimbus.control_plane.hosts.hosts import show_host
from nimbus.control_plane.hosts.mirror import COARSE_S, MAX_PENDING, Mirror, plan_report
from nimbus.control_plane.hosts.mirror_database import keep_mirror
from nimbus.model.labels import Arch
from nimbus.runtime.postgres import Row, Transaction, open_database
from nimbus.wire.heartbeat import Heartbeat, HostRoom, RecordLine
from tests.services import PostgresServer
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services

ROOM = HostRoom(8, 8192, 8)
BEAT = Heartbeat("0.1.0", "life", 1, 1, "working", "fake", Arch.X64, (), ROOM, ROOM)
RUNNING: dict[str, Any] = {
    "vm": "0a1b2c3d",
    "state": "running",
    "machine_id": 12,
    "fence": 3,
    "claims": ["slot", "vmm"],
    "left_s": 300,
}
WAITING = {"vm": "ffffffff", "state": "waiting", "claims": ["slot"]}


@asynccontextmanager
async def mirrored_plane(dsn: str, redis_url: str, mirror_dsn: str | None) -> AsyncIterator[Plane]:
    async with open_plane(dsn, redis_url) as plane, trio.open_nursery() as nursery:
        await nursery.start(keep_mirror, plane.services, mirror_dsn)
        yield plane
        nursery.cancel_scope.cancel()


async def beat(plane: Plane, agent: dict[str, str], number: int, *records: object, boot_id: str = "b") -> None:
    room = {"cpus": 8, "mem_mib": 8192, "slots": 8}
    body = {"version": "0.1.0", "boot_id": boot_id, "start": 1, "beat": number, "doing": "working", "vmm": "fake"}
    body |= {"arch": "x64", "labels": [], "total": room, "free": room, "records": list(records)}
    reply = await plane.http.post("/api/agents/heartbeat", json=body, headers=agent)
    assert reply.status_code == 200, reply.text


async def records_of(plane: Plane) -> Any:
    return (await show_host(plane.services, "agent-1"))["records"]


async def sql(dsn: str, text: str) -> Sequence[Row]:
    async def fetch(transaction: Transaction) -> Sequence[Row]:
        return await transaction.fetch(text)

    async with open_database(dsn, pool_size=1) as database:
        return await database.run(fetch)


@pytest.mark.parametrize("apart", [False, True])
async def test_what_a_host_told_last_of_its_ledger_can_be_queried(
    database_dsn: str, empty_database_dsn: str, redis_url: str, apart: bool
) -> None:
    where = empty_database_dsn if apart else database_dsn
    async with mirrored_plane(database_dsn, redis_url, where if apart else None) as plane:
        agent = await plane.enrol()
        await beat(plane, agent, 1, RUNNING, WAITING)
        first = await records_of(plane)
        await beat(plane, agent, 2, RUNNING | {"state": "ended", "claims": ["slot"]})
        second = await records_of(plane)
        kept = await sql(where, "SELECT agent_id, vm, machine_id, fence, state FROM agent_records")
    assert [(each["vm"], each["state"], each["machine_id"]) for each in first] == [
        ("0a1b2c3d", "running", 12),
        ("ffffffff", "waiting", None),
    ]
    assert [(each["vm"], each["state"], each["claims"]) for each in second] == [("0a1b2c3d", "ended", ["slot"])]
    assert [tuple(row.values()) for row in kept] == [("agent-1", "0a1b2c3d", 12, 3, "ended")]


async def test_nothing_is_written_while_a_host_tells_the_same(database_dsn: str, redis_url: str) -> None:
    async with mirrored_plane(database_dsn, redis_url, None) as plane:
        agent = await plane.enrol()
        for number in range(1, 5):
            await beat(plane, agent, number, WAITING)
            await records_of(plane)
        (report,) = await plane.sql("SELECT beat FROM agent_reports")
    assert report["beat"] == 1


async def test_a_report_that_arrives_late_changes_nothing(database_dsn: str, redis_url: str) -> None:
    async with mirrored_plane(database_dsn, redis_url, None) as plane:
        agent = await plane.enrol()
        await beat(plane, agent, 7, RUNNING)
        await records_of(plane)
        await beat(plane, agent, 6, WAITING)
        late = await records_of(plane)
        await beat(plane, agent, 1, WAITING, boot_id="another life")
        anew = await records_of(plane)
    assert [each["vm"] for each in late] == ["0a1b2c3d"]
    assert [each["vm"] for each in anew] == ["ffffffff"]


async def test_hostile_records_are_kept_as_text_and_one_vm_has_one_line(database_dsn: str, redis_url: str) -> None:
    nasty = "'); DELETE FROM agents; --"
    async with mirrored_plane(database_dsn, redis_url, None) as plane:
        agent = await plane.enrol()
        await beat(plane, agent, 1, RUNNING, RUNNING | {"state": nasty, "claims": ['{"x"}', ""]})
        (told,) = await records_of(plane)
    assert (told["vm"], told["state"], told["claims"]) == ("0a1b2c3d", nasty, ['{"x"}', ""])


async def test_work_goes_on_while_the_mirror_is_away_and_it_is_said(database_dsn: str, redis_url: str) -> None:
    away = "postgresql://nimbus@127.0.0.1:9/nowhere"
    with structlog.testing.capture_logs() as logs:
        async with mirrored_plane(database_dsn, redis_url, away) as plane:
            agent = await plane.enrol()
            await plane.submit()
            await beat(plane, agent, 1, RUNNING)
            grant = await plane.lease(agent)
            assert grant is not None
            renewed = await plane.renew(agent, grant)
            records = await records_of(plane)
            page = (await plane.http.get("/metrics")).text
    assert renewed.status_code == 200
    assert records is None
    assert "nimbus_control_plane_mirror_connected 0.0" in page
    assert len([each for each in logs if each["event"] == "mirror.away"]) == 1


async def test_a_mirror_that_refuses_our_schema_stops_nothing(
    database_dsn: str, empty_database_dsn: str, redis_url: str
) -> None:
    await sql(empty_database_dsn, "CREATE TABLE agent_records (taken boolean)")
    async with mirrored_plane(database_dsn, redis_url, empty_database_dsn) as plane:
        agent = await plane.enrol()
        await beat(plane, agent, 1, RUNNING)
        assert await records_of(plane) is None
        assert "nimbus_control_plane_mirror_connected 0.0" in (await plane.http.get("/metrics")).text


async def test_a_mirror_that_came_back_empty_is_filled_again_though_nothing_changed(
    database_dsn: str, empty_database_dsn: str, redis_url: str
) -> None:
    async with mirrored_plane(database_dsn, redis_url, empty_database_dsn) as plane:
        await beat(plane, await plane.enrol(), 1, RUNNING)
        await records_of(plane)
    await sql(empty_database_dsn, "DELETE FROM agent_reports RETURNING true")
    async with mirrored_plane(database_dsn, redis_url, empty_database_dsn) as plane:
        await beat(plane, await plane.enrol(), 2, RUNNING)
        (told,) = await records_of(plane)
    assert told["vm"] == "0a1b2c3d"


async def test_a_mirror_that_goes_away_and_returns_empty_is_filled_by_the_reports_that_come(
    database_dsn: str, empty_database_dsn: str, redis_url: str, postgres_server: PostgresServer
) -> None:
    name = urlsplit(empty_database_dsn).path[1:]
    async with mirrored_plane(database_dsn, redis_url, empty_database_dsn) as plane:
        agent = await plane.enrol()
        await beat(plane, agent, 1, RUNNING)
        await records_of(plane)
        postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")
        await beat(plane, agent, 2, WAITING)
        away = await records_of(plane)
        postgres_server.sql(f"CREATE DATABASE {name}")
        while (told := await records_of(plane)) is None:  # noqa: ASYNC110 - as its operators see it; limited above
            await trio.sleep(0.05)
    assert away is None
    assert [each["vm"] for each in told] == ["ffffffff"]


async def test_the_records_of_a_forgotten_host_go_with_it(database_dsn: str, redis_url: str) -> None:
    async with mirrored_plane(database_dsn, redis_url, None) as plane:
        await beat(plane, await plane.enrol(), 1, RUNNING)
        await records_of(plane)
        await plane.sql("UPDATE agents SET last_seen = clock_timestamp() - interval '1 hour'")
        reply = await plane.http.delete("/api/agents/agent-1", headers=plane.admin())
        await plane.services.mirror.read("agent-1")
        left = await plane.sql("SELECT FROM agent_records")
    assert reply.status_code == 200
    assert left == []


def test_a_renewal_is_news_once_a_minute_and_any_other_change_at_once() -> None:
    now_s = 100 * COARSE_S

    def digest(left_s: float, state: str = "running") -> str:
        return plan_report("a", BEAT, [RecordLine("v", state, 1, 1, (), left_s)], now_s).digest

    assert digest(300) == digest(310) != digest(300 + COARSE_S)
    assert digest(300) != digest(300, "ended")


def test_what_waits_for_a_mirror_is_bounded_and_the_newest_of_each_host() -> None:
    mirror = Mirror()
    most = MAX_PENDING // 4096
    lines = [RecordLine(str(number), "running") for number in range(4096)]
    for number in range(most + 3):
        mirror.offer(plan_report(f"agent-{number}", BEAT, lines, 0.0))
    mirror.offer(newer := plan_report("agent-0", BEAT, lines[:0], 0.0))
    assert len(mirror.pending) == most
    assert mirror.pending["agent-0"] is newer
