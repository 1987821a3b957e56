"""GitHub's own example payloads: each `workflow_job` is judged rightly, every other event is politely refused."""

from __future__ import annotations

import json

import pytest

from nimbus.control_plane.demand.demand import DemandRules
from nimbus.model.job import JobState
from nimbus.model.labels import LabelRules
from nimbus.wire.github import parse_workflow_job
from tests.clients.examples import Example, read_examples
from tests.unit.control_plane.github_plane import open_github_plane

HEARD = {"workflow_job", "installation", "installation_repositories", "ping"}
LABELS = ("ubuntu-latest", "gpu", "k8s")  # at least one of them is on each example's job


def of_event(event: str) -> list[Example]:
    return [example for example in read_examples() if example.event == event]


def expected_state(body: dict[str, object]) -> JobState:
    """What the schema's pairs of action and status mean: only a queued job at a gate differs from its action."""
    job = body["workflow_job"]
    assert isinstance(job, dict)
    gated = body["action"] == "queued" and job["status"] == "waiting"
    return JobState.WAITING if gated else JobState(str(body["action"]))


def test_the_examples_are_there_and_hold_what_we_listen_to() -> None:
    assert len(read_examples()) > 300
    assert {example.event for example in read_examples()} > HEARD
    assert {expected_state(example.body) for example in of_event("workflow_job")} == set(JobState) - {JobState.LOST}


def test_every_workflow_job_tells_the_state_that_its_action_and_status_mean() -> None:
    for example in of_event("workflow_job"):
        event = parse_workflow_job(json.dumps(example.body).encode())
        assert event.told is expected_state(example.body), example.name
        assert event.forge_job_id == example.body["workflow_job"]["id"], example.name
        assert event.repo.full_name == example.body["repository"]["full_name"], example.name
        assert set(event.labels) == {label.lower() for label in example.body["workflow_job"]["labels"]}, example.name


def test_a_queued_job_behind_a_deployment_gate_waits() -> None:
    [example] = [
        each for each in of_event("workflow_job") if each.body["action"] == "queued" and "deployment" in each.body
    ]
    assert parse_workflow_job(json.dumps(example.body).encode()).told is JobState.WAITING


def test_an_assigned_runner_is_read_and_none_is_none() -> None:
    for example in of_event("workflow_job"):
        event = parse_workflow_job(json.dumps(example.body).encode())
        job = example.body["workflow_job"]
        assert (event.runner_id, event.runner_name) == (job["runner_id"] or None, job["runner_name"] or None)


@pytest.mark.services
async def test_every_workflow_job_comes_through_the_inbox_as_what_it_is(database_dsn: str, redis_url: str) -> None:
    rules = DemandRules(LabelRules(labels=LABELS))
    async with open_github_plane(database_dsn, redis_url, demand=rules) as github:
        for example in of_event("workflow_job"):
            answer = await github.deliver(example.body)
            assert (answer.status_code, answer.json()["state"]) == (202, "stored"), example.name
            await github.drain()
            job_id = example.body["workflow_job"]["id"]
            [job] = [job for job in await github.jobs() if job["forge_job_id"] == job_id]
            assert job["state"] == expected_state(example.body), example.name
            await github.plane.sql("UPDATE machines SET job_id = NULL")
            # the examples share ids, and a job never goes back
            await github.plane.sql("UPDATE jobs SET forge_job_id = -job_id WHERE forge_job_id > 0")
        assert set(await github.delivery_states()) == {"processed"}


@pytest.mark.services
async def test_every_installation_event_is_taken(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        for example in [*of_event("installation"), *of_event("installation_repositories")]:
            answer = await github.deliver(example.body, event=example.event)
            assert (answer.status_code, answer.json()["state"]) == (202, "stored"), example.name
            await github.drain()
            [row] = await github.plane.sql(
                "SELECT suspended, removed FROM installations WHERE installation_id = $1",
                example.body["installation"]["id"],
            )
            action = example.body["action"]
            assert row["removed"] is (action == "deleted"), example.name
            assert row["suspended"] is (action == "suspend" or bool(example.body["installation"].get("suspended_at")))
        assert set(await github.delivery_states()) == {"processed"}


@pytest.mark.services
async def test_every_other_event_is_refused_politely_and_leaves_nothing(database_dsn: str, redis_url: str) -> None:
    async with open_github_plane(database_dsn, redis_url) as github:
        for example in read_examples():
            if example.event not in HEARD:
                answer = await github.deliver(example.body, event=example.event)
                assert (answer.status_code, answer.json()["state"]) == (202, "ignored"), example.name
                assert "workflow_job" in answer.json()["reason"]
        for example in of_event("ping"):
            answer = await github.deliver(example.body, event="ping")
            assert (answer.status_code, answer.json()["state"]) == (202, "pong"), example.name
        assert await github.delivery_states() == []
