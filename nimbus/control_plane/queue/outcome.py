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
MAX_GRANTS = 20  # of one machine request, whatever its leases came to: no loop is endless
_CAUSES = {Ending.OUT_OF_MEMORY: "it ran out of memory"}  # where the holder gives none


@dataclass(frozen=True)
class Held:
    """What the decision needs to know of a leased machine request."""

    kind: MachineKind
    started: bool  # the guest said hello
    linked: bool  # a runner that took a job: it can never take another
    in_progress: bool  # and that job is still in progress, as GitHub last said
    grants: int  # this lease is one of them
    failures: int  # leases before this one that came to nothing by a host's fault
    cancel_requested: bool
    answered: bool = True  # its holder has renewed the lease: the grant was not lost on its way
    refused: bool = False  # GitHub gave it no runner: whatever its host says, that was none of its doing


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
    failed: bool = False  # counts against NIMBUS_JOB_MAX_ATTEMPTS
    gave_up: str | None = None  # why it is not tried again


def judge_silence(held: Held, max_attempts: int) -> Verdict:
    """Nobody speaks for the lease. That a grant was lost on its way is no host's fault."""
    return _again_or_over(held, max_attempts, failed=held.answered)


def judge_finish(held: Held, ending: Ending, max_attempts: int) -> Verdict:  # noqa: PLR0911 - a table, read top down
    """The holder reports an ending."""
    if ending is Ending.DONE:
        return Verdict(MachineEvent.FINISH_OK, _command_end(held, "success"))
    if held.cancel_requested:
        return Verdict(MachineEvent.CANCEL, _command_end(held, "cancelled"))
    if ending is Ending.CANCELLED:
        # Nobody asked for it: its agent leaves in good order. Before the guest said hello that tells nothing of the
        # job, so that no rolling restart can fail one; afterwards a guest could have had a hand in it.
        return _again_or_over(held, max_attempts, failed=held.started)
    if ending in _HOST_TROUBLE:
        return _again_or_over(held, max_attempts, failed=not held.refused)
    if held.kind is MachineKind.COMMAND:
        conclusion = "timed_out" if ending is Ending.TIMED_OUT else "failure"
        return Verdict(MachineEvent.FINISH_BAD, _command_end(held, conclusion))
    if not held.linked:
        # the runner failed before it took a job: the demand stands, and minting asks whether it still does
        return _again_or_over(held, max_attempts, failed=True)
    if ending is Ending.FAILED or not held.in_progress:
        return Verdict(MachineEvent.FINISH_BAD)  # GitHub tells how the job itself ended
    return Verdict(MachineEvent.LOSE, JobEffect(JobState.LOST))


def describe_cause(verdict: Verdict, ending: Ending | None, told: str) -> str | None:
    """Pure: what people read as the cause of a machine's end."""
    cause = told or (None if ending is None else _CAUSES.get(ending))
    if verdict.gave_up is None:
        return cause
    return verdict.gave_up if cause is None else f"{verdict.gave_up}: {cause}"


def _again_or_over(held: Held, max_attempts: int, *, failed: bool) -> Verdict:
    if held.cancel_requested:
        return Verdict(MachineEvent.CANCEL, _command_end(held, "cancelled"), failed)
    if held.in_progress:
        # GitHub assigns no second runner: the job is lost, a new machine would wait for nothing
        return Verdict(MachineEvent.LOSE, JobEffect(JobState.LOST), failed)
    if held.linked:
        return Verdict(MachineEvent.FINISH_BAD, None, failed)
    failures = held.failures + failed
    if failures >= max_attempts:
        why = "gave up after a host failed" if failures == 1 else f"gave up after {failures} hosts failed"
        return Verdict(MachineEvent.FINISH_BAD, _command_end(held, "failure"), failed, why)
    if held.grants >= MAX_GRANTS:
        why = f"gave up after {held.grants} leases that came to nothing"
        return Verdict(MachineEvent.FINISH_BAD, _command_end(held, "failure"), failed, why)
    return Verdict(MachineEvent.EXPIRE, _command_again(held), failed)


def _command_end(held: Held, conclusion: str) -> JobEffect | None:
    return JobEffect(JobState.COMPLETED, conclusion) if held.kind is MachineKind.COMMAND else None


def _command_again(held: Held) -> JobEffect | None:
    return JobEffect(JobState.QUEUED) if held.kind is MachineKind.COMMAND else None
