"""The fake GitHub's rules against the facts: one test for each that it can show (facts/github.md 5.1 to 5.4)."""

from __future__ import annotations

import json

import pytest

from nimbus.model.errors import Conflict, NotFound, Refused, Unauthorized
from nimbus.model.job import JobState
from nimbus.sim.forge import DAY_S, ForgePolicy
from nimbus.sim.jobs import Conclusion
from nimbus.sim.payloads import render_runner
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.github import parse_workflow_job, runner_serves
from tests.unit.sim.rig import Clock, Stage

ALWAYS_THERE = {
    "id", "run_id", "run_attempt", "run_url", "head_sha", "node_id", "name", "workflow_name", "head_branch",
    "html_url", "status", "conclusion", "created_at", "started_at", "completed_at", "labels", "runner_id",
    "runner_name", "runner_group_id", "runner_group_name", "steps",
}  # fmt: skip


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- 5.1 the workflow_job webhook ------------------------------------------------------------------------------


def test_every_state_carries_all_of_githubs_keys_and_the_installation(stage: Stage) -> None:
    job, runner = stage.running()
    stage.forge.complete(runner, job.job_id, Conclusion.SUCCESS)
    assert stage.actions == ["queued", "in_progress", "completed"]
    for event in stage.told:
        assert set(event["workflow_job"]) >= ALWAYS_THERE
        assert event["installation"]["id"] == 7
        assert {"repository", "sender", "organization"} <= set(event)


def test_what_the_sim_sends_is_what_the_control_plane_reads(stage: Stage) -> None:

    job, runner = stage.running()
    event = parse_workflow_job(json.dumps(stage.told[-1]).encode())
    assert (event.told, event.forge_job_id, event.runner_name) == (JobState.IN_PROGRESS, job.job_id, runner.name)
    assert event.repo.full_name == "octo-org/hello"


def test_the_runner_is_null_until_the_job_is_assigned(stage: Stage) -> None:
    stage.running()
    fields = ("runner_id", "runner_name", "runner_group_id", "runner_group_name")
    assert [stage.told[0]["workflow_job"][name] for name in fields] == [None] * 4
    assert stage.told[1]["workflow_job"]["runner_name"] == "nimbus-1-1"


def test_started_at_of_a_queued_job_is_only_its_creation_time(stage: Stage) -> None:
    stage.job()
    queued = stage.told[0]["workflow_job"]
    assert queued["started_at"] == queued["created_at"]
    assert queued["completed_at"] is None


def test_a_job_at_an_environment_gate_is_told_as_queued_with_status_waiting(stage: Stage) -> None:
    stage.job(extra="environment: production,")
    assert (stage.told[0]["action"], stage.told[0]["workflow_job"]["status"]) == ("queued", "waiting")
    assert stage.told[0]["deployment"]["environment"] == "production"


def test_a_waiting_job_is_given_to_nobody_until_it_is_approved_and_told_as_queued_again(stage: Stage) -> None:
    runner = stage.online()
    job = stage.job(extra="environment: production,")
    assert stage.forge.offer(runner) is None
    stage.forge.approve(job.job_id)
    assert stage.told[-1]["workflow_job"]["status"] == "queued"
    assert stage.forge.offer(runner) is job


def test_a_job_cancelled_before_pickup_completes_without_runner_and_steps(stage: Stage) -> None:
    job = stage.job()
    stage.forge.cancel(job.job_id)
    completed = stage.told[-1]["workflow_job"]
    assert (completed["conclusion"], completed["runner_name"], completed["steps"]) == ("cancelled", None, [])


def test_labels_keep_the_spelling_of_the_workflow_in_the_payload(stage: Stage) -> None:
    stage.job("Nimbus, X64")
    assert stage.told[0]["workflow_job"]["labels"] == ["Nimbus", "X64"]


def test_a_job_lands_on_a_runner_that_carries_all_its_labels_whatever_the_case(stage: Stage) -> None:
    lacking, fitting = stage.online("nimbus", name="a"), stage.online("NIMBUS", "x64", "more", name="b")
    job = stage.job("Nimbus, X64")
    assert stage.forge.offer(lacking) is None
    assert stage.forge.offer(fitting) is job


def test_a_runner_with_extra_labels_can_be_taken_by_a_smaller_job(stage: Stage) -> None:
    runner = stage.online("nimbus", "gpu")
    small = stage.job("nimbus")
    assert stage.forge.offer(runner) is small


# -- 5.3 just-in-time runners ----------------------------------------------------------------------------------


def test_labels_are_stored_in_lower_case_and_none_is_added(stage: Stage) -> None:
    runner = stage.runner("Nimbus", "X64", "nimbus")
    assert runner.labels == ("nimbus", "x64")
    assert not runner_serves(runner.labels, ["self-hosted"])


def test_a_duplicate_name_is_a_conflict_until_the_first_is_deleted(stage: Stage) -> None:
    first = stage.runner()
    with pytest.raises(Conflict, match="Already exists"):
        stage.runner()
    stage.forge.delete_runner(first.scope, first.runner_id)
    assert stage.runner().runner_id != first.runner_id


def test_a_runner_takes_one_job_and_is_deregistered_with_it(stage: Stage) -> None:
    job, runner = stage.running()
    second = stage.job()
    assert stage.forge.offer(runner) is None
    stage.forge.complete(runner, job.job_id, Conclusion.SUCCESS)
    assert stage.forge.runners == {}
    assert second.state is JobState.QUEUED
    with pytest.raises(Unauthorized):
        stage.forge.authenticate(runner.token)


def test_a_runner_is_not_bound_to_the_job_it_was_made_for(stage: Stage) -> None:
    first = stage.job()
    stage.forge.cancel(first.job_id)
    runner, second = stage.online(), stage.job()
    assert stage.forge.offer(runner) is second


def test_a_runner_of_one_repository_gets_no_job_of_another(stage: Stage) -> None:
    runner = stage.runner(scope="octo-org/other")
    stage.forge.go_online(runner)
    job = stage.job()
    assert stage.forge.offer(runner) is None
    organisation = stage.runner(name="b", scope="octo-org")
    stage.forge.go_online(organisation)
    assert stage.forge.offer(organisation) is job


def test_a_runner_reaches_no_job_but_its_own(stage: Stage) -> None:
    job, _ = stage.running()
    stranger = stage.online(name="b")
    with pytest.raises(NotFound):
        stage.forge.complete(stranger, job.job_id, Conclusion.SUCCESS)
    with pytest.raises(Conflict):
        stage.forge.accept(stranger, job.job_id)


# -- 5.4 listing, deleting, time limits ------------------------------------------------------------------------


def test_a_runner_is_offline_until_its_first_session_and_busy_only_while_it_runs(stage: Stage) -> None:
    runner = stage.runner()
    assert (render_runner(runner)["status"], render_runner(runner)["busy"]) == ("offline", False)
    job = stage.job()
    stage.forge.go_online(runner)
    assert (render_runner(runner)["status"], render_runner(runner)["busy"]) == ("online", False)
    stage.forge.accept(runner, job.job_id)
    assert render_runner(runner)["busy"] is True


def test_runners_are_found_by_name_and_scope(stage: Stage) -> None:
    runner = stage.runner()
    assert stage.forge.runners_of("Octo-Org/Hello", "NIMBUS-1-1") == [runner]
    assert stage.forge.runners_of("octo-org/hello", "nimbus-1-2") == []
    assert stage.forge.runners_of("octo-org", "nimbus-1-1") == []


def test_deleting_a_busy_runner_is_refused(stage: Stage) -> None:
    _, runner = stage.running()
    with pytest.raises(Refused, match="currently running a job"):
        stage.forge.delete_runner(runner.scope, runner.runner_id)


def test_deleting_an_unknown_runner_is_not_found(stage: Stage) -> None:
    with pytest.raises(NotFound):
        stage.forge.delete_runner("octo-org/hello", 12345)


def test_an_offer_not_accepted_in_sixty_seconds_goes_to_another_runner(stage: Stage) -> None:
    job, dead = stage.job(), stage.online(name="dead")
    assert stage.forge.offer(dead) is job
    living = stage.online(name="living")
    stage.clock.now_s += 59.0
    stage.forge.authenticate(living.token)
    stage.forge.sweep()
    assert stage.forge.offer(living) is None
    stage.clock.now_s += 2.0
    stage.forge.sweep()
    assert stage.forge.offer(living) is job
    with pytest.raises(Conflict):
        stage.forge.accept(dead, job.job_id)


def test_a_job_queued_for_a_day_fails(stage: Stage) -> None:
    job = stage.job()
    stage.clock.now_s += DAY_S + 1
    stage.forge.sweep()
    assert (job.state, job.conclusion) == (JobState.COMPLETED, Conclusion.FAILURE)


def test_an_ephemeral_runner_offline_for_a_day_is_removed(stage: Stage) -> None:
    stage.runner()
    stage.clock.now_s += DAY_S + 1
    stage.forge.sweep()
    assert stage.forge.runners == {}


def test_a_runner_that_falls_silent_is_listed_offline_and_its_job_fails_in_the_end(stage: Stage) -> None:
    job, runner = stage.running()
    stage.clock.now_s += 61.0
    stage.forge.sweep()
    assert (runner.online, job.state) == (False, JobState.IN_PROGRESS)
    stage.clock.now_s += 600.0
    stage.forge.sweep()
    assert (job.conclusion, stage.forge.runners) == (Conclusion.FAILURE, {})


def test_deleting_an_offered_runner_gives_the_job_to_another(stage: Stage) -> None:
    job, first, second = stage.job(), stage.online(name="a"), stage.online(name="b")
    assert stage.forge.offer(first) is job
    stage.forge.delete_runner(first.scope, first.runner_id)
    assert stage.forge.offer(second) is job


def test_a_runner_that_idles_longer_than_the_limit_is_dropped_unless_it_has_work(stage: Stage) -> None:
    stage.forge.policy = ForgePolicy(idle_at_most_s=120.0)
    job, busy = stage.running()
    idle, offline = stage.online("gpu", name="idle"), stage.runner(name="offline")
    stage.clock.now_s += 119.0
    stage.forge.sweep()
    assert set(stage.forge.runners) == {busy.runner_id, idle.runner_id, offline.runner_id}
    stage.forge.go_online(stage.forge.authenticate(idle.token))
    stage.clock.now_s += 2.0
    stage.forge.sweep()
    assert set(stage.forge.runners) == {busy.runner_id, offline.runner_id}
    assert job.state is JobState.IN_PROGRESS


# -- cancelling ------------------------------------------------------------------------------------------------


def test_a_cancelled_running_job_ends_cancelled_whatever_its_runner_says(stage: Stage) -> None:
    job, runner = stage.running()
    stage.forge.cancel(job.job_id)
    assert job.state is JobState.IN_PROGRESS
    stage.forge.complete(runner, job.job_id, Conclusion.FAILURE)
    assert stage.told[-1]["workflow_job"]["conclusion"] == "cancelled"


def test_a_cancelled_job_whose_runner_never_stops_is_ended_without_it(stage: Stage) -> None:
    job, runner = stage.running()
    stage.forge.cancel(job.job_id)
    stage.clock.now_s += 301.0
    stage.forge.authenticate(runner.token)
    stage.forge.sweep()
    assert (job.conclusion, stage.forge.runners) == (Conclusion.CANCELLED, {})


def test_a_completed_job_can_be_neither_cancelled_nor_approved(stage: Stage) -> None:
    job = stage.job()
    stage.forge.cancel(job.job_id)
    for again in (stage.forge.cancel, stage.forge.approve):
        with pytest.raises(Conflict):
            again(job.job_id)


def test_a_run_is_what_its_jobs_are(stage: Stage) -> None:
    text = "jobs: {a: {runs-on: nimbus, steps: [{run: x}]}, b: {runs-on: nimbus, steps: [{run: x}]}}"
    run = stage.forge.start_run(parse_workflow(text), "hello")
    assert (run.state, run.conclusion) == (JobState.QUEUED, None)
    runner = stage.online()
    stage.forge.accept(runner, run.jobs[0].job_id)
    assert run.state is JobState.IN_PROGRESS
    stage.forge.complete(runner, run.jobs[0].job_id, Conclusion.FAILURE)
    stage.forge.cancel(run.jobs[1].job_id)
    assert (run.state, run.conclusion) == (JobState.COMPLETED, Conclusion.FAILURE)


def test_a_restarted_sim_never_gives_an_id_again_and_keeps_those_of_repositories() -> None:
    first, later = Stage(), Stage(Clock(1_800_000_060.0))
    old, new = first.job(), later.job()
    assert new.job_id > old.job_id
    assert new.run.repo == old.run.repo
