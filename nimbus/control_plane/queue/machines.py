"""Machine requests as rows: queue one, cancel one. asyncio functions, to be part of a caller's transaction.

Never grants or ends a lease (leases.py does). Called by jobs.py and demand.py; the caller rings the bell after commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from nimbus.model.labels import Arch
from nimbus.model.lease import TERMINAL, MachineEvent, MachineState, advance
from nimbus.model.vm import Command, Shape
from nimbus.runtime.postgres import Transaction, load_queries
from nimbus.wire.leaseapi import MachineKind
from nimbus.wire.vmjson import render_command, render_shape

_SQL = load_queries("nimbus.control_plane", "queries", "machines.sql")
ASK_CANCEL = "ask_cancel"  # an event that is no step: the holder hears of it with its next renewal


@dataclass(frozen=True)
class MachineRequest:
    """One wish for a machine. A command has its job from the start, a runner gets one by GitHub's in_progress."""

    org_id: int
    kind: MachineKind
    image: str
    shape: Shape = field(default_factory=Shape)
    labels: tuple[str, ...] = ()  # what its runner carries
    host_labels: tuple[str, ...] = ()  # what a host must offer
    arch: Arch = Arch.X64
    alias: str | None = None  # of its org, whose own cap counts it
    job_id: int | None = None
    repo_id: int | None = None
    command: Command | None = field(default=None, repr=False)
    priority: int = 0  # within its org
    aging_s: float = 60.0  # of waiting that are worth one step of it
    webhook_at: datetime | None = None
    installation_id: int | None = None


def normalise_labels(labels: Iterable[str]) -> list[str]:
    """A label set in the one form the database compares: lower case, sorted, without doubles."""
    return sorted({label.lower() for label in labels})


async def queue_machine(transaction: Transaction, request: MachineRequest) -> int:
    """A new machine request, queued; its machine_id."""
    machine_id: int = await transaction.fetchval(
        _SQL["queue_machine"],
        request.org_id,
        request.kind,
        request.job_id,
        request.repo_id,
        normalise_labels(request.labels),
        render_shape(request.shape),
        request.image,
        None if request.command is None else render_command(request.command),
        request.webhook_at,
        request.installation_id,
        normalise_labels(request.host_labels),
        request.arch,
        request.alias,
        request.priority,
        request.priority * request.aging_s,
    )
    return machine_id


async def cancel_machine(
    transaction: Transaction, machine_id: int, cause: str, teller: str | None = None
) -> MachineState | None:
    """Cancel a queued machine request, or ask the holder of a leased one to stop; its state then, None if unknown.

    `teller` None: demand itself wants it no more.
    """
    row = await transaction.fetchrow(_SQL["lock_machine"], machine_id)
    if row is None:
        return None
    state = MachineState(row["state"])
    if state in TERMINAL:
        return state
    if state is MachineState.QUEUED:
        await transaction.execute(_SQL["cancel_queued"], machine_id, cause)
        state = advance(state, MachineEvent.CANCEL)
        told: tuple[object, ...] = (MachineEvent.CANCEL, cause, row["fence"], None, teller)
    elif row["cancel_requested"]:
        return state
    else:
        await transaction.execute(_SQL["request_cancel"], machine_id)
        told = (ASK_CANCEL, cause, row["fence"], row["agent_id"], teller)
    await transaction.execute(_SQL["note_cancel"], machine_id, row["state"], state, *told)
    return state
