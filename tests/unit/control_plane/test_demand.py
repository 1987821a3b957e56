"""Demand on a real control plane: GitHub's events in any order, and the machines that follow them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nimbus.control_plane.demand.admission import meet_demand
from nimbus.control_plane.demand.demand import DemandRules
from nimbus.model.labels import LabelRules
from tests.unit.control_plane.github_plane import GithubPlane, job_event, open_github_plane

pytestmark = pytest.mark.services
RUNNER: dict[str, Any] = {"runner_id": 7, "started_at": "2026-11-21T08:00:09Z"}
COMPLETED: dict[str, Any] = {"conclusion": "success", "completed_at": "2026-11-21T08:01:00Z", **RUNNER}


@pytest.fixture
async def github(database_dsn: str, redis_url: str) -> AsyncIterator[GithubPlane]:
    async with open_github_plane(database_dsn, redis_url) as running:
        yield running


async def register(github: GithubPlane, agent: dict[str, str]) -> dict[str, Any]:
    """A leased machine with a registered runner."""
    grant = await github.lease(agent)
    answer = await github.mint(agent, grant)
    assert answer.status_code == 200, answer.text
    return grant | {"runner_name": answer.json()["runner_name"]}


async def test_a_queued_job_with_our_label_asks_for_one_machine(github: GithubPlane) -> None:
    await github.tell("queued", labels=["Nimbus", "X64"])
    [machine] = await github.machines()
    assert (machine["kind"], machine["labels"], machine["state"]) == ("runner", ["nimbus", "x64"], "queued")
    assert machine["installation_id"] == 77
    assert machine["webhook_at"] is not None
    assert machine["job_id"] is None
    [job] = await github.jobs()
    assert (job["state"], job["labels"], job["workflow_name"]) == ("queued", ["nimbus", "x64"], "CI")


async def test_a_job_without_our_label_is_ignored(github: GithubPlane) -> None:
    await github.tell("queued", labels=["ubuntu-latest"])
    assert await github.delivery_states() == ["ignored"]
    assert await github.jobs() == []
    assert await github.machines() == []


async def test_a_job_at_an_environment_gate_boots_nothing_until_it_is_queued(github: GithubPlane) -> None:
    await github.tell("queued", status="waiting")
    assert await github.states() == []
    await github.tell("queued", status="queued")
    assert await github.states() == ["queued"]


async def test_each_queued_job_gets_a_machine_and_the_same_job_told_twice_only_one(github: GithubPlane) -> None:
    for job_id in (1, 2, 1):
        await github.tell("queued", job_id)
    assert await github.states() == ["queued", "queued"]


async def test_a_job_cancelled_before_its_machine_is_leased_cancels_one_machine(github: GithubPlane) -> None:
    await github.tell("queued", 1)
    await github.tell("queued", 2)
    await github.tell("completed", 1, conclusion="cancelled", completed_at="2026-11-21T08:00:05Z")
    assert sorted(await github.states()) == ["cancelled!", "queued"]
    assert [job["conclusion"] for job in await github.jobs()] == ["cancelled", None]


async def test_a_job_cancelled_after_the_lease_asks_the_holder_to_stop(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    grant = await github.lease(agent)
    await github.tell("completed", conclusion="cancelled")
    assert await github.states() == ["leased!"]
    assert (await github.plane.renew(agent, grant, "booting")).json()["cancel"] is True


async def test_in_progress_links_the_machine_by_its_runners_name_and_the_link_reaches_the_agent(
    github: GithubPlane,
) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    grant = await register(github, agent)
    await github.tell("in_progress", runner_name=grant["runner_name"], **RUNNER)
    [job], [machine] = await github.jobs(), await github.machines()
    assert (job["state"], job["runner_name"]) == ("in_progress", await github.name_of(grant))
    assert job["started_at"].second == 9
    assert machine["job_id"] == job["job_id"]
    reply = (await github.plane.renew(agent, grant)).json()
    assert reply["job"] == {"job_id": job["job_id"], "repo_id": job["repo_id"]}
    assert reply["ttl_s"] == 3600.0


async def test_a_job_ends_completed_and_its_machine_ends_by_its_own_report(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    grant = await register(github, agent)
    await github.tell("in_progress", runner_name=grant["runner_name"], **RUNNER)
    await github.tell("completed", runner_name=grant["runner_name"], **COMPLETED)
    [job] = await github.jobs()
    assert (job["state"], job["conclusion"]) == ("completed", "success")
    assert await github.states() == ["leased"]
    assert (await github.plane.finish(agent, grant)).json()["state"] == "done"


async def test_events_in_reverse_order_end_in_the_same_state_and_boot_nothing(github: GithubPlane) -> None:
    await github.tell("completed", runner_name="elsewhere", **COMPLETED)
    await github.tell("in_progress", runner_name="elsewhere", **RUNNER)
    await github.tell("queued", created_at="2026-11-21T07:59:00Z")
    [job] = await github.jobs()
    assert (job["state"], job["conclusion"], job["runner_name"]) == ("completed", "success", "elsewhere")
    assert (job["queued_at"].hour, job["queued_at"].minute) == (7, 59)
    assert await github.machines() == []


async def test_completed_without_queued_is_recorded(github: GithubPlane) -> None:
    await github.tell("completed", conclusion="skipped")
    assert [job["conclusion"] for job in await github.jobs()] == ["skipped"]


async def test_a_job_taken_by_somebody_elses_runner_frees_its_machine(github: GithubPlane) -> None:
    await github.tell("queued")
    await github.tell("in_progress", runner_name="a-runner-of-theirs", **RUNNER)
    assert await github.states() == ["cancelled!"]


async def test_a_stolen_runner_is_replaced_and_the_job_that_took_it_lets_its_own_go(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", 1, labels=["nimbus", "x64"])
    large = await register(github, agent)
    await github.tell("queued", 2, labels=["nimbus"])
    await github.tell("in_progress", 2, labels=["nimbus"], runner_name=large["runner_name"], **RUNNER)
    machines = {tuple(row["labels"]): row["state"] for row in await github.machines() if row["job_id"] is None}
    assert machines == {("nimbus",): "cancelled", ("nimbus", "x64"): "queued"}


async def test_demand_is_counted_for_each_repository_and_org_apart(github: GithubPlane) -> None:
    await github.tell("queued", 1)
    other = {"id": 602, "name": "other", "full_name": "octo-org/other", "private": True}
    await github.tell("queued", 2, repo=other)
    stranger = {"id": 502, "login": "else"}
    await github.tell("queued", 3, owner=stranger)
    await github.tell("completed", 2, repo=other, conclusion="cancelled")
    assert await github.states() == ["queued", "cancelled!", "queued"]
    assert len({row["org_id"] for row in await github.machines()}) == 2


async def test_another_orgs_event_cannot_touch_a_job(github: GithubPlane) -> None:
    await github.tell("queued", 1)
    await github.deliver(job_event("completed", 1, owner={"id": 502, "login": "else"}, conclusion="success"))
    await github.drain()
    assert await github.delivery_states() == ["processed", "failed"]
    assert [job["state"] for job in await github.jobs()] == ["queued"]


async def test_a_runners_name_links_no_machine_of_another_org(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued", 1)
    grant = await register(github, agent)
    await github.tell("in_progress", 2, owner={"id": 502, "login": "else"}, runner_name=grant["runner_name"], **RUNNER)
    assert [row["job_id"] for row in await github.machines()] == [None]


async def test_a_lease_that_expires_before_the_job_runs_goes_to_a_new_machine_under_a_higher_fence(
    github: GithubPlane,
) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    await register(github, agent)
    await github.plane.pass_deadlines()
    again = await github.lease(agent)
    assert again["fence"] == 2
    assert (await github.mint(agent, again)).json()["runner_name"] == await github.name_of(again, 2)


async def test_a_job_lost_in_progress_ends_lost_with_its_cause_and_keeps_githubs_last_word(
    github: GithubPlane,
) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    grant = await register(github, agent)
    await github.tell("in_progress", runner_name=grant["runner_name"], **RUNNER)
    await github.plane.pass_deadlines()
    await github.tell("completed", runner_name=grant["runner_name"], **COMPLETED | {"conclusion": "failure"})
    [job] = await github.jobs()
    assert (job["state"], job["conclusion"]) == ("lost", "failure")
    assert "expired" in job["cause"]
    assert await github.states() == ["lost"]


async def test_a_queued_job_whose_machine_is_gone_gets_another_after_a_pause(github: GithubPlane) -> None:
    agent = await github.plane.enrol()
    await github.tell("queued")
    grant = await github.lease(agent)
    await github.plane.finish(agent, grant, "done")
    services, rules = github.plane.services, github.forge.demand
    assert await meet_demand(services, rules) == 0
    await github.plane.sql("UPDATE machines SET finished_at = finished_at - interval '2 minutes'")
    assert await meet_demand(services, rules) == 1
    assert await github.states() == ["done", "queued"]
    assert (await github.machines())[1]["installation_id"] == 77
    assert await meet_demand(services, rules) == 0


async def end_untold(github: GithubPlane, seconds_ago: int) -> None:
    """A registered runner served a job and its machine ended, and GitHub's events of that got lost."""
    agent = await github.plane.enrol()
    await github.plane.finish(agent, await register(github, agent), "done")
    await github.plane.sql("UPDATE machines SET finished_at = now() - make_interval(secs => $1)", float(seconds_ago))


async def test_a_job_that_was_served_and_not_told_of_gets_no_second_machine_before_a_repair_could_tell(
    github: GithubPlane,
) -> None:
    await github.tell("queued", 1)
    await end_untold(github, 120)
    assert await meet_demand(github.plane.services, github.forge.demand) == 0
    await github.tell("queued", 2)
    assert await github.states() == ["done", "queued"]
    await github.tell("completed", 1, conclusion="success")
    assert await github.states() == ["done", "queued"]


@pytest.mark.parametrize(("seconds_ago", "polled"), [(400, False), (120, True)])
async def test_a_job_that_still_waits_after_a_repair_had_its_turn_gets_another_machine(
    github: GithubPlane, seconds_ago: int, polled: bool
) -> None:
    await github.tell("queued", 1)
    await end_untold(github, seconds_ago)
    if polled:
        await github.plane.sql("UPDATE repos SET polled_at = now()")
    assert await meet_demand(github.plane.services, github.forge.demand) == 1


async def test_a_job_queued_for_more_than_a_day_asks_for_nothing(github: GithubPlane) -> None:
    await github.tell("queued")
    await github.plane.sql("UPDATE jobs SET queued_at = now() - interval '25 hours'")
    await github.plane.sql("UPDATE machines SET state = 'failed', finished_at = now() - interval '1 hour'")
    assert await meet_demand(github.plane.services, github.forge.demand) == 0
    assert await github.states() == ["failed"]


async def test_other_labels_can_be_configured(database_dsn: str, redis_url: str) -> None:
    rules = DemandRules(LabelRules(labels=("fast", "gpu"), image="special"))
    async with open_github_plane(database_dsn, redis_url, demand=rules) as github:
        await github.tell("queued", 1, labels=["GPU"])
        await github.tell("queued", 2, labels=["nimbus"])
        assert [row["image"] for row in await github.machines()] == ["special"]


@pytest.mark.parametrize("order", list(itertools.permutations(["queued", "in_progress", "completed"])))
async def test_any_order_of_a_jobs_events_told_twice_ends_alike_and_leaves_no_machine_waiting(
    github: GithubPlane, order: tuple[str, ...]
) -> None:
    told: dict[str, dict[str, Any]] = {
        "queued": {},
        "in_progress": {"runner_name": "theirs", **RUNNER},
        "completed": {"runner_name": "theirs", **COMPLETED},
    }
    for action in (*order, *order):
        await github.tell(action, **told[action])
    [job] = await github.jobs()
    assert (job["state"], job["conclusion"], job["runner_name"]) == ("completed", "success", "theirs")
    assert job["started_at"].second == 9
    assert set(await github.states()) <= {"cancelled!"}
