"""Rounds: what our own tables need now and then is done by one process at a time, and once in an interval.

A process that finds a round due takes a lock in the transaction that does the work, and notes there that it is done.
Who does not get the lock goes on without waiting. The lock ends with its transaction, so a process that dies in the
middle leaves nothing: another one's next look finds the round due. What costs calls to GitHub takes longer than a
transaction may last: that is a duty (duties.py). Called by the sweepers of silence.py, admission.py and inbox.py.
"""

from __future__ import annotations

from nimbus.runtime.postgres import Transaction, load_queries

_SQL = load_queries("nimbus.control_plane", "queries", "rounds.sql")
# Of an interval: a process that looks once in each must not come a moment too early for its own round before.
_EARLY = 0.9


async def begin_round(transaction: Transaction, name: str, every_s: float) -> bool:
    """Whether this transaction does the round: nobody else does it now, and it was not done in this interval.

    A round that takes several transactions begins in the first; who follows does so an interval later.
    """
    return await transaction.fetchval(_SQL["begin_round"], name, every_s * _EARLY) is not None
