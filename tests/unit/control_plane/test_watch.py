"""Watching the database: which one it is and how its clock goes on, against a host's clock that a test sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from nimbus.control_plane.queue.silence import expire_leases
from nimbus.control_plane.queue.watch import HostClock, Sight, judge_clock, read_host_clock
from nimbus.control_plane.services import LeaseTerms
from nimbus.model.errors import Unavailable
from nimbus.model.lease import LeasePolicy
from nimbus.runtime.postgres import open_database
from tests.services import PostgresServer
from tests.unit.control_plane.plane import Plane, open_plane

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SEEN = Sight("7/1", NOON, "boot", before_s=100.0, after_s=100.1)


def _later(clock_s: float, host_s: float, boot: str = "boot") -> Sight:
    return Sight("7/1", NOON + timedelta(seconds=clock_s), boot, 100.0 + host_s, 100.1 + host_s)


@pytest.mark.parametrize(("clock_s", "host_s"), [(1, 1), (0, 0), (3600, 3600), (5, 1), (1, 5), (3604, 3600)])
def test_a_clock_that_only_went_on_is_trusted(clock_s: float, host_s: float) -> None:
    assert judge_clock(SEEN, _later(clock_s, host_s), 5.0) is None


@pytest.mark.parametrize(("clock_s", "host_s"), [(7, 1), (-5, 1), (3600, 1), (-3600, 1), (3600, 3610)])
def test_a_step_is_seen_in_both_directions(clock_s: float, host_s: float) -> None:
    assert "was stepped by" in (judge_clock(SEEN, _later(clock_s, host_s), 5.0) or "")


def test_a_slow_answer_is_no_step() -> None:
    slow = replace(_later(30, 1), after_s=131.0)
    assert judge_clock(SEEN, slow, 5.0) is None


def test_what_nobody_on_this_boot_watched_is_a_step_unless_the_last_look_was_a_moment_ago() -> None:
    assert judge_clock(SEEN, _later(4, 0, "another boot"), 5.0) is None
    assert "nobody watched" in (judge_clock(SEEN, _later(6, 0, "another boot"), 5.0) or "")
    assert "nobody watched" in (judge_clock(SEEN, _later(-6, 0, "another boot"), 5.0) or "")


# --- against the database --------------------------------------------------------------------------------------------


@dataclass
class LyingClock:
    """This host's clock, set back: beside it the database's clock seems to have jumped forward."""

    back_s: float = 0.0
    slow_s: float = 0.0  # each reading takes so long
    boot: str = "this host"

    def __call__(self) -> HostClock:
        self.back_s -= self.slow_s
        return HostClock(self.boot, read_host_clock().boottime_s - self.back_s)


async def _leased(plane: Plane) -> tuple[dict[str, str], dict[str, object]]:
    agent = await plane.enrol()
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    await expire_leases(plane.services)
    return agent, grant


@pytest.mark.services
async def test_after_a_jump_of_the_clock_overdue_leases_live_for_one_ttl_and_nothing_is_granted(
    database_dsn: str, redis_url: str
) -> None:
    clock = LyingClock()
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=clock)) as plane:
        agent, _ = await _leased(plane)
        await plane.submit()
        clock.back_s += 600
        await plane.sql("UPDATE machines SET deadline = deadline - interval '600 s' WHERE deadline IS NOT NULL")
        expired = await expire_leases(plane.services)
        granted = await plane.lease(agent)
        [watch] = await plane.sql(
            "SELECT pause_cause, extract(epoch FROM grants_paused_until - clock_timestamp())::float AS left_s"
            " FROM database_watch"
        )
        await plane.sql("UPDATE database_watch SET grants_paused_until = clock_timestamp()")
        later = await expire_leases(plane.services)
        resumed = await plane.lease(agent)

    assert (expired, granted) == (0, None)
    assert watch["pause_cause"].startswith("the database's clock was stepped by 6")
    assert 0 < watch["left_s"] <= 300
    assert later == 1
    assert resumed is not None


@pytest.mark.services
@pytest.mark.parametrize("write", ["renew", "finish"])
async def test_a_holder_that_writes_before_the_sweeper_saw_the_jump_is_not_fenced(
    database_dsn: str, redis_url: str, write: str
) -> None:
    clock = LyingClock()
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=clock)) as plane:
        agent, grant = await _leased(plane)
        clock.back_s += 600
        await plane.sql("UPDATE machines SET deadline = deadline - interval '600 s'")
        answer = await (plane.renew(agent, grant) if write == "renew" else plane.finish(agent, grant))

    assert answer.status_code == 200


@pytest.mark.services
async def test_a_jump_while_nobody_holds_a_lease_stops_nothing(database_dsn: str, redis_url: str) -> None:
    clock = LyingClock()
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=clock)) as plane:
        agent = await plane.enrol()
        await expire_leases(plane.services)
        clock.back_s += 600
        await expire_leases(plane.services)
        await plane.submit()
        grant = await plane.lease(agent)

    assert grant is not None


@pytest.mark.services
async def test_a_restarted_control_plane_compares_with_what_the_last_one_saw(database_dsn: str, redis_url: str) -> None:
    for back_s, expired in ((0.0, 1), (600.0, 0)):
        async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=LyingClock())) as plane:
            await _leased(plane)
        async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=LyingClock(back_s))) as plane:
            assert await plane.pass_deadlines() == expired


@pytest.mark.services
async def test_two_control_planes_on_two_hosts_each_compare_with_their_own_last_look(
    database_dsn: str, redis_url: str
) -> None:
    one, other = LyingClock(boot="one"), LyingClock(boot="other", back_s=-5000.0)
    terms = LeaseTerms(host_clock=one), LeaseTerms(host_clock=other)
    async with (
        open_plane(database_dsn, redis_url, terms=terms[0]) as here,
        open_plane(database_dsn, redis_url, terms=terms[1]) as there,
    ):
        await _leased(here)
        assert await expire_leases(there.services) == 0
        # ten seconds in which neither looked: only each host's own clock can tell them from a step
        await here.sql("UPDATE clock_sights SET clock = clock - interval '10 s'")
        one.back_s -= 10
        other.back_s -= 10
        assert await there.pass_deadlines() == 1
        await _leased(here)
        one.back_s += 600
        assert await here.pass_deadlines() == 0
        assert await there.pass_deadlines() == 0


@pytest.mark.services
async def test_a_host_that_never_looked_trusts_no_clock_that_nobody_watched(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=LyingClock())) as plane:
        await _leased(plane)
        await plane.sql("UPDATE clock_sights SET clock = clock - interval '10 s'")
    new = LeaseTerms(host_clock=LyingClock(boot="a new host"))
    async with open_plane(database_dsn, redis_url, terms=new) as plane:
        assert await plane.pass_deadlines() == 0


@pytest.mark.services
async def test_a_database_that_answers_too_late_to_tell_its_clock_ends_no_lease(
    database_dsn: str, redis_url: str
) -> None:
    clock = LyingClock()
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(host_clock=clock)) as plane:
        await _leased(plane)
        clock.slow_s = 6.0
        with pytest.raises(Unavailable):
            await plane.pass_deadlines()
        states = await plane.sql("SELECT state FROM machines")

    assert [row["state"] for row in states] == ["leased"]


@pytest.mark.services
async def test_a_short_ttl_has_a_short_patience_with_the_clock(database_dsn: str, redis_url: str) -> None:
    clock = LyingClock()
    terms = LeaseTerms(LeasePolicy(ttl_s=20.0), host_clock=clock)  # margin 5 s, half of it is too much
    async with open_plane(database_dsn, redis_url, terms=terms) as plane:
        await _leased(plane)
        clock.back_s += 4
        assert await plane.pass_deadlines() == 0


@pytest.mark.services
async def test_an_ordinary_role_sees_system_and_timeline_and_one_without_the_right_sees_the_servers_start(
    postgres_server: PostgresServer, database_dsn: str
) -> None:
    name = database_dsn.split("/")[3].split("?", maxsplit=1)[0]
    role = f"role_{name}"
    postgres_server.sql(f"CREATE ROLE {role} LOGIN", name)
    try:
        ordinary = await _identity(database_dsn, role)
        postgres_server.sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", name)
        blind = await _identity(database_dsn, role)
    finally:
        postgres_server.sql(f"DROP ROLE {role}", name)

    system, timeline = ordinary.split("/")
    assert system.isdigit()
    assert timeline == "00000001"
    assert blind.startswith("started/")


async def _identity(dsn: str, role: str) -> str:
    async with open_database(dsn.replace("nimbus@", f"{role}@"), pool_size=1) as database:

        async def ask(transaction: object) -> str:
            told: str = await transaction.fetchval("SELECT database_identity()")  # type: ignore[attr-defined]
            return told

        return await database.run(ask)
