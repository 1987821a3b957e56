"""How often work is tried: hosts that fail it count, agents that leave in good order do not, and nothing is endless."""

from __future__ import annotations

import pytest

from nimbus.control_plane.queue.outcome import MAX_GRANTS
from nimbus.control_plane.services import LeaseTerms
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services


async def _fail(plane: Plane, agent: dict[str, str], times: int, ending: str = "host_fault") -> list[str]:
    states = []
    for _ in range(times):
        grant = await plane.lease(agent)
        assert grant is not None
        states.append((await plane.finish(agent, grant, ending, cause="no tap")).json()["state"])
    return states


async def test_the_operator_says_how_many_hosts_may_fail(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(max_attempts=2)) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        states = await _fail(plane, agent, 2)
        job = await plane.job(submitted["job_id"])

    assert states == ["queued", "failed"]
    assert job["cause"] == job["machines"][0]["cause"] == "gave up after 2 hosts failed: no tap"


async def test_rolling_restarts_fail_no_job_that_had_not_started(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        given_back = await _fail(plane, agent, 10, "cancelled")
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.renew(agent, grant)
        await plane.finish(agent, grant, exit_code=0)
        job = await plane.job(submitted["job_id"])

    assert set(given_back) == {"queued"}
    assert job["conclusion"] == "success"
    assert (job["machines"][0]["attempts"], job["machines"][0]["failures"]) == (11, 0)


async def test_even_good_order_ends_after_twenty_leases(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        states = await _fail(plane, agent, MAX_GRANTS, "cancelled")
        left = await plane.lease(agent)
        job = await plane.job(submitted["job_id"])

    assert states == ["queued"] * 19 + ["failed"]
    assert left is None
    assert job["cause"] == "gave up after 20 leases that came to nothing: no tap"


async def test_hosts_that_fall_silent_and_hosts_that_fail_are_counted_together(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        await _fail(plane, agent, 1)
        await _hold(plane, agent)
        await plane.pass_deadlines()
        await _fail(plane, agent, 1, "cancelled")
        await _hold(plane, agent)
        await plane.enrol(held=[])
        job = await plane.job(submitted["job_id"])

    assert (job["state"], job["conclusion"]) == ("completed", "failure")
    assert job["cause"] == "gave up after 3 hosts failed: agent agent-1 was started anew and no longer had this machine"


async def _hold(plane: Plane, agent: dict[str, str]) -> None:
    grant = await plane.lease(agent)
    assert grant is not None
    assert (await plane.renew(agent, grant, "booting")).status_code == 200


async def test_a_grant_that_was_lost_on_its_way_is_short_and_no_hosts_fault(database_dsn: str, redis_url: str) -> None:
    """Its reply never came (the agent drained or died, the connection broke): no job waits a whole ttl for that."""
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        left_s = []
        for _ in range(5):
            assert await plane.lease(agent) is not None
            left_s += await _left_s(plane)
            await plane.pass_deadlines()
        await _hold(plane, agent)
        held_s = await _left_s(plane)
        job = await plane.job(submitted["job_id"])

    assert all(left <= 30 for left in left_s)
    assert held_s[0] > 200
    assert (job["machines"][0]["attempts"], job["machines"][0]["failures"]) == (6, 0)


async def _left_s(plane: Plane) -> list[float]:
    rows = await plane.sql("SELECT extract(epoch FROM deadline - clock_timestamp())::float8 AS left_s FROM machines")
    return [row["left_s"] for row in rows]


async def test_a_command_that_ran_out_of_memory_fails_with_that_cause(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.renew(agent, grant)
        await plane.finish(agent, grant, "out_of_memory", signal=9)
        job = await plane.job(submitted["job_id"])

    assert (job["state"], job["conclusion"], job["cause"]) == ("completed", "failure", "it ran out of memory")
    assert job["machines"][0]["ending"] == "out_of_memory"
