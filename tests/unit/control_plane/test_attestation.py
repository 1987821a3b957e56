"""What a machine was booted from: told with its end, kept on its row, shown with the job."""

from __future__ import annotations

import pytest

from tests.unit.control_plane.plane import open_plane

pytestmark = pytest.mark.services

ATTESTED = {
    "image": "base",
    "manifest": "a" * 64,
    "kernel": "b" * 64,
    "initramfs": "c" * 64,
    "rootfs": "d" * 64,
    "verified_at": 1800000000.5,
    "overridden": ["rootfs"],
    "template": "e" * 64,
}


async def test_what_a_machine_was_booted_from_is_shown_with_its_job(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        assert (await plane.finish(agent, grant, attestation=ATTESTED)).status_code == 200
        job = await plane.job(submitted["job_id"])

    assert job["machines"][0]["attestation"] == ATTESTED


async def test_an_agent_of_the_previous_release_tells_nothing_and_is_heard(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        assert (await plane.finish(agent, grant)).status_code == 200
        job = await plane.job(submitted["job_id"])

    assert job["state"] == "completed"
    assert job["machines"][0]["attestation"] is None


async def test_what_one_lease_booted_is_not_shown_for_the_next(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        submitted = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.finish(agent, grant, "host_fault", attestation=ATTESTED)
        queued = await plane.job(submitted["job_id"])
        assert await plane.lease(agent) is not None
        again = await plane.job(submitted["job_id"])

    assert queued["machines"][0]["attestation"] == ATTESTED
    assert again["machines"][0]["attestation"] is None
