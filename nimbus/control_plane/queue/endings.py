"""The end of a lease as it is written: the machine's row, its one event, its job. asyncio functions.

Never decides (outcome.py does) and never locks: the caller holds the row. Called by leases.py (the holder tells)
and silence.py (nobody does).
"""

from __future__ import annotations

import enum

from nimbus.control_plane.queue.outcome import Held, Verdict, describe_cause
from nimbus.model.job import JobState
from nimbus.model.lease import MachineState, advance
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.leaseapi import FinishRequest, MachineKind
from nimbus.wire.vmjson import Json, render_attestation

_SQL = load_queries("nimbus.control_plane", "queries", "endings.sql")


class Teller(enum.StrEnum):
    """Who made a step of a machine request known: it stands in every event."""

    AGENT = "agent"  # the holder itself
    CLOCK = "clock"  # its deadline passed
    ENROLMENT = "enrolment"  # its agent, started anew, no longer had it
    USER = "user"  # a person or program, through our API


def describe_held(row: Row) -> Held:
    """What the verdict needs of a locked row that is joined with its job."""
    kind = MachineKind(row["kind"])
    return Held(
        kind=kind,
        started=row["state"] == MachineState.RUNNING,
        linked=kind is MachineKind.RUNNER and row["job_id"] is not None,
        in_progress=is_in_progress(row),
        grants=row["attempts"],
        failures=row["failures"],
        cancel_requested=row["cancel_requested"],
        answered=row["answered"],
    )


def is_in_progress(row: Row) -> bool:
    """Whether a runner's job is in progress, as GitHub last said."""
    return bool(row["kind"] == MachineKind.RUNNER and row["job_state"] == JobState.IN_PROGRESS)


async def end_lease(
    transaction: Transaction, row: Row, verdict: Verdict, told: FinishRequest | str, teller: Teller
) -> MachineState:
    """Write one verdict; `told` is the holder's report, or why there is none. The machine request's next state."""
    target = advance(MachineState(row["state"]), verdict.event)
    report: tuple[object, ...] = (None, None, None)
    phases: dict[str, float] | None = None
    attested: Json | None = None
    if isinstance(told, str):
        cause = describe_cause(verdict, None, told)
    else:
        cause = describe_cause(verdict, told.ending, told.cause)
        report = (told.ending, told.exit_code, told.signal)
        phases = dict(told.phases_ms)
        attested = None if told.attestation is None else render_attestation(told.attestation)
    silent = teller is not Teller.AGENT
    job: tuple[object, ...] = (None, None, None)
    if verdict.job is not None:
        job = (verdict.job.state, verdict.job.conclusion, None if verdict.job.conclusion == "success" else cause)
    ending = (*report, cause, phases, silent, int(verdict.failed), attested)
    await transaction.execute(_SQL["end_lease"], row["machine_id"], target, *ending, verdict.event, *job, teller)
    return target
