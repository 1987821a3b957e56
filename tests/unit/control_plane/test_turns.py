"""Turns against a model: orgs, weights, caps, priorities, sizes and hosts at random, on real PostgreSQL.

Time is the rows': a turn ends one machine and makes all that waits a minute older, so that no test waits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nimbus.control_plane.queue.leases import finish_lease, grant_lease
from nimbus.control_plane.services import Services
from nimbus.model.vm import Ending
from nimbus.runtime.postgres import Row, Transaction
from nimbus.wire.leaseapi import FinishRequest, Grant, LeaseRequest
from tests.services import PostgresServer
from tests.unit.control_plane.plane import open_services

pytestmark = pytest.mark.services
MEM_MIB = 2**20
PLAY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Org:
    weight: int = 100
    max_machines: int | None = None
    max_cpus: int | None = None


@dataclass(frozen=True)
class Wish:
    org: int
    cpus: int
    priority: int = 0
    churns: bool = False  # when it ends, its org asks for the same again


@dataclass
class Stage:
    """What runs where. Org numbers are places in `orgs`, host numbers in `hosts`: the CPUs of each, and its slots."""

    services: Services
    orgs: list[Org]
    hosts: list[int]
    org_ids: list[int] = field(default_factory=list)
    wishes: dict[int, Wish] = field(default_factory=dict)
    running: list[tuple[int, Grant]] = field(default_factory=list)  # the longest first
    waiting: set[int] = field(default_factory=set)

    async def sql(self, text: str, *args: object) -> list[Row]:
        async def fetch(transaction: Transaction) -> list[Row]:
            return list(await transaction.fetch(text, *args))

        return await self.services.database.run(fetch)

    async def set_up(self) -> None:
        for host, cpus in enumerate(self.hosts):
            await self.sql(
                "INSERT INTO agents (agent_id, version, boot_id, cpus, mem_mib) VALUES ($1, '1', 'b', $2, $3)",
                *(f"host-{host}", cpus, MEM_MIB),
            )
        for number, org in enumerate(self.orgs):
            [row] = await self.sql(
                "INSERT INTO orgs (forge, forge_id, login, weight, max_machines, max_cpus) "
                "VALUES ('github', $1, 'x', $2, $3, $4) RETURNING org_id",
                *(number + 1, org.weight, org.max_machines, org.max_cpus),
            )
            self.org_ids.append(row["org_id"])

    async def queue(self, wish: Wish) -> None:
        [row] = await self.sql(
            "INSERT INTO machines (org_id, kind, shape, image, priority, turn_at) "
            "VALUES ($1, 'runner', $2, 'base', $3, clock_timestamp() - make_interval(secs => $3::smallint * 60.0)) "
            "RETURNING machine_id",
            *(self.org_ids[wish.org], {"cpus": wish.cpus, "mem_mib": 256, "disk_mib": 1024}, wish.priority),
        )
        self.wishes[row["machine_id"]] = wish
        self.waiting.add(row["machine_id"])

    def free(self, host: int) -> int:
        return self.hosts[host] - sum(grant.shape.cpus for where, grant in self.running if where == host)

    async def fill(self) -> None:
        """Every host asks until it is told that there is nothing for it."""
        for host in range(len(self.hosts)):
            while self.free(host) > 0:
                room = LeaseRequest(0.0, self.free(host), MEM_MIB, self.free(host))
                grant = await grant_lease(self.services, f"host-{host}", room)
                if grant is None:
                    break
                self.running.append((host, grant))
                self.waiting.discard(grant.key.machine_id)
                assert self.free(host) >= 0
                self.check_caps()

    async def end(self, place: int) -> None:
        """A minute later one machine ends."""
        host, grant = self.running.pop(place % len(self.running))
        await finish_lease(self.services, f"host-{host}", FinishRequest(grant.key, Ending.DONE))
        await self.sql(
            "UPDATE machines SET created_at = created_at - interval '1 minute', "
            "turn_at = turn_at - interval '1 minute', leased_at = leased_at - interval '1 minute'"
        )
        wish = self.wishes[grant.key.machine_id]
        if wish.churns:
            await self.queue(wish)

    def held(self) -> Counter[int]:
        """CPUs of each org."""
        held: Counter[int] = Counter()
        for _, grant in self.running:
            held[self.org_ids.index(grant.org_id)] += grant.shape.cpus
        return held

    def check_caps(self) -> None:
        cpus = self.held()
        for number, org in enumerate(self.orgs):
            machines = sum(grant.org_id == self.org_ids[number] for _, grant in self.running)
            assert org.max_machines is None or machines <= org.max_machines
            assert org.max_cpus is None or cpus[number] <= org.max_cpus

    def may_ever_run(self, wish: Wish) -> bool:
        org = self.orgs[wish.org]
        return (
            wish.cpus <= max(self.hosts)
            and org.max_machines != 0
            and (org.max_cpus is None or wish.cpus <= org.max_cpus)
        )


async def play_out(stage: Stage, wishes: list[Wish], ends: list[int]) -> None:
    """Turn by turn, while every machine that ends is asked for anew, until all that may run has run."""
    await stage.set_up()
    for wish in wishes:
        await stage.queue(wish)
    watched = {machine for machine, wish in stage.wishes.items() if stage.may_ever_run(wish)}
    bound = 20 + len(watched) * 2 * (sum(stage.hosts) + 8)
    for turn in range(bound):
        await stage.fill()
        if not watched & stage.waiting:
            return
        assert stage.running, "something could run, and nothing does"
        # every other turn the one that runs longest: nothing runs for ever
        await stage.end(0 if turn % 2 else min(ends[turn // 2 % len(ends)], len(stage.running) - 1))
    raise AssertionError(f"still waiting: {[stage.wishes[machine] for machine in watched & stage.waiting]}")


def clear(postgres_server: PostgresServer, dsn: str) -> None:
    name = urlsplit(dsn).path.strip("/")
    postgres_server.sql("TRUNCATE jobs, machines, machine_events, agents, orgs CASCADE", name)


ORGS = st.lists(
    st.builds(
        Org,
        weight=st.sampled_from([50, 100, 200]),
        max_machines=st.sampled_from([None, None, 0, 1, 2]),
        max_cpus=st.sampled_from([None, None, 1, 3, 4]),
    ),
    min_size=1,
    max_size=3,
)
WISHES = st.lists(
    st.builds(Wish, st.integers(0, 2), st.sampled_from([1, 1, 2, 3, 4, 9]), st.integers(-3, 3), st.booleans()),
    min_size=1,
    max_size=6,
)


@PLAY
@given(
    orgs=ORGS,
    hosts=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    wishes=WISHES,
    ends=st.lists(st.integers(0, 2), min_size=1, max_size=5),
)
def test_whatever_some_host_could_hold_is_granted_in_a_bounded_number_of_turns_and_no_cap_is_passed(
    postgres_server: PostgresServer,
    database_dsn: str,
    orgs: list[Org],
    hosts: list[int],
    wishes: list[Wish],
    ends: list[int],
) -> None:
    clear(postgres_server, database_dsn)
    mine = [Wish(wish.org % len(orgs), wish.cpus, wish.priority, wish.churns) for wish in wishes]
    crowd = [Wish(number, 1, 3, churns=True) for number in range(len(orgs)) for _ in range(3)]

    async def play() -> None:
        with trio.fail_after(300):
            async with open_services(database_dsn, "redis://127.0.0.1:1/0") as services:
                await play_out(Stage(services, orgs, hosts), crowd + mine, ends)

    trio.run(play)


WEIGHTS = st.lists(st.sampled_from([50, 100, 200, 400]), min_size=2, max_size=4)


@PLAY
@given(weights=WEIGHTS, ends=st.lists(st.integers(0, 23)))
def test_no_org_holds_more_than_one_machine_above_its_share_by_weight(
    postgres_server: PostgresServer, database_dsn: str, weights: list[int], ends: list[int]
) -> None:
    clear(postgres_server, database_dsn)

    async def play() -> None:
        with trio.fail_after(300):
            async with open_services(database_dsn, "redis://127.0.0.1:1/0") as services:
                stage = Stage(services, [Org(weight) for weight in weights], [12, 12])
                await stage.set_up()
                for number in range(len(weights)):
                    for _ in range(24):
                        await stage.queue(Wish(number, 1, churns=True))
                await stage.fill()
                for end in ends:
                    held = stage.held()
                    for number, weight in enumerate(weights):
                        assert held[number] - 24 * weight / sum(weights) <= 1
                    await stage.end(end)
                    await stage.fill()

    trio.run(play)


def check_turns(stage: Stage, order: list[int]) -> None:
    """Each in its turn: of the orgs that still wait none holds less for its weight, as the order has gone so far."""
    held: Counter[int] = Counter()
    left = [stage.wishes[machine] for machine in order]
    while left:
        shares = {wish.org: held[wish.org] / stage.orgs[wish.org].weight for wish in left}
        wish = left.pop(0)
        assert shares[wish.org] == min(shares.values())
        assert wish.priority == max(other.priority for other in [wish, *left] if other.org == wish.org)
        held[wish.org] += wish.cpus


@PLAY
@example(weights=[100] * 3, wishes=[Wish(org, 1) for org in (1, 0, 0, 2, 1, 0, 1)])
@given(
    weights=st.lists(st.sampled_from([50, 100, 200]), min_size=3, max_size=3),
    wishes=st.lists(st.builds(Wish, st.integers(0, 2), st.integers(1, 3), st.integers(-3, 3)), max_size=12),
)
def test_the_order_that_is_told_and_the_order_of_the_grants_follow_the_same_rule(
    postgres_server: PostgresServer, database_dsn: str, weights: list[int], wishes: list[Wish]
) -> None:
    clear(postgres_server, database_dsn)
    of_one_size = len({wish.cpus for wish in wishes}) == 1 and len(set(weights)) == 1

    async def play() -> None:
        with trio.fail_after(300):
            async with open_services(database_dsn, "redis://127.0.0.1:1/0") as services:
                stage = Stage(services, [Org(weight) for weight in weights], [100])
                await stage.set_up()
                for wish in wishes:
                    await stage.queue(wish)
                rows = await stage.sql("SELECT machine_id FROM queue_order ORDER BY ahead")
                told = [row["machine_id"] for row in rows]
                await stage.fill()
                granted = [grant.key.machine_id for _, grant in stage.running]
                check_turns(stage, told)
                check_turns(stage, granted)
                assert not of_one_size or told == granted

    trio.run(play)
