"""Leases over the real API: one holder at a time, fenced writes, expiry, cancel, long polls."""

from __future__ import annotations

from functools import partial

import httpx2
import pytest
import trio

from nimbus.control_plane.services import LeaseTerms
from nimbus.model.lease import LeasePolicy
from tests.services import RedisServer
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services


async def test_a_command_goes_from_submission_to_success(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit(argv=["sh", "-c", "exit 0"], env={"K": "v"}, timeout_s=60)
        grant = await plane.lease(agent)
        assert grant is not None
        renewed = await plane.renew(agent, grant)
        running = await plane.job(submitted["job_id"])
        finished = await plane.finish(agent, grant, exit_code=0, phases_ms={"boot": 812.5})
        ended = await plane.job(submitted["job_id"])

    assert grant["machine_id"] == submitted["machine_id"]
    assert grant["command"]["argv"] == ["sh", "-c", "exit 0"]
    assert grant["command"]["env"] == {"K": "v"}
    assert (grant["kind"], grant["fence"], grant["ttl_s"]) == ("command", 1, 300)
    assert grant["log_url"] == "http://logs.test/ingest"
    assert renewed.json()["cancel"] is False
    assert running["state"] == "in_progress"
    assert finished.json() == {"state": "done"}
    assert (ended["state"], ended["conclusion"]) == ("completed", "success")
    assert ended["machines"][0]["phases"] == {"boot": 812.5}
    assert "command" not in ended


async def test_a_machine_is_never_held_by_two_agents(database_dsn: str, redis_url: str) -> None:
    granted: list[int] = []
    async with open_plane(database_dsn, redis_url) as plane:
        for _ in range(12):
            await plane.submit()
        agents = [await plane.enrol(f"agent-{number}") for number in range(4)]

        async def take_all(agent: dict[str, str]) -> None:
            while (grant := await plane.lease(agent)) is not None:
                granted.append(grant["machine_id"])

        async with trio.open_nursery() as nursery:
            for agent in agents:
                nursery.start_soon(take_all, agent)

    assert len(granted) == 12
    assert len(set(granted)) == 12


async def test_a_lease_past_its_deadline_can_neither_renew_nor_finish(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.sql("UPDATE machines SET deadline = clock_timestamp() - interval '1 ms'")
        renewed = await plane.renew(agent, grant)
        finished = await plane.finish(agent, grant)

    assert (renewed.status_code, renewed.json()["error"]) == (409, "fenced")
    assert (finished.status_code, finished.json()["error"]) == (409, "fenced")


async def test_the_next_holder_has_a_higher_fence_and_the_former_one_is_fenced(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        first, second = await plane.enrol("first"), await plane.enrol("second")
        submitted = await plane.submit()
        old = await plane.lease(first)
        assert old is not None
        assert await plane.pass_deadlines() == 1
        new = await plane.lease(second)
        assert new is not None
        late = await plane.finish(first, old)
        finished = await plane.finish(second, new, exit_code=0)
        job = await plane.job(submitted["job_id"])

    assert new["machine_id"] == old["machine_id"]
    assert (old["fence"], new["fence"]) == (1, 2)
    assert new["lease_id"] != old["lease_id"]
    assert late.status_code == 409
    assert finished.json() == {"state": "done"}
    assert job["conclusion"] == "success"


@pytest.mark.parametrize("wrong", [{"fence": 2}, {"lease_id": "00000000-0000-4000-8000-000000000000"}])
async def test_a_wrong_fence_or_lease_id_writes_nothing(
    database_dsn: str, redis_url: str, wrong: dict[str, object]
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        refused = await plane.finish(agent, grant | wrong)
        kept = await plane.renew(agent, grant)

    assert refused.status_code == 409
    assert kept.status_code == 200


async def test_another_agent_cannot_use_a_lease_that_it_learned_of(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        holder, thief = await plane.enrol("holder"), await plane.enrol("thief")
        await plane.submit()
        grant = await plane.lease(holder)
        assert grant is not None
        refused = await plane.finish(thief, grant)

    assert refused.status_code == 409


async def test_a_finish_said_twice_is_answered_twice_and_counted_once(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        first = await plane.finish(agent, grant, "failed", exit_code=7)
        second = await plane.finish(agent, grant, "done", exit_code=0)
        events = await plane.sql("SELECT event FROM machine_events ORDER BY event_id")
        machines = await plane.sql("SELECT state, exit_code FROM machines")

    assert first.json() == second.json() == {"state": "failed"}
    assert [row["event"] for row in events] == ["queue", "lease", "finish_bad"]
    assert [tuple(row.values()) for row in machines] == [("failed", 7)]


async def test_a_host_fault_is_tried_on_three_hosts_and_then_given_up(database_dsn: str, redis_url: str) -> None:
    states = []
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        for _ in range(3):
            grant = await plane.lease(agent)
            assert grant is not None
            reply = await plane.finish(agent, grant, "host_fault", cause="no tap device")
            states.append(reply.json()["state"])
        left = await plane.lease(agent)
        job = await plane.job(submitted["job_id"])

    assert states == ["queued", "queued", "failed"]
    assert left is None
    assert (job["state"], job["conclusion"], job["cause"]) == (
        "completed",
        "failure",
        "gave up after 3 hosts failed: no tap device",
    )


async def _runner_in_progress(plane: Plane, agent: dict[str, str]) -> tuple[dict[str, object], int]:
    await plane.sql(
        "INSERT INTO machines (org_id, kind, labels, shape, image) VALUES (1, 'runner', '{nimbus}',"
        ' \'{"cpus": 1, "mem_mib": 256, "disk_mib": 64}\', \'base\')'
    )
    grant = await plane.lease(agent)
    assert grant is not None
    rows = await plane.sql(
        "INSERT INTO jobs (org_id, source, forge_job_id, state) VALUES (1, 'github', 42, 'in_progress')"
        " RETURNING job_id"
    )
    await plane.sql("UPDATE machines SET job_id = $1", rows[0]["job_id"])
    return grant, rows[0]["job_id"]


async def test_a_github_job_in_progress_gets_a_long_ttl_and_its_link(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        grant, job_id = await _runner_in_progress(plane, agent)
        renewed = await plane.renew(agent, grant)

    assert renewed.json() == {"ttl_s": 3600, "cancel": False, "job": {"job_id": job_id, "repo_id": None}}


async def test_a_github_job_whose_host_falls_silent_in_progress_is_lost_with_its_cause(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        _, job_id = await _runner_in_progress(plane, agent)
        await plane.pass_deadlines()
        job = await plane.job(job_id)
        again = await plane.lease(agent)

    assert job["state"] == "lost"
    assert "fell silent" in job["cause"]
    assert job["machines"][0]["state"] == "lost"
    assert again is None


async def test_an_agent_that_starts_anew_gives_up_what_it_no_longer_has(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        await plane.submit()
        lost, kept = await plane.lease(agent), await plane.lease(agent)
        assert lost is not None
        assert kept is not None
        held = [{"machine_id": kept["machine_id"], "lease_id": kept["lease_id"], "fence": kept["fence"]}]
        agent = await plane.enrol(held=held)
        fenced = await plane.renew(agent, lost)
        alive = await plane.renew(agent, kept)
        again = await plane.lease(agent)

    assert (fenced.status_code, alive.status_code) == (409, 200)
    assert again is not None
    assert (again["machine_id"], again["fence"]) == (lost["machine_id"], 2)


@pytest.mark.parametrize("start", [7, 6])
async def test_a_late_copy_of_an_enrolment_gives_up_nothing_that_was_leased_since(
    database_dsn: str, redis_url: str, start: int
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol(held=[], start=7)
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.enrol(held=[], start=start)
        renewed = await plane.renew(agent, grant)
        await plane.enrol(held=[], start=8)
        given_up = await plane.renew(agent, grant)

    assert (renewed.status_code, given_up.status_code) == (200, 409)


async def test_renewing_a_token_gives_up_nothing(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        agent = await plane.enrol()
        renewed = await plane.renew(agent, grant)

    assert renewed.status_code == 200


async def test_a_queued_job_that_is_cancelled_never_boots(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        cancelled = await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=plane.admin())
        again = await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=plane.admin())
        grant = await plane.lease(agent)

    assert cancelled.json()["conclusion"] == again.json()["conclusion"] == "cancelled"
    assert grant is None


async def test_cancelling_a_running_job_asks_its_holder_to_stop(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.http.post(f"/api/jobs/{submitted['job_id']}/cancel", headers=plane.admin())
        renewed = await plane.renew(agent, grant)
        finished = await plane.finish(agent, grant, "cancelled", signal=15)
        job = await plane.job(submitted["job_id"])

    assert renewed.json()["cancel"] is True
    assert finished.json() == {"state": "cancelled"}
    assert (job["state"], job["conclusion"]) == ("completed", "cancelled")


async def test_a_job_that_does_not_fit_stays_queued_and_a_smaller_one_passes_it(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit(cpus=8, mem_mib=4096)
        small = await plane.submit()
        none = await plane.lease(agent, slots=0)
        grant = await plane.lease(agent, cpus=2, mem_mib=1024)

    assert none is None
    assert grant is not None
    assert grant["machine_id"] == small["machine_id"]


async def test_a_job_whose_disk_does_not_fit_stays_queued_where_the_agent_counts_its_disk(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit(disk_mib=4096)
        small = await plane.submit(disk_mib=1024)
        fitting = await plane.lease(agent, disk_mib=2048)
        none = await plane.lease(agent, disk_mib=4095)
        uncounted = await plane.lease(agent)

    assert fitting is not None
    assert fitting["machine_id"] == small["machine_id"]
    assert none is None
    assert uncounted is not None


async def test_a_command_for_another_architecture_waits_for_a_host_of_it(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit(arch="arm64", idempotency_key="k")
        await plane.submit(expect=409, idempotency_key="k")
        await plane.submit(expect=400, arch="sparc")
        none = await plane.lease(agent)
        body = {"wait_s": 0.0, "free": {"cpus": 8, "mem_mib": 8192, "slots": 8}, "labels": [], "arch": "arm64"}
        granted = await plane.http.post("/api/agents/lease", json=body, headers=agent)

    assert none is None
    assert granted.status_code == 200


async def test_the_bell_wakes_a_waiting_agent_of_another_control_plane(database_dsn: str, redis_url: str) -> None:
    open_one = partial(
        open_plane, database_dsn, redis_url, terms=LeaseTerms(look_s=60), prefix=f"test:{database_dsn[-40:]}:"
    )
    got: list[object] = []
    async with open_one() as here, open_one() as there:
        agent = await here.enrol()
        with trio.fail_after(10):
            await here.services.bell.wait_connected()
            await there.services.bell.wait_connected()

        async def wait() -> None:
            got.append(await here.lease(agent, wait_s=20))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.3)  # long enough for the poll to wait; it would go on for 20 s
                await there.submit()

    assert got[0] is not None


async def test_without_redis_a_waiting_agent_finds_work_by_looking(
    database_dsn: str, redis_server: RedisServer
) -> None:
    redis_server.stop()
    terms = LeaseTerms(look_s=0.2)
    got: list[object] = []
    async with open_plane(database_dsn, redis_server.url, terms=terms) as plane:
        agent = await plane.enrol()

        async def wait() -> None:
            got.append(await plane.lease(agent, wait_s=10))

        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await plane.sql(  # behind the bell's back, as another control plane would
                    "INSERT INTO machines (org_id, kind, shape, image) VALUES (1, 'runner',"
                    ' \'{"cpus": 1, "mem_mib": 256, "disk_mib": 64}\', \'base\')'
                )

    assert got[0] is not None


async def test_a_poll_without_work_ends_with_204_after_its_wait(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        started = trio.current_time()
        grant = await plane.lease(agent, wait_s=0.3)

    assert grant is None
    assert trio.current_time() - started >= 0.3


async def test_a_client_that_vanishes_in_a_long_poll_leaves_no_lease(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(look_s=0.1)) as plane:
        agent = await plane.enrol()
        with trio.move_on_after(0.3):
            await plane.lease(agent, wait_s=20)
        async with httpx2.AsyncClient(base_url=plane.url, trust_env=False) as fresh:
            await fresh.get("/healthz")
        await plane.submit()
        states = await plane.sql("SELECT state FROM machines")
        grant = await plane.lease(agent, wait_s=5)

    assert [row["state"] for row in states] == ["queued"]
    assert grant is not None


async def test_a_lease_policy_sets_the_ttl_that_agents_hear(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, terms=LeaseTerms(LeasePolicy(ttl_s=20))) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)

    assert grant is not None
    assert grant["ttl_s"] == 20
