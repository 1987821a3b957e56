"""What becomes of a machine request: every verdict is a legal step, and no job is both lost and run again."""

from __future__ import annotations

from itertools import product

import pytest

from nimbus.control_plane.outcome import Held, judge_finish, judge_silence
from nimbus.model.job import JobState
from nimbus.model.lease import MachineEvent, MachineState, advance
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import MachineKind

_LINKS = [(False, False), (True, False), (True, True)]
EVERY_HELD = [
    Held(MachineKind.COMMAND, False, False, attempts, cancel) for attempts, cancel in product((1, 2, 3), (False, True))
] + [
    Held(MachineKind.RUNNER, linked, in_progress, attempts, cancel)
    for (linked, in_progress), attempts, cancel in product(_LINKS, (1, 2, 3), (False, True))
]


@pytest.mark.parametrize("held", EVERY_HELD)
def test_every_verdict_is_a_legal_step_from_both_leased_states(held: Held) -> None:
    verdicts = [judge_silence(held, 3), *(judge_finish(held, ending, 3) for ending in Ending)]
    for verdict, state in product(verdicts, (MachineState.LEASED, MachineState.RUNNING)):
        assert advance(state, verdict.event) not in {MachineState.LEASED, MachineState.RUNNING}


@pytest.mark.parametrize("held", EVERY_HELD)
def test_work_that_runs_again_was_neither_cancelled_nor_taken_by_a_runner_nor_tried_too_often(held: Held) -> None:
    verdicts = [judge_silence(held, 3), *(judge_finish(held, ending, 3) for ending in Ending)]
    again = [verdict for verdict in verdicts if verdict.event is MachineEvent.EXPIRE]
    assert not again or not (held.cancel_requested or held.linked or held.attempts >= 3)


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
    held = Held(MachineKind.RUNNER, linked=True, in_progress=False, attempts=1, cancel_requested=False)
    assert judge_silence(held, 3).event is MachineEvent.FINISH_BAD
    assert judge_silence(held, 3).job is None
