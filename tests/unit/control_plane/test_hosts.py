"""Hosts tell of themselves and are steered by their operator: real application, real PostgreSQL, real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import structlog
import trio

from nimbus import __version__
from nimbus.control_plane.hosts.agents import judge_agents, judge_version
from nimbus.control_plane.services import HostTerms
from nimbus.wire.heartbeat import MAX_HEARTBEAT_BYTES
from tests.unit.control_plane.plane import Plane, open_plane

pytestmark = pytest.mark.services

ROOM = {"cpus": 8, "mem_mib": 8192, "slots": 8, "disk_mib": 1000}
RUNNING = {"vm": "0a1b2c3d", "state": "running", "machine_id": 1, "fence": 1, "claims": ["slot", "vmm"], "left_s": 200}
GONE = "UPDATE agents SET last_seen = clock_timestamp() - interval '1 hour'"


@pytest.fixture
async def plane(database_dsn: str, redis_url: str) -> AsyncIterator[Plane]:
    async with open_plane(database_dsn, redis_url) as opened:
        yield opened


def heartbeat(**changes: object) -> dict[str, Any]:
    told = {"version": __version__, "boot_id": "b", "start": 1, "beat": 1, "doing": "working", "vmm": "fake"}
    room = {"arch": "x64", "labels": ["Nimbus"], "total": ROOM, "free": {**ROOM, "cpus": 6}, "pool": {}, "records": []}
    return told | room | changes


async def beat(plane: Plane, agent: dict[str, str], *, expect: int = 200, **changes: object) -> dict[str, Any]:
    reply = await plane.http.post("/api/agents/heartbeat", json=heartbeat(**changes), headers=agent)
    assert reply.status_code == expect, reply.text
    return dict(reply.json())


async def show(plane: Plane, agent_id: str = "agent-1", **claims: object) -> dict[str, Any]:
    reply = await plane.http.get(f"/api/agents/{agent_id}", headers=plane.admin(**claims))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def want(plane: Plane, wanted: str, agent_id: str = "agent-1", *, expect: int = 200) -> dict[str, Any]:
    path = f"/api/agents/{agent_id}/wanted"
    reply = await plane.http.put(path, json={"wanted": wanted}, headers=plane.admin())
    assert reply.status_code == expect, reply.text
    return dict(reply.json())


# --- heartbeats --------------------------------------------------------------------------------------------------


async def test_what_a_host_tells_is_what_its_operator_sees(plane: Plane) -> None:
    agent = await plane.enrol()
    reply = await beat(plane, agent, pool={"warm": 2})
    host = await show(plane)
    assert reply == {"wanted": "working", "interval_s": 15.0, "barred": None}
    assert (host["state"], host["doing"], host["vmm"], host["labels"]) == ("working", "working", "fake", ["nimbus"])
    assert (host["cpus"], host["free_cpus"], host["free_disk_mib"], host["pool"]) == (8, 6, 1000, {"warm": 2})
    assert (host["version"], host["behind"], host["problems"]) == (__version__, False, [])


async def test_a_host_is_who_its_token_says_whatever_its_body_says(plane: Plane) -> None:
    first, second = await plane.enrol("agent-1"), await plane.enrol("agent-2")
    await beat(plane, first, agent_id="agent-2", sub="agent-2", org_id=1, vmm="mine")
    await beat(plane, second, vmm="theirs")
    assert (await show(plane, "agent-1"))["vmm"] == "mine"
    assert (await show(plane, "agent-2"))["vmm"] == "theirs"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x.y.z"}])
async def test_nobody_reports_without_a_token_of_an_agent(plane: Plane, headers: dict[str, str]) -> None:
    await beat(plane, headers, expect=401)
    await beat(plane, plane.admin(), expect=401)


async def test_hostile_text_is_kept_as_text(plane: Plane) -> None:
    agent = await plane.enrol()
    nasty = "'; DROP TABLE agents; --\x1b[2J"
    await beat(plane, agent, doing="\x1b[31mevil", vmm=nasty[:64], labels=[nasty], version="<script>")
    host = await show(plane)
    assert (host["vmm"], host["doing"], host["state"]) == (nasty[:64], "\x1b[31mevil", "working")
    assert (host["version"], host["behind"]) == ("<script>", None)


async def test_a_heartbeat_that_is_too_large_is_refused(plane: Plane) -> None:
    agent = await plane.enrol()
    body = json.dumps(heartbeat(padding="x" * MAX_HEARTBEAT_BYTES)).encode()
    reply = await plane.http.post("/api/agents/heartbeat", content=body, headers=agent)
    assert reply.status_code == 400


async def test_a_heartbeat_never_renews_a_lease_and_a_silent_agents_leases_end_by_their_deadline_alone(
    plane: Plane,
) -> None:
    agent = await plane.enrol()
    job = await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    before = await plane.sql("SELECT deadline FROM machines")
    await beat(plane, agent, records=[RUNNING | {"machine_id": grant["machine_id"], "left_s": 9999}])
    assert await plane.sql("SELECT deadline FROM machines") == before
    assert await plane.pass_deadlines() == 1
    assert (await plane.job(job["job_id"]))["machines"][0]["state"] == "queued"


async def test_an_agent_that_reports_no_ledger_loses_no_lease_by_that(plane: Plane) -> None:
    agent = await plane.enrol()
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    await beat(plane, agent, records=[])
    assert (await plane.renew(agent, grant)).status_code == 200


async def test_two_hosts_of_one_name_are_told_of(plane: Plane) -> None:
    agent = await plane.enrol()
    with structlog.testing.capture_logs() as logs:
        for boot_id in ("here", "there"):
            await beat(plane, agent, boot_id=boot_id)
        alone = await show(plane)
        await beat(plane, agent, boot_id="here")
    assert alone["problems"] == []
    assert ["two hosts report" in problem for problem in (await show(plane))["problems"]] == [True]
    assert [each["agent"] for each in logs if each["event"] == "agent.two_hosts"] == ["agent-1"]


async def test_heartbeats_of_a_moment_are_one_statement_and_each_host_hears_its_own_answer(plane: Plane) -> None:
    agents = {f"agent-{number}": await plane.enrol(f"agent-{number}") for number in range(12)}
    await want(plane, "cordoned", "agent-7")
    heard: dict[str, str] = {}

    async def tell(name: str) -> None:
        heard[name] = (await beat(plane, agents[name], vmm=name))["wanted"]

    async with trio.open_nursery() as nursery:
        for name in agents:
            nursery.start_soon(tell, name)

    assert heard == {name: "cordoned" if name == "agent-7" else "working" for name in agents}
    rows = await plane.sql("SELECT agent_id, vmm, xmin::text AS writer FROM agents")
    assert {row["agent_id"]: row["vmm"] for row in rows} == {name: name for name in agents}
    assert len({row["writer"] for row in rows}) < len(agents)


async def test_a_host_on_which_nothing_runs_or_changes_is_told_to_report_half_as_often(plane: Plane) -> None:
    agent = await plane.enrol()
    idle: dict[str, Any] = {"free": ROOM}
    told = [idle, idle, {"free": {**ROOM, "mem_mib": 9}}, {"free": {**ROOM, "cpus": 6}}, idle | {"pool": {"warm": 1}}]
    assert [(await beat(plane, agent, **each))["interval_s"] for each in told] == [15.0, 30.0, 30.0, 15.0, 15.0]
    busy: dict[str, Any] = {"free": {**ROOM, "slots": 7}}
    assert [(await beat(plane, agent, **each))["interval_s"] for each in (busy, busy)] == [15.0, 15.0]


async def test_two_hosts_of_one_name_that_tell_at_the_same_moment_are_both_heard(plane: Plane) -> None:
    agent = await plane.enrol()
    await beat(plane, agent, boot_id="one")
    await beat(plane, agent, boot_id="other")

    async with trio.open_nursery() as nursery:
        for boot_id in ("one", "other", "one", "other"):
            nursery.start_soon(partial(beat, plane, agent, boot_id=boot_id))

    assert ["two hosts report" in problem for problem in (await show(plane))["problems"]] == [True]


async def test_a_host_that_was_forgotten_spoils_no_other_ones_heartbeat(plane: Plane) -> None:
    known, forgotten = await plane.enrol("agent-1"), await plane.enrol("agent-2")
    await plane.sql("DELETE FROM agents WHERE agent_id = 'agent-2'")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(beat, plane, forgotten, expect=401))
        nursery.start_soon(beat, plane, known)


async def test_a_host_that_boots_anew_again_and_again_is_one_host(plane: Plane) -> None:
    agent = await plane.enrol()
    for boot_id in ("one", "one", "two", "three", "three", "four"):
        await beat(plane, agent, boot_id=boot_id)
    assert (await show(plane))["problems"] == []


async def test_a_life_that_returns_much_later_is_no_second_host(plane: Plane) -> None:
    agent = await plane.enrol()
    await beat(plane, agent, boot_id="here")
    await beat(plane, agent, boot_id="there")
    await plane.sql("UPDATE agents SET former_at = clock_timestamp() - interval '1 hour'")
    await beat(plane, agent, boot_id="here")
    assert (await show(plane))["problems"] == []


# --- cordon and drain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["cordoned", "drained"])
async def test_a_host_that_is_not_to_work_is_granted_nothing_keeps_what_it_holds_and_works_again_when_asked(
    plane: Plane, wanted: str
) -> None:
    agent = await plane.enrol()
    await plane.submit()
    held = await plane.lease(agent)
    assert held is not None
    await want(plane, wanted)
    await plane.submit()
    refused = await plane.lease(agent)
    told = await beat(plane, agent)
    kept = await plane.renew(agent, held)
    done = await plane.finish(agent, held)
    await want(plane, "working")
    granted = await plane.lease(agent)
    assert refused is None
    assert told["wanted"] == wanted
    assert (kept.status_code, done.status_code) == (200, 200)
    assert granted is not None


async def test_a_wish_outlives_a_new_enrolment_and_names_who_wished_it(plane: Plane) -> None:
    agent = await plane.enrol()
    await want(plane, "cordoned")
    agent = await plane.enrol("agent-1", boot_id="another", start=9)
    host = await show(plane)
    assert (await beat(plane, agent))["wanted"] == "cordoned"
    assert (host["state"], host["wanted"], host["wanted_by"]) == ("cordoned", "cordoned", "tester")


async def test_a_drained_host_is_drained_once_it_holds_nothing_and_says_so(plane: Plane) -> None:
    agent = await plane.enrol()
    await plane.submit()
    grant = await plane.lease(agent)
    assert grant is not None
    await want(plane, "drained")
    seen = []
    await beat(plane, agent, doing="draining")
    seen.append(await show(plane))
    await plane.finish(agent, grant)
    seen.append(await show(plane))
    await beat(plane, agent, doing="drained", beat=2)
    seen.append(await show(plane))
    assert [(host["state"], host["machines"], host["drained"]) for host in seen] == [
        ("draining", 1, False),
        ("draining", 0, False),
        ("drained", 0, True),
    ]
    assert [each["machine_id"] for each in seen[0]["leased"]] == [grant["machine_id"]]


async def test_a_drained_host_that_fell_silent_is_drained_once_its_leases_have_ended(plane: Plane) -> None:
    agent = await plane.enrol()
    await plane.submit()
    await plane.lease(agent)
    await beat(plane, agent, doing="draining")
    await want(plane, "drained")
    await plane.sql(GONE)
    silent = await show(plane)
    await plane.pass_deadlines()
    ended = await show(plane)
    assert (silent["state"], silent["drained"], ended["drained"]) == ("silent", False, True)
    assert ["silent" in problem for problem in silent["problems"]] == [True]


async def test_hosts_are_their_operators_and_no_tenants(plane: Plane) -> None:
    agent = await plane.enrol()
    await beat(plane, agent)
    tenant, reader = plane.admin(org_id=1), plane.admin(role="read")
    asked = [
        (await plane.http.get("/api/agents", headers=tenant)).status_code,
        (await plane.http.get("/api/agents/agent-1", headers=tenant)).status_code,
        (await plane.http.put("/api/agents/agent-1/wanted", json={"wanted": "drained"}, headers=tenant)).status_code,
        (await plane.http.delete("/api/agents/agent-1", headers=tenant)).status_code,
        (await plane.http.put("/api/agents/agent-1/wanted", json={"wanted": "drained"}, headers=reader)).status_code,
        (await plane.http.delete("/api/agents/agent-1", headers=reader)).status_code,
        (await plane.http.put("/api/agents/agent-1/wanted", json={"wanted": "drained"}, headers=agent)).status_code,
        (await plane.http.get("/api/agents", headers=reader)).status_code,
    ]
    assert asked == [403, 403, 403, 403, 403, 403, 401, 200]
    assert (await show(plane))["wanted"] == "working"


@pytest.mark.parametrize("body", [{}, {"wanted": "asleep"}, {"wanted": "drained", "for": 5}, {"wanted": None}])
async def test_a_wish_that_is_none_is_refused(plane: Plane, body: dict[str, object]) -> None:
    await plane.enrol()
    reply = await plane.http.put("/api/agents/agent-1/wanted", json=body, headers=plane.admin())
    assert reply.status_code == 400


@pytest.mark.parametrize("agent_id", ["nobody", "a/b", "x" * 200, "%00", "enrol"])
async def test_a_host_that_is_not_known_is_not_found(plane: Plane, agent_id: str) -> None:
    path, headers = f"/api/agents/{agent_id}", plane.admin()
    asked = [
        (await plane.http.get(path, headers=headers)).status_code,
        (await plane.http.put(f"{path}/wanted", json={"wanted": "drained"}, headers=headers)).status_code,
        (await plane.http.delete(path, headers=headers)).status_code,
    ]
    assert asked == [404, 404, 404]


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "least", "words"),
    [
        ("0.1.0", None, None),
        ("nonsense", None, None),
        ("0.10.0", "0.9", None),
        ("0.9", "0.9.0", None),
        ("0.9.0", "0.10.0", "its version 0.9.0 is older than 0.10.0"),
        ("0.10.0rc1", "0.10.0", "is older"),
        ("latest", "0.10.0", "its version 'latest' cannot be compared with 0.10.0"),
        ("\x1b" * 64, "0.10.0", "cannot be compared"),
    ],
)
def test_an_agent_is_judged_by_its_release(version: str, least: str | None, words: str | None) -> None:
    told = judge_version(version, least)
    assert told is None if words is None else words in (told or "")


async def test_an_agent_that_is_too_old_is_granted_nothing_and_told_why(database_dsn: str, redis_url: str) -> None:
    async with open_plane(database_dsn, redis_url, hosts=HostTerms(min_version="0.2.0")) as plane:
        old = await plane.enrol("old", version="0.1.9")
        new = await plane.enrol("new", version="0.10.0")
        await plane.submit()
        told = await beat(plane, old, version="0.1.9")
        refused, granted = await plane.lease(old), await plane.lease(new)
        host = await show(plane, "old")
    assert refused is None
    assert granted is not None
    assert "0.1.9 is older than 0.2.0" in told["barred"]
    assert (host["state"], host["problems"]) == ("outdated", [told["barred"]])


async def test_an_agent_that_sends_no_heartbeats_is_judged_when_the_control_plane_starts(
    database_dsn: str, redis_url: str
) -> None:
    async with open_plane(database_dsn, redis_url) as plane:
        await plane.enrol("old", version="0.0.1")
        await plane.submit()
    async with open_plane(database_dsn, redis_url, hosts=HostTerms(min_version="0.0.2")) as plane:
        await judge_agents(plane.services)
        agent = await plane.enrol("other", version="0.0.2")
        states = {name: (await show(plane, name))["state"] for name in ("old", "other")}
        assert await plane.lease(agent) is not None
    async with open_plane(database_dsn, redis_url) as plane:
        await judge_agents(plane.services)
        again = (await show(plane, "old"))["state"]
    assert states == {"old": "outdated", "other": "working"}
    assert again == "working"


# --- lists -------------------------------------------------------------------------------------------------------


async def test_a_host_of_an_earlier_release_that_never_reports_is_listed_and_works(plane: Plane) -> None:
    agent = await plane.enrol()
    await plane.submit()
    assert await plane.lease(agent) is not None
    host = await show(plane)
    assert (host["state"], host["doing"], host["free_cpus"], host["machines"]) == ("working", None, None, 1)


async def test_hosts_are_listed_by_name_and_counted_by_state(plane: Plane) -> None:
    for name in ("c", "a", "b"):
        await beat(plane, await plane.enrol(name))
    await want(plane, "cordoned", "b")
    await plane.sql(f"{GONE} WHERE agent_id = 'c'")
    reply = (await plane.http.get("/api/agents", headers=plane.admin())).json()
    rest = (await plane.http.get("/api/agents?after=a", headers=plane.admin())).json()
    page = (await plane.http.get("/metrics")).text
    assert [(host["agent_id"], host["state"]) for host in reply["hosts"]] == [
        ("a", "working"),
        ("b", "cordoned"),
        ("c", "silent"),
    ]
    assert [host["agent_id"] for host in rest["hosts"]] == ["b", "c"]
    assert reply["next"] is None
    for line in ('agents{state="working"} 1.0', 'agents{state="cordoned"} 1.0', 'agents{state="silent"} 1.0'):
        assert f"nimbus_control_plane_{line}" in page
    assert "nimbus_control_plane_agents_seen 2.0" in page


async def test_the_status_of_the_service_tells_of_hosts_as_their_list_does(plane: Plane) -> None:
    await beat(plane, await plane.enrol())
    await want(plane, "drained")
    status = (await plane.http.get("/api/status", headers=plane.admin())).json()
    assert [(each["agent_id"], each["state"]) for each in status["agents"]] == [("agent-1", "draining")]


# --- forgotten ---------------------------------------------------------------------------------------------------


async def forget(plane: Plane) -> int:
    return (await plane.http.delete("/api/agents/agent-1", headers=plane.admin())).status_code


async def test_a_host_is_forgotten_only_once_it_is_silent_and_holds_nothing(plane: Plane) -> None:
    agent = await plane.enrol()
    await plane.submit()
    await plane.lease(agent)
    speaks = await forget(plane)
    await plane.sql(GONE)
    holds = await forget(plane)
    await plane.pass_deadlines()
    gone, again = await forget(plane), await forget(plane)
    assert (speaks, holds, gone, again) == (409, 409, 200, 404)


async def test_a_host_that_was_forgotten_and_comes_back_enrols_anew(plane: Plane) -> None:
    agent = await plane.enrol()
    await plane.sql(GONE)
    await forget(plane)
    await plane.submit()
    refused = await plane.lease(agent)
    await beat(plane, agent, expect=401)
    agent = await plane.enrol()
    await beat(plane, agent)
    assert refused is None
    assert await plane.lease(agent) is not None


async def test_a_waiting_host_that_is_uncordoned_gets_what_waits(plane: Plane) -> None:
    agent = await plane.enrol()
    await want(plane, "cordoned")
    await plane.submit()
    got: list[dict[str, Any] | None] = []

    async def wait() -> None:
        got.append(await plane.lease(agent, wait_s=30))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await want(plane, "working")
    assert got[0] is not None
