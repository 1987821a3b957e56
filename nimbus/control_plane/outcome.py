"""What becomes of a machine request, and of its job, when its lease ends. Pure: decides, never writes.

Called by leases.py inside its transactions; every step is one of model/lease.py's table.
"""

from __future__ import annotations

from dataclasses import dataclass

from nimbus.model.job import JobState
from nimbus.model.lease import MachineEvent
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import MachineKind

_HOST_TROUBLE = frozenset({Ending.HOST_FAULT, Ending.FENCED, Ending.LOST})


@dataclass(frozen=True)
class Held:
    """What the decision needs to know of a leased machine request."""

    kind: MachineKind
    linked: bool  # a runner that took a job: it can never take another
    in_progress: bool  # and that job is still in progress, as GitHub last said
    attempts: int
    cancel_requested: bool


@dataclass(frozen=True)
class JobEffect:
    """What its end means for the job that it ran."""

    state: JobState
    conclusion: str | None = None


@dataclass(frozen=True)
class Verdict:
    """One step of the machine request and what follows for its job (None: nothing)."""

    event: MachineEvent
    job: JobEffect | None = None


def judge_silence(held: Held, max_attempts: int) -> Verdict:
    """The lease ran out, or the host itself says that it failed."""
    if held.cancel_requested:
        return Verdict(MachineEvent.CANCEL, _command_end(held, "cancelled"))
    if held.in_progress:
        # GitHub assigns no second runner: the job is lost, a new machine would wait for nothing
        return Verdict(MachineEvent.LOSE, JobEffect(JobState.LOST))
    if held.linked or held.attempts >= max_attempts:
        return Verdict(MachineEvent.FINISH_BAD, _command_end(held, "failure"))
    return Verdict(MachineEvent.EXPIRE, _command_again(held))


def judge_finish(held: Held, ending: Ending, max_attempts: int) -> Verdict:  # noqa: PLR0911 - a table, read top down
    """The holder reports an ending."""
    if ending is Ending.DONE:
        return Verdict(MachineEvent.FINISH_OK, _command_end(held, "success"))
    if held.cancel_requested:
        return Verdict(MachineEvent.CANCEL, _command_end(held, "cancelled"))
    if ending in _HOST_TROUBLE or ending is Ending.CANCELLED:  # nobody asked for it: the host gave up
        return judge_silence(held, max_attempts)
    if held.kind is MachineKind.COMMAND:
        conclusion = "timed_out" if ending is Ending.TIMED_OUT else "failure"
        return Verdict(MachineEvent.FINISH_BAD, _command_end(held, conclusion))
    if not held.linked:
        # the runner failed before it took a job: the demand stands, and minting asks whether it still does
        return judge_silence(held, max_attempts)
    if ending is Ending.FAILED or not held.in_progress:
        return Verdict(MachineEvent.FINISH_BAD)  # GitHub tells how the job itself ended
    return Verdict(MachineEvent.LOSE, JobEffect(JobState.LOST))


def _command_end(held: Held, conclusion: str) -> JobEffect | None:
    return JobEffect(JobState.COMPLETED, conclusion) if held.kind is MachineKind.COMMAND else None


def _command_again(held: Held) -> JobEffect | None:
    return JobEffect(JobState.QUEUED) if held.kind is MachineKind.COMMAND else None
