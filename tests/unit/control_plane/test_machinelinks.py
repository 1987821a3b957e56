"""Which job a machine runs, as the logging pipeline is told: the machine's own org, and no job where there is none."""

from __future__ import annotations

from tests.unit.control_plane.plane import open_plane


async def test_a_machine_is_linked_to_its_job_under_every_fence_it_had(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        first = await plane.lease(agent)
        await plane.pass_deadlines()
        second = await plane.lease(agent)
        assert first is not None
        assert second is not None
        path = f"/api/internal/machines/{first['machine_id']}"
        told = [
            (await plane.http.get(f"{path}/{grant['fence']}/job", headers=plane.service())).json()
            for grant in (first, second)
        ]

    known = {"machine_id": first["machine_id"], "org_id": 1, "job_id": submitted["job_id"]}
    nothing = {"repo_id": None, "run_attempt": None}
    assert told == [{**known, **nothing, "fence": grant["fence"]} for grant in (first, second)]
    assert first["fence"] != second["fence"]


async def test_a_runner_without_a_job_is_told_so_and_with_one_its_repo_and_attempt(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        path = f"/api/internal/machines/{grant['machine_id']}/{grant['fence']}/job"
        await plane.sql("UPDATE machines SET kind = 'runner', job_id = NULL")
        before = (await plane.http.get(path, headers=plane.service())).json()
        await plane.sql("INSERT INTO repos (repo_id, org_id, forge_id, name) VALUES (5, 1, 55, 'shop')")
        await plane.sql("UPDATE jobs SET repo_id = 5, run_attempt = 2")
        await plane.sql("UPDATE machines SET job_id = $1", submitted["job_id"])
        after = (await plane.http.get(path, headers=plane.service())).json()

    assert [before[name] for name in ("org_id", "job_id", "repo_id", "run_attempt")] == [1, None, None, None]
    assert [after[name] for name in ("org_id", "job_id", "repo_id", "run_attempt")] == [1, submitted["job_id"], 5, 2]


async def test_a_lease_that_never_was_and_a_caller_that_is_no_service_learn_nothing(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        machine, fence = grant["machine_id"], grant["fence"]
        asked = [(machine, fence + 1), (machine + 1, fence), (machine, 0), (10**30, fence), (machine, 10**30)]
        missed = [
            (await plane.http.get(f"/api/internal/machines/{one}/{other}/job", headers=plane.service())).status_code
            for one, other in asked
        ]
        by_person = await plane.http.get(f"/api/internal/machines/{machine}/{fence}/job", headers=plane.admin())

    assert missed == [404] * len(asked)
    assert by_person.status_code == 401
