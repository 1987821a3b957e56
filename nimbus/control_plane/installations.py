"""Where the App is installed, and on which repositories: kept from webhooks, and listed now and then.

The list makes polling complete by itself: an installation or a repository that no webhook ever told of is found by
it, and one that is gone is left out. Which installation serves an account is asked here, whoever needs to know:
webhooks.py keeps what its events say, demand.py and runners.py ask, forge.py sweeps. Decides nothing about jobs.
"""

from __future__ import annotations

from nimbus.runtime.postgres import Transaction, load_queries

_SQL = load_queries("nimbus.control_plane", "queries", "installations.sql")


async def keep_account(transaction: Transaction, account_id: int, login: str) -> int:
    """The org of a forge's account, made at its first mention."""
    org_id: int = await transaction.fetchval(_SQL["keep_account"], account_id, login)
    return org_id


async def keep_installation(
    transaction: Transaction, installation_id: int, account_id: int, login: str, suspended: bool, removed: bool
) -> int:
    """What an `installation` event says of it; its org."""
    org_id = await keep_account(transaction, account_id, login)
    await transaction.execute(_SQL["keep_installation"], installation_id, org_id, suspended, removed, None)
    return org_id


async def see_installation(transaction: Transaction, installation_id: int, org_id: int) -> None:
    """An event of another kind named it: it exists, and whether it is suspended stays as it was known."""
    await transaction.execute(_SQL["see_installation"], installation_id, org_id)


async def serving_installation(transaction: Transaction, org_id: int, default: int | None) -> int | None:
    """The installation by which an org is served; the default where none of its own is known."""
    found: int | None = await transaction.fetchval(_SQL["serving_installation"], org_id, default)
    return found
