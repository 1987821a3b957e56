"""Sizes, aliases and architectures in labels on a real control plane: which machine a job gets, or why it gets none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nimbus.control_plane.demand.admission import meet_demand
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.control_plane.orgs.aliases import CappedAlias, keep_alias, remove_alias
from nimbus.model.labels import Alias, Arch, LabelRules
from nimbus.model.vm import Shape
from tests.unit.control_plane.github_plane import GithubPlane, open_github_plane

pytestmark = pytest.mark.services
BIG = Alias("big", Shape(4, 8192, 20480), Arch.ARM64, "heavy")


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def lease(github: GithubPlane, agent: dict[str, str], **asked: Any) -> dict[str, Any] | None:
    """What an agent with so much room and these labels gets."""
    room = {"cpus": 64, "mem_mib": 262144, "slots": 8}
    body = {"wait_s": 0.0, "free": room, "labels": ["nimbus"]} | asked
    reply = await github.plane.http.post("/api/agents/lease", json=body, headers=agent)
    assert reply.status_code in {200, 204}, reply.text
    return None if reply.status_code == 204 else dict(reply.json())


async def give_alias(github: GithubPlane, alias: Alias, org: str = "octo-org") -> int:
    """An alias of an org, as its operator would make it."""
    await github.plane.sql(
        "INSERT INTO orgs (forge, forge_id, login) VALUES ('github', 501, $1) ON CONFLICT DO NOTHING", org
    )
    [row] = await github.plane.sql("SELECT org_id FROM orgs WHERE login = $1", org)
    await github.plane.services.database.run(keep_alias, row["org_id"], CappedAlias(alias))
    return int(row["org_id"])


async def test_a_size_in_the_label_is_the_machines_size_and_the_runner_keeps_the_label(github: GithubPlane) -> None:
    await github.tell("queued", labels=["Nimbus-4cpu-8gb-20gb-disk"])
    [machine] = await github.machines()
    assert machine["shape"] == {"cpus": 4, "mem_mib": 8192, "disk_mib": 20480}
    assert (machine["labels"], machine["host_labels"]) == (["nimbus-4cpu-8gb-20gb-disk"], ["nimbus"])
    grant = await lease(github, await github.plane.enrol())
    assert grant is not None
    assert grant["labels"] == ["nimbus-4cpu-8gb-20gb-disk"]


async def test_a_machine_goes_to_a_host_of_its_architecture_and_an_agent_that_tells_none_is_x64(
    github: GithubPlane,
) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", 1, labels=["nimbus-1cpu-1gb-arm64"])
    await github.tell("queued", 2, labels=["self-hosted", "linux", "x64", "nimbus"])
    first = await lease(github, agent)
    assert first is not None
    assert first["labels"] == ["linux", "nimbus", "self-hosted", "x64"]
    assert await lease(github, agent, arch="x64") is None
    second = await lease(github, agent, arch="arm64")
    assert second is not None
    assert second["labels"] == ["nimbus-1cpu-1gb-arm64"]


async def test_a_host_must_offer_the_labels_that_name_no_size_and_one_without_labels_serves_all_of_its_architecture(
    github: GithubPlane,
) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", 1, labels=["nimbus-1cpu-1gb", "ssd"])
    await github.tell("queued", 2, labels=["nimbus-1cpu-1gb", "ssd"])
    assert await lease(github, agent) is None
    assert await lease(github, agent, labels=["SSD", "nimbus"]) is not None
    assert await lease(github, agent, labels=[], arch="arm64") is None
    assert await lease(github, agent, labels=[]) is not None


async def test_an_alias_of_its_org_makes_a_job_ours_and_another_org_does_not_have_it(github: GithubPlane) -> None:
    await give_alias(github, BIG)
    await github.tell("queued", 1, labels=["Big"])
    await github.tell("queued", 2, labels=["big"], owner={"id": 502, "login": "else"})
    [machine] = await github.machines()
    assert machine["shape"] == {"cpus": 4, "mem_mib": 8192, "disk_mib": 20480}
    assert (machine["alias"], machine["arch"], machine["image"]) == ("big", "arm64", "heavy")
    assert machine["host_labels"] == ["nimbus"]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["nimbus-4cpus"], "nimbus-4cpus is no size"),
        (["nimbus-1cpu-1gb", "nimbus-2cpu-2gb"], "each ask for a machine of their own"),
        (["nimbus-65cpu-1gb"], "65 CPUs are more than the 64"),
        (["nimbus-large"], "this organisation has no label nimbus-large"),
    ],
)
async def test_labels_that_cannot_be_served_stand_as_a_refusal_on_the_job_and_boot_nothing(
    github: GithubPlane, labels: list[str], told: str
) -> None:
    await github.tell("queued", labels=labels)
    [job] = await github.jobs()
    assert told in job["refusal"]
    assert await meet_demand(github.plane.services, github.forge.demand) == 0
    assert await github.machines() == []


async def test_a_refused_job_gets_its_machine_once_its_label_has_a_meaning_and_loses_it_with_that(
    github: GithubPlane,
) -> None:
    services, rules = github.plane.services, github.forge.demand
    await github.tell("queued", labels=["nimbus-large"])
    org_id = await give_alias(github, replace(BIG, alias="nimbus-large"))
    assert await meet_demand(services, rules) == 1
    await services.database.run(keep_alias, org_id, CappedAlias(replace(BIG, alias="nimbus-large", image=None)))
    assert await meet_demand(services, rules) == 0
    assert [row["image"] for row in await github.machines()] == ["base"]
    await services.database.run(remove_alias, org_id, "nimbus-large")
    await meet_demand(services, rules)
    assert await github.states() == ["cancelled!"]
    assert "no label nimbus-large" in (await github.jobs())[0]["refusal"]


async def test_a_lowered_limit_refuses_queued_jobs_of_a_larger_size(github: GithubPlane) -> None:
    await github.tell("queued", labels=["nimbus-8cpu-8gb"])
    lowered = DemandRules(LabelRules(max_cpus=4))
    await meet_demand(github.plane.services, lowered)
    assert await github.states() == ["cancelled!"]
    assert "NIMBUS_LABEL_MAX_CPUS" in (await github.jobs())[0]["refusal"]


async def test_a_rerun_is_a_job_of_its_own_with_its_attempt(github: GithubPlane) -> None:
    await github.tell("queued", 1)
    await github.tell("completed", 1, conclusion="failure")
    await github.tell("queued", 2, run_attempt=2)
    assert [(job["run_id"], job["run_attempt"], job["state"]) for job in await github.jobs()] == [
        (10, 1, "completed"),
        (10, 2, "queued"),
    ]
    assert sorted(await github.states()) == ["cancelled!", "queued"]


async def test_an_event_keeps_its_repository_active_and_served_by_its_installation(github: GithubPlane) -> None:
    await github.tell("queued")
    [repo] = await github.plane.sql("SELECT installation_id, active_at > now() - interval '1 min' AS active FROM repos")
    assert (repo["installation_id"], repo["active"]) == (77, True)
    [installation] = await github.plane.sql("SELECT installation_id, suspended, removed FROM installations")
    assert dict(installation) == {"installation_id": 77, "suspended": False, "removed": False}
