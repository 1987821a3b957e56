"""Fairness through leases.py: weights, priorities, a flood, what is too large for what is free, and the order told."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from nimbus.control_plane.queue.leases import finish_lease, grant_lease
from nimbus.control_plane.services import Services
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Ending
from nimbus.runtime.postgres import Row, Transaction
from nimbus.wire.leaseapi import FinishRequest, Grant, LeaseRequest
from tests.unit.control_plane.plane import add_agents, open_services

pytestmark = pytest.mark.services
ROOM = LeaseRequest(0.0, 64, 2**20, 100, ("nimbus",))
HOST = LeaseRequest(0.0, 8, 8192, 8, ("nimbus",))


@pytest.fixture
async def services(database_dsn: str, redis_url: str) -> AsyncIterator[Services]:
    async with open_services(database_dsn, redis_url) as running:
        await add_agents(running, "host-1", "host-2", "host-3")
        yield running


async def sql(services: Services, text: str, *args: object) -> list[Row]:
    async def fetch(transaction: Transaction) -> list[Row]:
        return list(await transaction.fetch(text, *args))

    return await services.database.run(fetch)


async def make_org(services: Services, forge_id: int, weight: int = 100) -> int:
    [row] = await sql(
        services,
        "INSERT INTO orgs (forge, forge_id, login, weight) VALUES ('github', $1, $2, $3) RETURNING org_id",
        *(forge_id, f"org-{forge_id}", weight),
    )
    return int(row["org_id"])


async def queue(services: Services, org_id: int, count: int = 1, cpus: int = 1, **more: object) -> list[int]:
    """So many machine requests, `waited_s` ago and each of that `priority`."""
    rows = await sql(
        services,
        "INSERT INTO machines (org_id, kind, host_labels, shape, image, priority, created_at, turn_at) "
        "SELECT $1, 'runner', '{nimbus}', $3, 'base', $4::smallint, at, "
        "at - make_interval(secs => $4::smallint * 60.0) "
        "FROM generate_series(1, $2), "
        "LATERAL (SELECT clock_timestamp() - make_interval(secs => $5::double precision) AS at) t RETURNING machine_id",
        org_id,
        count,
        {"cpus": cpus, "mem_mib": 256, "disk_mib": 1024},
        more.get("priority", 0),
        more.get("waited_s", 0.0),
    )
    return [row["machine_id"] for row in rows]


async def grant(services: Services, agent: str = "host-1", room: LeaseRequest = ROOM) -> Grant | None:
    return await grant_lease(services, agent, room)


async def take(services: Services, agent: str = "host-1", room: LeaseRequest = ROOM) -> int | None:
    granted = await grant(services, agent, room)
    return None if granted is None else granted.key.machine_id


async def finish(services: Services, agent: str, key: LeaseKey) -> None:
    await finish_lease(services, agent, FinishRequest(key, Ending.DONE))


async def told_order(services: Services) -> list[int]:
    rows = await sql(services, "SELECT machine_id FROM queue_order ORDER BY ahead")
    return [row["machine_id"] for row in rows]


# --- between orgs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 3])
async def test_a_flood_of_one_org_delays_anothers_single_job_by_one_machine_at_most(
    services: Services, slots: int
) -> None:
    flood, other = await make_org(services, 1), await make_org(services, 2)
    await queue(services, flood, 5000)
    running = [await grant(services) for _ in range(slots)]
    for _ in range(5):  # and it has been served all the while
        ended = running.pop(0)
        assert ended is not None
        await finish(services, "host-1", ended.key)
        running.append(await grant(services))
    [single] = await queue(services, other)
    assert (await told_order(services))[0] == single
    ended = running.pop(0)
    assert ended is not None
    await finish(services, "host-1", ended.key)
    assert await take(services) == single


async def test_orgs_that_hold_nothing_take_turns_on_the_only_place(services: Services) -> None:
    orgs = [await make_org(services, number) for number in (1, 2, 3)]
    for org_id in orgs:
        await queue(services, org_id, 10)
    served = []
    for _ in range(9):
        granted = await grant(services)
        assert granted is not None
        served.append(granted.org_id)
        await finish(services, "host-1", granted.key)
    assert served == orgs * 3


async def test_on_the_only_place_the_heavier_org_has_more_turns(services: Services) -> None:
    heavy, light = await make_org(services, 1, weight=10_000), await make_org(services, 2, weight=1)
    await queue(services, heavy, 30)
    await queue(services, light, 30)
    served: Counter[int] = Counter()
    for _ in range(20):
        granted = await grant(services)
        assert granted is not None
        served[granted.org_id] += 1
        await finish(services, "host-1", granted.key)
    assert served[light] >= 1
    assert served[heavy] > 15


async def test_what_orgs_hold_follows_their_weights(services: Services) -> None:
    orgs = {await make_org(services, number, weight): weight for number, weight in ((1, 100), (2, 200), (3, 300))}
    for org_id in orgs:
        await queue(services, org_id, 40)
    held = Counter([granted.org_id for granted in [await grant(services) for _ in range(36)] if granted is not None])
    assert held == {org_id: weight * 6 // 100 for org_id, weight in orgs.items()}


# --- within an org -------------------------------------------------------------------------------------------------


async def test_a_higher_priority_goes_first_and_waiting_makes_up_for_it(services: Services) -> None:
    org_id = await make_org(services, 1)
    [plain] = await queue(services, org_id)
    [urgent] = await queue(services, org_id, priority=5)
    [idle] = await queue(services, org_id, priority=-5)
    [old] = await queue(services, org_id, waited_s=301.0)
    assert await told_order(services) == [old, urgent, plain, idle]
    assert [await take(services) for _ in range(4)] == [old, urgent, plain, idle]


async def test_a_priority_takes_nothing_from_another_org(services: Services) -> None:
    loud, quiet = await make_org(services, 1), await make_org(services, 2)
    [first, second] = await queue(services, loud, 2, priority=100)
    [other] = await queue(services, quiet, priority=-100)
    assert [await take(services) for _ in range(3)] == [first, other, second]


# --- too large for what is free ------------------------------------------------------------------------------------


async def reserved(services: Services) -> dict[int, str]:
    rows = await sql(services, "SELECT machine_id, reserved_for FROM queue_order WHERE reserved_for IS NOT NULL")
    return {row["machine_id"]: row["reserved_for"] for row in rows}


async def half_full(services: Services, waited_s: float = 301.0) -> tuple[Grant, int, int]:
    """host-1 runs one machine of half its CPUs; one that needs all of them waits, and a small one behind it."""
    org_id = await make_org(services, 1)
    await queue(services, org_id, cpus=4)
    running = await grant(services, room=HOST)
    assert running is not None
    [large] = await queue(services, org_id, cpus=8, waited_s=waited_s)
    [small] = await queue(services, org_id)
    return running, large, small


HALF = replace(HOST, free_cpus=4, free_slots=7)


async def test_a_host_makes_room_for_what_has_waited_long_and_takes_nothing_else(services: Services) -> None:
    running, large, small = await half_full(services)
    assert [await take(services, room=HALF) for _ in range(2)] == [None, None]
    assert await reserved(services) == {large: "host-1"}
    assert await take(services, "host-2", room=HALF) == small
    await finish(services, "host-1", running.key)
    assert await take(services, room=HOST) == large
    assert await reserved(services) == {}
    assert services.metrics.registry.get_sample_value("nimbus_control_plane_hosts_reserved") == 1


async def test_what_has_not_waited_long_is_passed_by(services: Services) -> None:
    _, _, small = await half_full(services, waited_s=299.0)
    assert await take(services, room=HALF) == small
    assert await reserved(services) == {}


async def test_a_starvation_time_of_zero_never_makes_room(services: Services) -> None:
    never = replace(services, lease_terms=replace(services.lease_terms, starvation_s=0.0))
    _, _, small = await half_full(services, waited_s=9999.0)
    assert await take(never, room=HALF) == small


async def test_what_no_host_could_ever_hold_keeps_no_host_waiting(services: Services) -> None:
    _, large, small = await half_full(services)
    await sql(services, "UPDATE machines SET shape = shape || '{\"cpus\": 65}' WHERE machine_id = $1", large)
    assert await take(services, room=HALF) == small
    assert await reserved(services) == {}


CORDONED = [
    "UPDATE agents SET wanted = 'cordoned' WHERE agent_id = 'host-1'",
    "UPDATE agents SET wanted = 'drained' WHERE agent_id = 'host-1'",
    "UPDATE agents SET barred = 'too old' WHERE agent_id = 'host-1'",
    "DELETE FROM agents WHERE agent_id = 'host-1'",
]
SILENT = "UPDATE agents SET last_seen = clock_timestamp() - interval '3 minutes' WHERE agent_id = 'host-1'"


LEAVING = [
    "UPDATE agents SET doing = 'draining' WHERE agent_id = 'host-1'",
    "UPDATE agents SET doing = 'leaving' WHERE agent_id = 'host-1'",
]


@pytest.mark.parametrize("loss", [SILENT, *CORDONED, *LEAVING])
async def test_of_a_host_that_is_lost_or_cordoned_another_takes_the_reservation_over(
    services: Services, loss: str
) -> None:
    _, large, _ = await half_full(services)
    await take(services, room=HALF)
    other = await make_org(services, 2)
    await queue(services, other, cpus=4)
    assert await take(services, "host-2", room=HALF) is not None
    await sql(services, loss)
    assert await reserved(services) == {}
    await queue(services, other, 3)
    await sql(services, "UPDATE machines SET state = 'cancelled' WHERE state = 'queued' AND machine_id <> $1", large)
    assert await take(services, "host-2", room=HALF) is None
    assert await reserved(services) == {large: "host-2"}


async def test_one_host_at_a_time_makes_room(services: Services) -> None:
    _, large, small = await half_full(services)
    [second] = await queue(services, await make_org(services, 2), cpus=8, waited_s=301.0)
    assert await take(services, room=HALF) is None
    told = await reserved(services)
    assert len(told) == 1
    assert set(told) < {large, second}
    assert await take(services, "host-2", room=HALF) == small
    assert await reserved(services) == told


async def test_a_cancelled_wish_and_a_capped_org_free_their_host(services: Services) -> None:
    _, large, small = await half_full(services)
    assert await take(services, room=HALF) is None
    await sql(services, "UPDATE orgs SET max_machines = 1")
    other = await make_org(services, 2)
    [theirs] = await queue(services, other)
    assert await take(services, room=HALF) == theirs
    assert await reserved(services) == {}
    await sql(services, "UPDATE orgs SET max_machines = NULL")
    assert await take(services, room=HALF) is None
    assert await reserved(services) == {large: "host-1"}
    await sql(services, "UPDATE machines SET cancel_requested = true WHERE machine_id = $1", large)
    assert await take(services, room=HALF) == small


async def test_small_machines_of_an_org_wait_below_its_cap_for_a_large_one_that_waited_long(services: Services) -> None:
    org_id = await make_org(services, 1)
    await sql(services, "UPDATE orgs SET max_cpus = 4 WHERE org_id = $1", org_id)
    await queue(services, org_id)
    running = await grant(services)
    assert running is not None
    [large] = await queue(services, org_id, cpus=4, waited_s=301.0)
    [small] = await queue(services, org_id)
    assert await take(services) is None
    [other] = await queue(services, await make_org(services, 2))
    assert await take(services) == other
    await finish(services, "host-1", running.key)
    assert await take(services) == large
    await sql(services, "UPDATE orgs SET max_cpus = 8 WHERE org_id = $1", org_id)
    await queue(services, org_id, cpus=65, waited_s=301.0)
    assert await take(services) == small


LACKS = {
    "label": "UPDATE agents SET labels = '{other}' WHERE agent_id = 'host-3'",
    "disk": "UPDATE agents SET disk_mib = 1000 WHERE agent_id = 'host-3'",
    "time": "UPDATE agents SET doing = 'draining' WHERE agent_id = 'host-3'",
}


@pytest.mark.parametrize("lack", LACKS)
async def test_a_capped_org_s_small_machines_wait_for_none_that_no_host_can_take(services: Services, lack: str) -> None:
    org_id = await make_org(services, 1)
    await sql(services, "UPDATE orgs SET max_cpus = 64 WHERE org_id = $1", org_id)
    await queue(services, org_id, cpus=32, waited_s=301.0)
    [small] = await queue(services, org_id)
    await sql(services, "UPDATE agents SET cpus = 8 WHERE agent_id <> 'host-3'")
    await sql(services, "UPDATE agents SET cpus = 64, labels = '{nimbus}' WHERE agent_id = 'host-3'")
    assert await take(services, room=HOST) is None
    await sql(services, LACKS[lack])
    assert await take(services, room=HOST) == small


# --- hosts that are granted nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", CORDONED)
async def test_a_host_that_is_cordoned_barred_or_forgotten_is_granted_nothing(services: Services, loss: str) -> None:
    await queue(services, await make_org(services, 1))
    await sql(services, loss)
    assert await take(services) is None
    assert await take(services, "host-2") is not None
