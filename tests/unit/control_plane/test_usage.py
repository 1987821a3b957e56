"""What a machine's VM has used: told by renewals, shown with the job, to nobody but the org that owns it."""

from __future__ import annotations

import pytest

from tests.unit.control_plane.plane import key_of, open_plane

pytestmark = pytest.mark.services

USED = {"cpu_ms": 1200, "memory_bytes": 2**30, "disk_bytes": 5 * 2**20, "received_bytes": 7, "sent_bytes": 9}


async def test_the_newest_use_is_shown_with_the_job_and_a_renewal_without_one_forgets_nothing(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        path = f"/api/machines/{grant['machine_id']}/renew"
        for told in ({"usage": {"cpu_ms": 5}}, {"usage": USED}, {}):
            body = key_of(grant) | {"state": "running"} | told
            assert (await plane.http.post(path, json=body, headers=agent)).status_code == 200
        running = await plane.job(submitted["job_id"])
        await plane.finish(agent, grant)
        ended = await plane.job(submitted["job_id"])
        stranger = plane.admin(org_id=2)
        hidden = await plane.http.get(f"/api/jobs/{submitted['job_id']}", headers=stranger)
        listed = await plane.http.get("/api/jobs/recent", headers=stranger)

    assert running["machines"][0]["usage"] == ended["machines"][0]["usage"] == USED
    assert running["machines"][0]["times_ms"]["used"] >= running["machines"][0]["times_ms"]["leased"]
    assert hidden.status_code == 404
    assert listed.json()["jobs"] == []


async def test_the_use_under_one_lease_is_not_shown_for_the_next(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        body = key_of(grant) | {"state": "running", "usage": USED}
        await plane.http.post(f"/api/machines/{grant['machine_id']}/renew", json=body, headers=agent)
        await plane.pass_deadlines()
        await plane.lease(agent)
        job = await plane.job(submitted["job_id"])

    assert job["machines"][0]["usage"] is None
    assert job["machines"][0]["times_ms"]["used"] is None


async def test_a_stale_holder_tells_no_use(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        body = key_of(grant) | {"fence": 2, "state": "running", "usage": USED}
        answer = await plane.http.post(f"/api/machines/{grant['machine_id']}/renew", json=body, headers=agent)
        job = await plane.job(submitted["job_id"])

    assert answer.status_code == 409
    assert job["machines"][0]["usage"] is None
