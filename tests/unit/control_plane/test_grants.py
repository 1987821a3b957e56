"""Whose turn it is: fairness between orgs, their caps under several granting processes, and a long queue."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from nimbus.control_plane.queue.leases import grant_lease
from nimbus.control_plane.queue.waitroom import wait_grant
from nimbus.control_plane.services import LeaseTerms
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.leaseapi import Grant, LeaseRequest
from tests.unit.control_plane.plane import Plane, add_agents, open_plane, open_services

pytestmark = pytest.mark.services
LEASES = ("nimbus.control_plane", "queries", "leases.sql")
DEMAND = ("nimbus.control_plane", "queries", "demand.sql")
WAITING = ("nimbus.control_plane", "queries", "waiting.sql")
ROOM = LeaseRequest(0.0, 64, 2**20, 100, ("nimbus",))


@pytest.fixture
async def plane(database_dsn: str, redis_url: str) -> AsyncIterator[Plane]:
    async with open_plane(database_dsn, redis_url) as running:
        await add_agents(running.services, "agent-1")
        yield running


async def make_org(plane: Plane, forge_id: int, **caps: int) -> int:
    [row] = await plane.sql(
        "INSERT INTO orgs (forge, forge_id, login, max_machines, max_cpus) VALUES ('github', $1, $2, $3, $4) "
        "RETURNING org_id",
        *(forge_id, f"org-{forge_id}", caps.get("max_machines"), caps.get("max_cpus")),
    )
    return int(row["org_id"])


async def queue(plane: Plane, org_id: int, count: int, cpus: int = 1, **more: Any) -> None:
    shape = {"cpus": cpus, "mem_mib": 256, "disk_mib": 1024} | more.pop("shape", {})
    await plane.sql(
        "INSERT INTO machines (org_id, kind, labels, host_labels, shape, image, alias, installation_id) "
        "SELECT $1, 'runner', '{nimbus}', $6, $3, 'base', $4, $5 FROM generate_series(1, $2)",
        *(org_id, count, shape, more.get("alias"), more.get("installation_id"), more.get("host_labels", ["nimbus"])),
    )


async def grant(plane: Plane, agent: str = "agent-1") -> int | None:
    """The org of the next machine that is granted; None where there is none."""
    granted = await grant_lease(plane.services, agent, ROOM)
    return None if granted is None else granted.org_id


async def held(plane: Plane) -> Counter[int]:
    rows = await plane.sql("SELECT org_id FROM machines WHERE state = 'leased'")
    return Counter(row["org_id"] for row in rows)


async def test_an_org_with_a_long_queue_does_not_keep_the_others_waiting(plane: Plane) -> None:
    many, few = await make_org(plane, 1), await make_org(plane, 2)
    await queue(plane, many, 50)
    await queue(plane, few, 2)
    assert [await grant(plane) for _ in range(6)] == [many, few, many, few, many, many]


async def test_shares_are_counted_in_cpus(plane: Plane) -> None:
    large, small = await make_org(plane, 1), await make_org(plane, 2)
    await queue(plane, large, 3, cpus=4)
    await queue(plane, small, 10, cpus=1)
    assert [await grant(plane) for _ in range(7)] == [large, small, small, small, small, large, small]


async def test_an_org_at_its_cap_of_machines_lets_those_behind_it_pass(plane: Plane) -> None:
    capped, other = await make_org(plane, 1, max_machines=2), await make_org(plane, 2)
    await queue(plane, capped, 5)
    await queue(plane, other, 5, cpus=10)
    assert [await grant(plane) for _ in range(8)] == [capped, other, capped, *[other] * 4, None]
    await plane.sql("UPDATE orgs SET max_machines = NULL WHERE org_id = $1", capped)
    assert await grant(plane) == capped


async def test_a_cap_of_cpus_leaves_room_for_a_smaller_machine(plane: Plane) -> None:
    capped = await make_org(plane, 1, max_cpus=5)
    await queue(plane, capped, 2, cpus=4)
    await queue(plane, capped, 2, cpus=1)
    assert [await grant(plane) for _ in range(3)] == [capped, capped, None]
    rows = await plane.sql("SELECT shape FROM machines WHERE state = 'leased' ORDER BY machine_id")
    assert [row["shape"]["cpus"] for row in rows] == [4, 1]


async def test_a_cap_of_zero_holds_an_org_back(plane: Plane) -> None:
    await queue(plane, await make_org(plane, 1, max_machines=0), 1)
    assert await grant(plane) is None


async def test_an_aliass_own_cap_leaves_the_orgs_other_machines_alone(plane: Plane) -> None:
    org_id = await make_org(plane, 1)
    await plane.sql(
        "INSERT INTO label_aliases (org_id, alias, shape, max_machines) VALUES ($1, 'big', $2, 1)", org_id, {}
    )
    await queue(plane, org_id, 3, alias="big")
    await queue(plane, org_id, 2)
    assert [await grant(plane) for _ in range(4)] == [org_id, org_id, org_id, None]
    rows = await plane.sql("SELECT alias FROM machines WHERE state = 'leased' ORDER BY machine_id")
    assert [row["alias"] for row in rows] == ["big", None, None]


async def test_caps_hold_while_several_processes_grant_at_once(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane, open_services(database_dsn, redis_url) as second:
        await add_agents(plane.services, *(f"agent-{number}" for number in range(8)))
        capped = await make_org(plane, 1, max_machines=3)
        by_cpus = await make_org(plane, 2, max_cpus=4)
        other = await make_org(plane, 3)
        for org_id in (capped, by_cpus, other):
            await queue(plane, org_id, 20, cpus=2)

        async def grab(services: object, agent: str) -> None:
            for _ in range(12):
                await grant_lease(services, agent, ROOM)  # type: ignore[arg-type]

        async with trio.open_nursery() as agents:
            for number in range(8):
                agents.start_soon(grab, plane.services if number % 2 else second, f"agent-{number}")
        assert await held(plane) == {capped: 3, by_cpus: 2, other: 20}


async def test_an_agent_that_looked_while_another_process_counted_looks_again_soon(
    database_dsn: str, redis_url: str
) -> None:
    seldom = LeaseTerms(look_s=50.0)
    async with open_plane(database_dsn, redis_url, terms=seldom) as plane, trio.open_nursery() as nursery:
        await add_agents(plane.services, "agent-1", "agent-2")
        capped = await make_org(plane, 1, max_machines=3)
        await queue(plane, capped, 1)
        counting, done = trio.Event(), asyncio.Event()

        async def count(transaction: Transaction) -> None:
            """Another process, between its two statements."""
            assert await transaction.fetchval(load_queries(*LEASES)["lock_caps"])
            counting.set()
            await done.wait()

        nursery.start_soon(plane.services.database.run, count)
        await counting.wait()
        granted: list[Grant | None] = []

        async def wait() -> None:
            granted.append(await wait_grant(plane.services, "agent-1", replace(ROOM, wait_s=45.0)))

        nursery.start_soon(wait)
        assert await grant(plane, "agent-2") is None
        done.set()
    assert [each is not None for each in granted] == [True]


async def block(plane: Plane, installation_id: int, kind: str, retry_s: float, scope: str = "") -> None:
    await plane.sql(
        "INSERT INTO forge_problems (installation_id, scope, task, kind, said, retry_at) "
        "VALUES ($1, $2, 'register', $3, 'said', clock_timestamp() + make_interval(secs => $4))",
        *(installation_id, scope, kind, retry_s),
    )


async def test_what_cannot_register_at_github_takes_no_host_from_others(plane: Plane) -> None:
    suspended, fine = await make_org(plane, 1), await make_org(plane, 2)
    await queue(plane, suspended, 3, installation_id=77)
    await queue(plane, fine, 2, installation_id=78)
    await block(plane, 77, "suspended", 3600.0)
    assert [await grant(plane) for _ in range(3)] == [fine, fine, None]


async def test_one_machine_goes_ahead_to_try_whether_somebody_has_acted(plane: Plane) -> None:
    org_id = await make_org(plane, 1)
    await queue(plane, org_id, 3, installation_id=77)
    await block(plane, 77, "suspended", -1.0)
    assert [await grant(plane) for _ in range(2)] == [org_id, None]
    await plane.sql("DELETE FROM forge_problems")
    assert await grant(plane) == org_id


async def test_after_a_limit_has_passed_all_go_on(plane: Plane) -> None:
    org_id = await make_org(plane, 1)
    await queue(plane, org_id, 2, installation_id=77)
    await block(plane, 77, "rate_limit", -1.0)
    assert [await grant(plane) for _ in range(2)] == [org_id, org_id]


@pytest.mark.parametrize("history", [0, 10_000])
async def test_with_ten_thousand_queued_a_grant_reads_a_few_rows(plane: Plane, history: int) -> None:
    orgs = [await make_org(plane, forge_id) for forge_id in range(1, 11)]
    await queue(plane, orgs[0], history)
    await plane.sql("UPDATE machines SET state = 'done', agent_id = 'agent-1', leased_at = now(), finished_at = now()")
    for org_id in orgs:
        await queue(plane, org_id, 1000)
    await plane.sql("ANALYZE")
    asked = ("agent-1", 8, 8192, ["nimbus"], 30.0, None, "x64", True, ["outage"], 300.0)
    plan = await explain(plane, LEASES, "grant_lease", *asked)
    scanned = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan, "machines"))
    assert {node["Node Type"] for node in scans(plan, "machines")} <= {"Index Scan", "Index Only Scan"}
    assert scanned < 100


@pytest.mark.parametrize("query", ["count_demand", "surplus_unregistered", "waiting_sets"])
async def test_counting_demand_does_not_read_the_history_of_machines(plane: Plane, query: str) -> None:
    org_id = await make_org(plane, 1)
    await queue(plane, org_id, 10_000)
    await plane.sql("UPDATE machines SET state = 'done', finished_at = clock_timestamp() - interval '1 day'")
    await plane.sql(
        "INSERT INTO jobs (org_id, source, forge_job_id, labels, state) SELECT $1, 'github', n, '{nimbus}', 'queued' "
        "FROM generate_series(1, 5) n",
        org_id,
    )
    await queue(plane, org_id, 5)
    await plane.sql("ANALYZE")
    args = {
        "count_demand": (None, ["nimbus"], 330.0),
        "surplus_unregistered": (None, ["nimbus"], 3),
        "waiting_sets": (60.0,),
    }
    plan = await explain(plane, DEMAND, query, org_id, *args[query])
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan, "machines")) < 100
    assert "Seq Scan" not in {node["Node Type"] for node in scans(plan, "machines")}


async def test_explaining_many_jobs_of_a_long_queue_reads_that_queue_once_and_not_for_each(plane: Plane) -> None:
    org_id = await make_org(plane, 1)
    jobs = await plane.sql(
        "INSERT INTO jobs (org_id, source, forge_job_id, labels, state) SELECT $1, 'github', n, '{nimbus}', 'queued' "
        "FROM generate_series(1, 2000) n RETURNING job_id",
        org_id,
    )
    await queue(plane, org_id, 2000)
    await plane.sql("ANALYZE")
    plan = await explain(plane, WAITING, "waiting_facts", [row["job_id"] for row in jobs[:200]])
    read = [node["Actual Rows"] * node["Actual Loops"] for table in ("machines", "jobs") for node in scans(plan, table)]
    assert sum(read) < 5 * 2000


async def explain(plane: Plane, path: tuple[str, ...], query: str, *args: object) -> dict[str, Any]:
    """How PostgreSQL answers a statement, by its own word."""
    text = load_queries(*path)[query]

    async def run(transaction: Transaction) -> Row | None:
        return await transaction.fetchrow(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *args)

    row = await plane.services.database.run(run)
    assert row is not None
    return dict(json.loads(row["QUERY PLAN"])[0]["Plan"])


def scans(node: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """Every node of the plan that reads the table."""
    found = [node] if node.get("Relation Name") == table and "Scan" in node["Node Type"] else []
    return found + [each for child in node.get("Plans", []) for each in scans(child, table)]
