"""What becomes of a machine request: every verdict is a legal step, and no job is both lost and run again."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from nimbus.control_plane.queue.outcome import MAX_GRANTS, Held, JobEffect, describe_cause, judge_finish, judge_silence
from nimbus.model.job import JobState
from nimbus.model.lease import MachineEvent, MachineState, advance
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import MachineKind

_LINKS = [(False, False), (True, False), (True, True)]
_COMMANDS = [(MachineKind.COMMAND, False, False)]
_RUNNERS = [(MachineKind.RUNNER, linked, in_progress) for linked, in_progress in _LINKS]
EVERY_HELD = [
    Held(kind, started, linked, in_progress, grants, failures, cancel)
    for (kind, linked, in_progress), started, (grants, failures), cancel in product(
        _COMMANDS + _RUNNERS, (False, True), ((1, 0), (2, 1), (3, 2), (9, 0), (20, 1)), (False, True)
    )
]


def _held(**known: object) -> Held:
    fresh = Held(MachineKind.COMMAND, False, False, False, 1, 0, False)
    return replace(fresh, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("held", EVERY_HELD)
def test_every_verdict_is_a_legal_step_from_both_leased_states(held: Held) -> None:
    verdicts = [judge_silence(held, 3), *(judge_finish(held, ending, 3) for ending in Ending)]
    for verdict, state in product(verdicts, (MachineState.LEASED, MachineState.RUNNING)):
        assert advance(state, verdict.event) not in {MachineState.LEASED, MachineState.RUNNING}


@pytest.mark.parametrize("held", EVERY_HELD)
def test_work_that_runs_again_was_neither_cancelled_nor_taken_by_a_runner_nor_tried_too_often(held: Held) -> None:
    verdicts = [judge_silence(held, 3), *(judge_finish(held, ending, 3) for ending in Ending)]
    again = [verdict for verdict in verdicts if verdict.event is MachineEvent.EXPIRE]
    assert not again or not (held.cancel_requested or held.linked or held.failures >= 3 or held.grants >= MAX_GRANTS)


@pytest.mark.parametrize("held", EVERY_HELD)
def test_a_commands_job_ends_exactly_when_its_machine_does(held: Held) -> None:
    for ending in Ending:
        verdict = judge_finish(held, ending, 3)
        again = verdict.event is MachineEvent.EXPIRE
        told = None if verdict.job is None else verdict.job.state
        expected = {JobState.QUEUED} if again else {JobState.COMPLETED}
        assert held.kind is MachineKind.RUNNER or told in expected


def test_only_a_github_job_in_progress_can_be_lost() -> None:
    for held, ending in product(EVERY_HELD, Ending):
        for verdict in (judge_silence(held, 3), judge_finish(held, ending, 3)):
            lost = verdict.job is not None and verdict.job.state is JobState.LOST
            assert not lost or (held.kind is MachineKind.RUNNER and held.in_progress)


def test_a_runner_whose_job_has_completed_is_not_run_again_when_its_host_falls_silent() -> None:
    held = _held(kind=MachineKind.RUNNER, started=True, linked=True)
    assert judge_silence(held, 3).event is MachineEvent.FINISH_BAD
    assert judge_silence(held, 3).job is None


def test_an_agent_that_leaves_in_good_order_before_the_guest_spoke_costs_no_attempt() -> None:
    verdict = judge_finish(_held(failures=2, grants=9), Ending.CANCELLED, 3)
    assert (verdict.event, verdict.failed) == (MachineEvent.EXPIRE, False)


def test_a_machine_that_ran_and_was_stopped_by_nobodys_wish_costs_an_attempt() -> None:
    verdict = judge_finish(_held(failures=2, grants=3, started=True), Ending.CANCELLED, 3)
    assert (verdict.event, verdict.failed) == (MachineEvent.FINISH_BAD, True)


def test_good_order_is_no_endless_loop() -> None:
    verdict = judge_finish(_held(grants=MAX_GRANTS), Ending.CANCELLED, 3)
    assert verdict.event is MachineEvent.FINISH_BAD
    assert describe_cause(verdict, None, "") == "gave up after 20 leases that came to nothing"


@pytest.mark.parametrize(("most", "words"), [(1, "gave up after a host failed"), (4, "gave up after 4 hosts failed")])
def test_who_gives_up_says_how_many_hosts_failed_and_how_the_last_one_did(most: int, words: str) -> None:
    verdict = judge_finish(_held(failures=most - 1, grants=most), Ending.HOST_FAULT, most)
    assert verdict.event is MachineEvent.FINISH_BAD
    assert describe_cause(verdict, Ending.HOST_FAULT, "no tap") == f"{words}: no tap"


def test_a_command_that_ran_out_of_memory_fails_at_once_and_says_so() -> None:
    verdict = judge_finish(_held(started=True), Ending.OUT_OF_MEMORY, 3)
    assert (verdict.event, verdict.job) == (MachineEvent.FINISH_BAD, JobEffect(JobState.COMPLETED, "failure"))
    assert describe_cause(verdict, Ending.OUT_OF_MEMORY, "") == "it ran out of memory"
    assert describe_cause(verdict, Ending.OUT_OF_MEMORY, "the host killed it") == "the host killed it"
