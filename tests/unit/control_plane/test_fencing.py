"""Every write of a holder against a lease that is not (or no longer) its own: refused, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import trio

from nimbus.control_plane.queue.silence import expire_leases
from nimbus.runtime.postgres import UniqueViolation
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services

Grant = dict[str, Any]
STOLEN = ("another agent", lambda grant: grant)
STALE: list[tuple[str, Callable[[Grant], Grant]]] = [
    ("an earlier fence", lambda grant: grant | {"fence": grant["fence"] - 1}),
    ("a fence to come", lambda grant: grant | {"fence": grant["fence"] + 1}),
    ("another lease id", lambda grant: grant | {"lease_id": "00000000-0000-4000-8000-000000000000"}),
    ("another machine", lambda grant: grant | {"machine_id": grant["machine_id"] + 1}),
    STOLEN,
    ("a lease that ran out", lambda grant: grant),
]
WRITES = ("renew", "finish", "runner")


async def _state(plane: Plane) -> list[dict[str, Any]]:
    """All that a write could change, but for when an agent was last heard."""
    rows = [dict(row) for row in await plane.sql("SELECT * FROM machines ORDER BY machine_id")]
    rows += [dict(row) for row in await plane.sql("SELECT * FROM machine_events ORDER BY event_id")]
    return rows + [dict(row) for row in await plane.sql("SELECT * FROM jobs ORDER BY job_id")]


async def _write(github: GithubPlane, write: str, headers: dict[str, str], grant: Grant) -> httpx2.Response:
    if write == "renew":
        return await github.plane.renew(headers, grant)
    if write == "finish":
        return await github.plane.finish(headers, grant)
    return await github.mint(headers, grant)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("what", "change"), STALE, ids=[what for what, _ in STALE])
async def test_a_write_that_is_not_the_holders_is_fenced_and_changes_nothing(
    database_dsn: str, redis_url: str, write: str, what: str, change: Callable[[Grant], Grant]
) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        plane = github.plane
        holder, thief = await plane.enrol("holder"), await plane.enrol("thief")
        await github.tell("queued", 1)
        await github.tell("queued", 2)
        await github.lease(holder)
        await plane.pass_deadlines()  # so that fence 1 was really given
        grant = await github.lease(holder)
        assert grant["fence"] == 2
        if what == "a lease that ran out":
            await plane.sql("UPDATE machines SET deadline = clock_timestamp() - interval '1 ms' WHERE fence = 2")
        before = await _state(plane)
        caller = thief if what == STOLEN[0] else holder
        wrong = change(grant)
        answer = await _write(github, write, caller, wrong)
        after = await _state(plane)
        registered = github.sim.world.forge.runners

    assert (answer.status_code, answer.json()["error"]) == (409, "fenced")
    assert after == before
    assert not registered


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", ["none", "admin", "forged"])
async def test_a_write_without_an_agents_own_token_is_unauthorized(
    database_dsn: str, redis_url: str, write: str, kind: str
) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        agent = await github.plane.enrol()
        await github.tell("queued")
        grant = await github.lease(agent)
        headers = {"none": {}, "admin": github.plane.admin(), "forged": {"Authorization": agent["Authorization"] + "A"}}
        before = await _state(github.plane)
        answer = await _write(github, write, headers[kind], grant)

        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert await _state(github.plane) == before


async def test_a_late_event_of_a_dead_vms_runner_links_nothing_to_the_machines_next_holder(
    database_dsn: str, redis_url: str
) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        agent = await github.plane.enrol()
        await github.tell("queued")
        first = await github.lease(agent)
        assert (await github.mint(agent, first)).status_code == 200
        await github.plane.pass_deadlines()
        second = await github.lease(agent)
        await github.tell("in_progress", runner_name=await github.name_of(first), runner_id=1)
        [machine] = await github.machines()
        renewed = await github.plane.renew(agent, second)

    assert (machine["fence"], machine["job_id"]) == (2, None)
    assert renewed.json()["job"] is None
    assert renewed.json()["ttl_s"] == 300


async def test_a_cancel_between_two_leases_reaches_no_holder_of_old(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.pass_deadlines()
        await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=plane.admin())
        answers = [await plane.finish(agent, grant), await plane.renew(agent, grant)]
        [machine] = await plane.sql("SELECT state, ending FROM machines")

    assert [answer.status_code for answer in answers] == [409, 409]
    assert dict(machine) == {"state": "cancelled", "ending": None}


async def test_a_finish_whose_reply_was_lost_hears_the_first_answer_whatever_came_of_the_machine_since(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        first = await plane.finish(agent, grant, "host_fault", cause="no tap")
        await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=plane.admin())
        again = [await plane.finish(agent, grant, ending) for ending in ("host_fault", "done", "failed")]
        events = await plane.sql("SELECT event FROM machine_events ORDER BY event_id")
        job = await plane.job(submitted["job_id"])

    assert [answer.json() for answer in (first, *again)] == [{"state": "queued"}] * 4
    assert [row["event"] for row in events] == ["queue", "lease", "expire", "cancel"]
    assert job["conclusion"] == "cancelled"


async def test_the_same_end_told_by_many_at_once_is_one_event(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        answers = []

        async def tell(ending: str) -> None:
            answers.append((await plane.finish(agent, grant, ending)).json()["state"])

        async with trio.open_nursery() as nursery:
            for ending in ("done", "failed", "host_fault", "cancelled", "done", "timed_out"):
                nursery.start_soon(tell, ending)
        ends = await plane.sql("SELECT state_to FROM machine_events WHERE state_from = 'leased'")

    assert len(set(answers)) == len(ends) == 1


async def test_a_finish_after_the_machine_was_leased_anew_is_fenced(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.finish(agent, grant, "host_fault")
        assert await plane.lease(agent) is not None
        late = await plane.finish(agent, grant, "host_fault")

    assert (late.status_code, late.json()["error"]) == (409, "fenced")


@pytest.mark.parametrize(
    ("event", "step"),
    [
        ("a second end of one lease", ("leased", "queued", "expire", 1)),
        ("a second grant of one fence", ("queued", "leased", "lease", 1)),
        ("a second terminal event", ("queued", "cancelled", "cancel", 2)),
    ],
)
async def test_the_schema_itself_refuses(
    database_dsn: str, redis_url: str, event: str, step: tuple[object, ...]
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.finish(agent, grant)
        with pytest.raises(UniqueViolation):
            await plane.sql(
                "INSERT INTO machine_events (machine_id, state_from, state_to, event, fence)"
                " VALUES ($1, $2, $3, $4, $5)",
                grant["machine_id"],
                *step,
            )


async def test_an_adopted_machine_outlives_its_agents_enrolment_only_by_machine_lease_and_fence(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        grants = []
        for _ in range(4):
            await plane.submit()
            grant = await plane.lease(agent)
            assert grant is not None
            grants.append(grant)
        names = ("machine_id", "lease_id", "fence")
        held = [{name: grant[name] for name in names} for grant in grants]
        held[1]["fence"] = 7
        held[2]["machine_id"] = held[3]["machine_id"]
        agent = await plane.enrol(held=held[:3])
        states = [(await plane.renew(agent, grant)).status_code for grant in grants]
        told_by = await plane.sql("SELECT machine_id, told_by FROM machine_events WHERE event = 'expire' ORDER BY 1")

    assert states == [200, 409, 409, 409]
    assert [row["told_by"] for row in told_by] == ["enrolment"] * 3


async def test_an_agents_enrolment_gives_up_no_other_agents_machine(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol("holder")
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.enrol("other", held=[])
        renewed = await plane.renew(agent, grant)

    assert renewed.status_code == 200


async def test_an_agent_of_another_life_gives_up_nothing(database_dsn: str, redis_url: str) -> None:
    """Two hosts by one name, by mistake: the VMs of the first live on, so nobody may have what they run."""
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol(boot_id="first")
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.enrol(boot_id="second", held=[])
        beside = (await plane.renew(agent, grant)).status_code
        await plane.enrol(boot_id="second", held=[])
        renewed = (await plane.renew(agent, grant)).status_code

    assert (beside, renewed) == (200, 409)


async def test_an_outage_of_two_ttls_ends_no_linked_github_job(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        agent = await github.plane.enrol()
        await github.tell("queued")
        grant = await github.lease(agent)
        await github.mint(agent, grant)
        await github.tell("in_progress", runner_name=await github.name_of(grant), runner_id=1)
        told = await _hear(github, agent, grant)
        await github.plane.sql("UPDATE machines SET deadline = deadline - interval '600 s'")  # nobody answered so long
        swept = await expire_leases(github.plane.services)
        after = await github.plane.renew(agent, grant)

    assert told == 3600
    assert swept == 0
    assert after.status_code == 200


async def _hear(github: GithubPlane, agent: dict[str, str], grant: Grant) -> float:
    renewed = await github.plane.renew(agent, grant)
    return float(renewed.json()["ttl_s"])
