"""Agents that wait: one request wakes one of them over all processes, then the next; an idle one costs no query.

Nothing here is helped by time, but where a test says so: looks by time and the patience are a minute.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from nimbus.control_plane.metrics import Metrics
from nimbus.control_plane.queue.leases import finish_lease
from nimbus.control_plane.queue.seats import Offer, Room, plan_offer
from nimbus.control_plane.queue.waitroom import NOTE_S, run_waitroom, wait_grant
from nimbus.control_plane.services import MACHINES, HostTerms, LeaseTerms, Services
from nimbus.model.errors import Unavailable
from nimbus.model.vm import Ending
from nimbus.runtime.postgres import TRANSACTION_S, Row
from nimbus.runtime.redis import Bell
from nimbus.wire.leaseapi import FinishRequest, Grant, LeaseRequest
from tests.services import RedisServer
from tests.unit.control_plane.plane import Plane, add_agents, open_plane, open_services

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from nimbus.runtime.postgres import Bridge

pytestmark = pytest.mark.services
LONG_S = 60.0
NEVER = LeaseTerms(look_s=LONG_S, patience_s=LONG_S)
POLL = LeaseRequest(LONG_S, 8, 8192, 8, ("nimbus",))
OFFER: Offer = plan_offer(POLL)


@asynccontextmanager
async def two_planes(
    dsn: str, redis_url: str, terms: LeaseTerms = NEVER, agents: int = 0
) -> AsyncIterator[tuple[Plane, Plane]]:
    """Two processes' worth of control plane on one database and one bell, and agents that are known to it."""
    prefix = f"test:{secrets.token_hex(6)}:"
    with trio.fail_after(LONG_S):
        async with (
            open_plane(dsn, redis_url, terms=terms, prefix=prefix) as one,
            open_plane(dsn, redis_url, terms=terms, prefix=prefix) as two,
        ):
            await add_agents(one.services, *(f"agent-{number}" for number in range(agents)))
            await one.services.bell.wait_connected()
            await two.services.bell.wait_connected()
            yield one, two


class Pollers:
    """Agents that wait, each for its one grant."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.granted: list[tuple[str, Grant | None]] = []
        self._ended = trio.Event()

    def poll(self, services: Services, agent_id: str, request: LeaseRequest = POLL) -> None:
        self._nursery.start_soon(self._wait, services, agent_id, request)

    async def _wait(self, services: Services, agent_id: str, request: LeaseRequest) -> None:
        self.granted.append((agent_id, await wait_grant(services, agent_id, request)))
        self._ended.set()

    async def seat(self, services: Services, *agent_ids: str, request: LeaseRequest = POLL) -> None:
        """Let them wait, and none of them look by itself: the queue is known to be empty when they come."""
        nobody = services.room.enter("nobody", replace(OFFER, cpus=0))
        await until_quiet(services)
        services.room.leave(nobody)
        seated = len(services.room)
        for agent_id in agent_ids:
            self.poll(services, agent_id, request)
        await until_seated(services, seated + len(agent_ids))

    async def wait_ended(self, count: int) -> None:
        while len(self.granted) < count:
            self._ended = trio.Event()
            await self._ended.wait()


async def until_seated(services: Services, count: int) -> None:
    while len(services.room) != count:  # noqa: ASYNC110 - the room tells nobody but who may be woken
        await trio.sleep(0.005)


async def until_quiet(services: Services) -> None:
    """Until this process knows that nothing is queued."""
    while not services.room.is_quiet(services.bell.rings(MACHINES), trio.current_time()):  # noqa: ASYNC110 - as above
        await trio.sleep(0.005)


def woken(*planes: Plane) -> Counter[str]:
    """How many agents were woken, by what they leased then."""
    counts: Counter[str] = Counter()
    for plane in planes:
        for metric in plane.services.metrics.agents_woken.collect():
            counts.update({s.labels["leased"]: int(s.value) for s in metric.samples if s.name.endswith("_total")})
    return counts


async def queue(plane: Plane, *, host_labels: tuple[str, ...] = ("nimbus",), org_id: int = 1, count: int = 1) -> int:
    """Machine requests, behind the bell's back; the first one's id."""
    rows = await plane.sql(
        "INSERT INTO machines (org_id, kind, labels, host_labels, shape, image) "
        "SELECT $1, 'runner', '{nimbus}', $2, '{\"cpus\": 1, \"mem_mib\": 256, \"disk_mib\": 64}', 'base' "
        "FROM generate_series(1, $3) RETURNING machine_id",
        *(org_id, list(host_labels), count),
    )
    return int(rows[0]["machine_id"])


async def test_a_request_wakes_one_agent_of_all_processes(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=10) as (here, there), trio.open_nursery() as nursery:
        pollers = Pollers(nursery)
        await pollers.seat(here.services, *(f"agent-{number}" for number in range(5)))
        await pollers.seat(there.services, *(f"agent-{number}" for number in range(5, 10)))
        for turn in range(1, 6):
            await (here, there)[turn % 2].submit()
            await pollers.wait_ended(turn)
        assert woken(here, there) == {"its_request": 5}
        assert len(here.services.room) + len(there.services.room) == 5
        nursery.cancel_scope.cancel()


async def test_a_ring_costs_each_process_a_look_and_not_each_agent(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=20) as (here, _), trio.open_nursery() as nursery:
        pollers = Pollers(nursery)
        agents = [f"agent-{number}" for number in range(20)]
        await pollers.seat(here.services, *agents, request=replace(POLL, labels=("other",)))
        looks = here.services.metrics.queue_looks._value.get()
        await queue(here)
        await here.services.bell.ring(MACHINES)
        while here.services.room.is_quiet(here.services.bell.rings(MACHINES), trio.current_time()):  # noqa: ASYNC110
            await trio.sleep(0.005)
        await here.sql("DELETE FROM machines")
        await here.services.bell.ring(MACHINES)
        await until_quiet(here.services)
        assert here.services.metrics.queue_looks._value.get() - looks <= 4
        assert woken(here) == {}
        nursery.cancel_scope.cancel()


async def test_who_does_not_lease_in_time_is_followed_by_the_next(database_dsn: str, redis_url: str) -> None:
    terms = replace(NEVER, patience_s=0.3)
    async with two_planes(database_dsn, redis_url, terms, agents=2) as (here, _), trio.open_nursery() as nursery:
        hung = here.services.room.enter("agent-0", OFFER)  # it is called first, and never looks
        pollers = Pollers(nursery)
        await pollers.seat(here.services, "agent-1")
        job = await here.submit()
        with trio.fail_after(20):  # not before the next look by time
            await pollers.wait_ended(1)
        assert hung.called_for == job["machine_id"]
        assert [agent for agent, grant in pollers.granted if grant is not None] == ["agent-1"]


async def test_the_next_may_wait_in_another_process(database_dsn: str, redis_url: str) -> None:
    async with (
        two_planes(database_dsn, redis_url, replace(NEVER, patience_s=0.5), agents=1) as (_, there),
        trio.open_nursery() as nursery,
    ):
        pollers = Pollers(nursery)
        await pollers.seat(there.services, "agent-0")
        machine_id = await queue(there)
        await there.sql(  # as the other process writes it that has woken an agent of its own
            "INSERT INTO offers VALUES ($1, 0, clock_timestamp() + interval '0.4 s')", machine_id
        )
        await there.services.bell.ring(MACHINES)
        await pollers.wait_ended(1)
        [row] = await there.sql(
            "SELECT m.leased_at > o.until AS patient FROM machines m CROSS JOIN "
            "(SELECT created_at + interval '0.3 s' AS until FROM machines) o"
        )
        assert row["patient"]


async def test_a_woken_agent_that_leaves_is_followed_at_once(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=2) as (here, _), trio.open_nursery() as nursery:
        leaving = here.services.room.enter("agent-0", OFFER)
        pollers = Pollers(nursery)
        await pollers.seat(here.services, "agent-1")
        await here.submit()
        await leaving.wait_called()
        assert here.services.room.leave(leaving)
        await pollers.wait_ended(1)
        assert pollers.granted[0][1] is not None


async def test_agents_that_lack_a_label_are_not_woken(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=6) as (here, there), trio.open_nursery() as nursery:
        pollers = Pollers(nursery)
        await pollers.seat(here.services, "agent-0", "agent-1", "agent-2")
        await pollers.seat(there.services, "agent-3", "agent-4")
        await pollers.seat(there.services, "agent-5", request=replace(POLL, labels=("nimbus", "gpu")))
        await queue(here, host_labels=("nimbus", "gpu"))
        await here.services.bell.ring(MACHINES)
        await pollers.wait_ended(1)
        assert [agent for agent, _ in pollers.granted] == ["agent-5"]
        assert woken(here, there) == {"its_request": 1}
        nursery.cancel_scope.cancel()


async def test_a_cordoned_agent_is_passed_over(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=4) as (here, _), trio.open_nursery() as nursery:
        pollers = Pollers(nursery)
        await pollers.seat(here.services, *(f"agent-{number}" for number in range(4)))
        await here.sql("UPDATE agents SET wanted = 'cordoned' WHERE agent_id <> 'agent-3'")
        await here.submit()
        await pollers.wait_ended(1)
        assert [agent for agent, grant in pollers.granted if grant is not None] == ["agent-3"]
        assert woken(here) == {"its_request": 1}
        nursery.cancel_scope.cancel()


async def test_a_long_queue_that_may_not_run_wakes_nobody_and_hides_nothing(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=5) as (here, there), trio.open_nursery() as nursery:
        rows = await here.sql(
            "INSERT INTO orgs (forge, forge_id, login, max_machines) VALUES ('github', 1, 'capped', 0) RETURNING org_id"
        )
        await queue(here, org_id=rows[0]["org_id"], count=200)
        await queue(here, host_labels=("nobody-has-it",), count=200)
        pollers = Pollers(nursery)
        for number in range(5):
            pollers.poll((here, there)[number % 2].services, f"agent-{number}")
        await until_seated(here.services, 3)
        await until_seated(there.services, 2)
        job = await there.submit()
        await pollers.wait_ended(1)
        assert [grant.key.machine_id for _, grant in pollers.granted if grant is not None] == [job["machine_id"]]
        assert woken(here, there)["nothing"] == 0
        nursery.cancel_scope.cancel()


async def test_an_idle_agent_that_comes_asks_the_database_for_nothing(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=2) as (here, _), trio.open_nursery() as nursery:
        pollers = Pollers(nursery)
        await pollers.seat(here.services, "agent-0")
        await queue(here)  # nobody was told: whoever looked would find it
        assert await wait_grant(here.services, "agent-1", replace(POLL, wait_s=0.1)) is None
        assert await wait_grant(here.services, "agent-1", replace(POLL, wait_s=0.0)) is not None
        nursery.cancel_scope.cancel()


async def test_what_an_agent_offers_is_written_once_and_again_when_it_changes(
    database_dsn: str, redis_url: str
) -> None:
    async with two_planes(database_dsn, redis_url, agents=1) as (here, _):
        now = replace(POLL, wait_s=0.0)
        await wait_grant(here.services, "agent-0", now)
        [first] = await here.sql("SELECT xmin::text, labels, arch FROM agents")
        await wait_grant(here.services, "agent-0", now)
        [second] = await here.sql("SELECT xmin::text, labels, arch FROM agents")
        await wait_grant(here.services, "agent-0", replace(now, labels=("Nimbus", "GPU")))
        [third] = await here.sql("SELECT labels FROM agents")
        assert dict(first) == dict(second)
        assert (first["labels"], first["arch"], third["labels"]) == (["nimbus"], "x64", ["gpu", "nimbus"])


async def test_a_client_that_goes_away_leaves_the_room(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url) as (here, _), trio.open_nursery() as nursery:
        agent = await here.enrol("agent-0")
        nursery.start_soon(here.lease, agent, 30.0)
        await until_seated(here.services, 1)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(LONG_S):
            await until_seated(here.services, 0)
            await here.submit()
            assert [row["state"] for row in await here.sql("SELECT state FROM machines")] == ["queued"]


async def test_a_service_that_stops_lets_all_who_wait_go_without_a_look(database_dsn: str, redis_url: str) -> None:
    async with two_planes(database_dsn, redis_url, agents=5) as (here, _):
        async with trio.open_nursery() as nursery:
            pollers = Pollers(nursery)
            await pollers.seat(here.services, *(f"agent-{number}" for number in range(5)))
            here.services.stopping.set()
            await queue(here)
        assert [grant for _, grant in pollers.granted] == [None] * 5


async def test_no_request_is_missed_however_agents_and_requests_come(database_dsn: str, redis_url: str) -> None:
    """Nothing is found by time here: one that is missed in a race waits until the test fails."""
    jobs = 60
    done: Counter[int] = Counter()
    async with two_planes(database_dsn, redis_url, agents=8) as planes, trio.open_nursery() as nursery:

        async def work(agent_id: str, dice: random.Random) -> None:
            while True:
                services = dice.choice(planes).services
                grant = await wait_grant(services, agent_id, POLL)
                assert grant is not None
                await finish_lease(services, agent_id, FinishRequest(grant.key, Ending.DONE, exit_code=0))
                done[grant.key.machine_id] += 1
                if sum(done.values()) == jobs:
                    nursery.cancel_scope.cancel()

        async def submit(dice: random.Random) -> None:
            for _ in range(jobs // 3):
                await dice.choice(planes).submit()
                await trio.sleep(dice.choice((0, 0, 0.01, 0.03)))

        for number in range(8):
            nursery.start_soon(work, f"agent-{number}", random.Random(number))
        for number in range(3):
            nursery.start_soon(submit, random.Random(100 + number))
    assert len(done) == jobs
    assert set(done.values()) == {1}


async def test_without_the_bell_work_is_found_by_looking_and_rings_return(
    database_dsn: str, redis_server: RedisServer
) -> None:
    terms = LeaseTerms(look_s=0.5)
    with capture_logs() as logs:
        async with (
            two_planes(database_dsn, redis_server.url, terms, agents=4) as (here, there),
            trio.open_nursery() as nursery,
        ):
            await trio.to_thread.run_sync(redis_server.stop)
            while here.services.bell.connected or there.services.bell.connected:  # noqa: ASYNC110 - nobody tells it
                await trio.sleep(0.01)
            pollers = Pollers(nursery)
            for number in range(4):
                pollers.poll(there.services, f"agent-{number}")
            await until_seated(there.services, 4)
            for _ in range(3):
                await here.submit()
            await pollers.wait_ended(3)
            told = (
                (await here.http.get("/readyz")).json(),
                (await here.http.get("/api/status", headers=here.admin())).json(),
            )
            assert [each["bell"] for each in told] == ["polling", "polling"]
            assert "nimbus_control_plane_bell_connected 0.0" in (await here.http.get("/metrics")).text
            await trio.to_thread.run_sync(redis_server.start)
            await here.services.bell.wait_connected()
            await there.services.bell.wait_connected()
            rings = there.services.bell.rings(MACHINES)
            await here.submit()
            await pollers.wait_ended(4)
            while there.services.bell.rings(MACHINES) == rings:  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
            assert (await here.http.get("/readyz")).json()["bell"] == "redis"
            assert "nimbus_control_plane_bell_connected 1.0" in (await here.http.get("/metrics")).text
    assert all(grant is not None for _, grant in pollers.granted)
    events = Counter(each["event"] for each in logs)
    assert (events["bell.lost"], events["bell.heard_again"]) == (2, 2)


async def test_a_room_of_its_own_makes_bare_services_wake_their_agents(database_dsn: str, redis_url: str) -> None:
    async with open_services(database_dsn, redis_url, terms=NEVER) as services, trio.open_nursery() as nursery:
        await add_agents(services, "agent-0")
        nursery.start_soon(run_waitroom, services)
        pollers = Pollers(nursery)
        pollers.poll(services, "agent-0")
        await until_quiet(services)
        services.stopping.set()
        await pollers.wait_ended(1)
        nursery.cancel_scope.cancel()


def test_an_idle_agent_that_sends_no_heartbeats_is_noted_before_it_counts_as_silent() -> None:
    """One of the release before: between two notes it would be told as silent, and could be forgotten as it waits."""
    assert HostTerms(interval_s=1.0).silent_s >= 2 * NOTE_S


class Hanging:
    """A database that hangs for as long as a statement may, and is away; when each look at it began."""

    def __init__(self) -> None:
        self.looks: list[float] = []

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        if "UPDATE agents" not in sql:  # who waits is noted beside the looks
            self.looks.append(trio.current_time())
        await trio.sleep(TRANSACTION_S)
        raise Unavailable("the database took too long")


async def test_a_look_that_the_database_let_hang_is_soon_followed_by_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    database, terms, room = Hanging(), LeaseTerms(), Room()
    told = {"database": database, "lease_terms": terms, "room": room, "metrics": Metrics(), "stopping": trio.Event()}
    bell = Bell(cast("Bridge", None), cast("Redis", None), "")
    room.enter("agent-0", OFFER)
    with trio.move_on_after(10 * TRANSACTION_S):
        await run_waitroom(cast("Services", SimpleNamespace(bell=bell, **told)))
    assert len(database.looks) > 1
    pauses = [later - before - TRANSACTION_S for before, later in pairwise(database.looks)]
    assert max(pauses) <= terms.look_s + 1
