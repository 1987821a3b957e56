"""What GitHub's `installation` webhooks change: where the App stands with an account, and which refusals may be over.

Late and repeated events are harmless: each says how things stand, and the listing of all installations corrects what
a lost one left wrong. Called by inbox.py, inside the transaction that settles the delivery.
"""

from __future__ import annotations

from nimbus.control_plane.demand.installations import keep_installation, leave_removed
from nimbus.control_plane.orgs.problems import Task, clear_problem, note_problem, retry_now
from nimbus.model.forge import Problem, ProblemKind
from nimbus.runtime.postgres import Transaction
from nimbus.wire.installation import InstallationEvent

RETRY_S = 3600.0  # GitHub tells when it is over; this is for the case that its word is lost
_SUSPENDED = Problem(ProblemKind.SUSPENDED, "its webhook says that it was suspended", RETRY_S)
_REMOVED = Problem(ProblemKind.NOT_INSTALLED, "its webhook says that the App was removed", RETRY_S)


async def take_installation(transaction: Transaction, event: InstallationEvent) -> None:
    """Keep what the event says of its installation."""
    org_id = await keep_installation(
        transaction, event.installation_id, event.account_id, event.login, event.suspended, event.removed
    )
    if event.removed or event.suspended:
        await note_problem(transaction, event.installation_id, None, _REMOVED if event.removed else _SUSPENDED)
        await leave_removed(transaction, org_id)  # the event of the new one may have come first
        return
    if event.back:
        for task in (Task.REGISTER, Task.READ):
            await clear_problem(transaction, event.installation_id, None, task=task)
    # an owner acted: a permission, a repository more; whether it was the one that lacked, the next call finds out
    await retry_now(transaction, event.installation_id)
    await leave_removed(transaction, org_id)
