"""The ledger of a job: every step with its cause and who told it, whoever wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control_plane.github_plane import open_github_plane
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services


async def events(plane: Plane, job_id: int, query: str = "") -> list[dict[str, Any]]:
    reply = await plane.http.get(f"/api/jobs/{job_id}/events{query}", headers=plane.admin())
    assert reply.status_code == 200, reply.text
    told = reply.json()["events"]
    assert told == sorted(told, key=lambda event: event["at"])
    return list(told)


def steps(told: list[dict[str, Any]], about: str) -> list[tuple[object, ...]]:
    """What the job, or its machines, went through, and who said so."""
    key = "agent_id" if about == "machine" else "subject"
    return [(each["event"] or each["state_to"], each["told_by"], each[key]) for each in told if each["about"] == about]


async def test_a_host_that_fails_a_job_stands_in_its_events_and_so_does_its_second_run(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        bad, good = await plane.enrol("bad-host"), await plane.enrol("good-host")
        job = await plane.submit()
        grant = await plane.lease(bad)
        assert grant is not None
        await plane.renew(bad, grant)
        await plane.finish(bad, grant, "host_fault", cause="/dev/kvm is gone")
        queued_again = await plane.job(job["job_id"])
        grant = await plane.lease(good)
        assert grant is not None
        await plane.renew(good, grant)
        runs_again = await plane.job(job["job_id"])
        await plane.finish(good, grant)
        told = await events(plane, job["job_id"])

    of_job = [each for each in told if each["about"] == "job"]
    assert [(each["state_from"], each["state_to"], each["told_by"]) for each in of_job] == [
        (None, "queued", "user"),
        ("queued", "in_progress", "agent"),
        ("in_progress", "queued", "agent"),
        ("queued", "in_progress", "agent"),
        ("in_progress", "completed", "agent"),
    ]
    assert [each["agent_id"] for each in of_job] == [None, "bad-host", "bad-host", "good-host", "good-host"]
    assert [each["cause"] for each in of_job] == [None, None, "/dev/kvm is gone", None, None]
    assert of_job[0]["subject"] == "tester"
    assert of_job[-1]["conclusion"] == "success"
    assert (queued_again["cause"], runs_again["cause"]) == ("/dev/kvm is gone", None)
    assert steps(told, "machine") == [
        ("queue", "demand", None),
        ("lease", "agent", "bad-host"),
        ("start", "agent", "bad-host"),
        ("expire", "agent", "bad-host"),
        ("lease", "agent", "good-host"),
        ("start", "agent", "good-host"),
        ("finish_ok", "agent", "good-host"),
    ]


async def test_a_lease_that_ran_out_names_the_host_and_says_that_the_clock_told_it(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol("silent-host")
        job = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.renew(agent, grant)
        await plane.pass_deadlines()
        told = await events(plane, job["job_id"])

    requeued = [each for each in told if each["about"] == "job"][-1]
    assert (requeued["state_to"], requeued["told_by"], requeued["agent_id"]) == ("queued", "clock", "silent-host")
    assert requeued["cause"] == "the host fell silent: its lease expired"


async def test_who_cancels_a_job_stands_in_its_events_of_the_machine_too(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        running, waiting = await plane.submit(), await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        alice = plane.admin(org_id=1)
        for job in (running, waiting):
            reply = await plane.http.post(f"/api/jobs/{job['job_id']}/cancel", headers=alice)
            assert reply.status_code == 200
        await plane.finish(agent, grant, "cancelled")
        asked = [each for each in await events(plane, running["job_id"]) if each["event"] == "ask_cancel"]
        told = await events(plane, waiting["job_id"])

    assert [(each["told_by"], each["agent_id"], each["cause"]) for each in asked] == [
        ("user", "agent-1", "cancelled by tester")
    ]
    assert steps(told, "job") == [("queued", "user", "tester"), ("completed", "user", "tester")]
    assert steps(told, "machine") == [("queue", "demand", None), ("cancel", "user", None)]
    assert {each["cause"] for each in told} == {None, "cancelled by tester"}


async def test_what_github_says_stands_in_the_events_with_the_way_by_which_it_came(
    database_dsn: str, redis_url: str
) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        await github.tell("queued", 1)
        await github.tell("in_progress", 1)
        await github.tell("completed", 1, conclusion="cancelled")
        [row] = await github.plane.sql("SELECT job_id FROM jobs")
        told = await events(github.plane, row["job_id"])

    assert [(each["state_to"], each["conclusion"], each["told_by"], each["learned"]) for each in told] == [
        ("queued", None, "github", "webhook"),
        ("in_progress", None, "github", "webhook"),
        ("completed", "cancelled", "github", "webhook"),
    ]


async def test_events_come_page_by_page_each_once(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        agent = await plane.enrol()
        job = await plane.submit()
        grant = await plane.lease(agent)
        assert grant is not None
        await plane.renew(agent, grant)
        await plane.finish(agent, grant)
        whole = await events(plane, job["job_id"])
        path, more, paged = f"/api/jobs/{job['job_id']}/events", "limit=2", []
        while more:
            page = (await plane.http.get(f"{path}?{more}", headers=plane.admin())).json()
            paged += page["events"]
            more = page["next"] and f"limit=2&cursor={page['next']}"
        wrong = [await plane.http.get(f"{path}?{each}", headers=plane.admin()) for each in ("cursor=x", "page=2")]

    assert len(whole) == 7
    assert paged == whole
    assert [reply.status_code for reply in wrong] == [400, 400]


async def test_events_cannot_be_rewritten(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.submit()
        for text in ("UPDATE job_events SET cause = 'x'", "DELETE FROM job_events"):
            with pytest.raises(Exception, match="append-only"):
                await plane.sql(text)
