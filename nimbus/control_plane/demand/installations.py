"""Where the App is installed, and on which repositories: kept from webhooks, and listed now and then.

The list makes polling complete by itself: an installation or a repository that no webhook ever told of is found by
it, and one that is gone is left out. Which installation serves an account is asked here, whoever needs to know:
webhooks.py keeps what its events say, demand.py and runners.py ask, forge.py sweeps. Decides nothing about jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from nimbus.control_plane.duties import Duty
from nimbus.control_plane.github.client import GithubClient
from nimbus.control_plane.orgs.problems import clear_problem, note_problem, retry_now
from nimbus.control_plane.services import Services
from nimbus.model.errors import NotFound
from nimbus.model.forge import PASSING, ForgeTrouble, Problem, ProblemKind
from nimbus.runtime.postgres import Transaction, load_queries
from nimbus.wire.githubrest import InstallationSeen, RepoSeen

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "installations.sql")

NAME = "installations"
REPOS_AT_ONCE = 500  # in one transaction: an organisation may have ten thousand
RETRY_S = 3600.0  # the list tells sooner that it is over
SUSPENDED = Problem(ProblemKind.SUSPENDED, "it is listed as suspended", RETRY_S)
REMOVED = Problem(ProblemKind.NOT_INSTALLED, "it is not listed any more", RETRY_S)


@dataclass(frozen=True)
class InstallationRules:
    """How often all of them are listed. An interval of 0: never, and polling knows what webhooks told of."""

    interval_s: float = 900.0


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


async def see_installation(transaction: Transaction, installation_id: int, org_id: int) -> bool:
    """An event of another kind named it: it exists, and stays as it is known to stand. Whether it is the org's."""
    return bool(await transaction.fetchval(_SQL["see_installation"], installation_id, org_id))


async def serving_installation(transaction: Transaction, org_id: int, default: int | None) -> int | None:
    """The installation by which an org is served; the default where none of its own is known."""
    found: int | None = await transaction.fetchval(_SQL["serving_installation"], org_id, default)
    return found


async def leave_removed(transaction: Transaction, org_id: int) -> None:
    """What an org's removed installations were refused is forgotten, and their machines are served, by a new one."""
    await transaction.execute(_SQL["leave_removed"], org_id)


async def list_all(services: Services, github: GithubClient, duty: Duty) -> int:
    """One round: every installation and its repositories, as GitHub lists them; how many repositories.

    An installation that refuses keeps what was known of it, and does not keep the next one back.
    """
    await duty.keep()
    asked_at: datetime = await services.database.run(_now)
    listed = await github.list_installations()
    await services.database.run(keep_listed, listed, asked_at)
    repos = 0
    for seen in listed:
        if seen.suspended:
            continue
        await duty.keep()
        try:
            reached = await github.list_repositories(seen.installation_id)
        except (ForgeTrouble, NotFound) as error:
            await _note_trouble(services, seen, error)
            continue
        await _keep_reached(services, seen, reached)
        repos += len(reached)
    log.info("installations.listed", installations=len(listed), repos=repos)
    return repos


async def _now(transaction: Transaction) -> datetime:
    now: datetime = await transaction.fetchval(_SQL["now"])
    return now


async def keep_listed(transaction: Transaction, listed: Sequence[InstallationSeen], asked_at: datetime) -> None:
    """What a webhook said since GitHub was asked is newer than the list, and stays."""
    org_ids = set()
    for seen in listed:
        org_id = await keep_account(transaction, seen.account_id, seen.login)
        org_ids.add(org_id)
        served = await transaction.fetchval(_SQL["served"], seen.installation_id)
        kept = await transaction.fetchval(
            _SQL["keep_installation"], seen.installation_id, org_id, seen.suspended, False, asked_at
        )
        if kept is not None and seen.suspended:
            await note_problem(transaction, seen.installation_id, None, SUSPENDED)
        elif kept is not None and served is False:
            await retry_now(transaction, seen.installation_id)
    for row in await transaction.fetch(_SQL["remove_unlisted"], asked_at, [seen.installation_id for seen in listed]):
        await note_problem(transaction, row["installation_id"], None, REMOVED)
    for org_id in sorted(org_ids):
        await leave_removed(transaction, org_id)


async def _note_trouble(services: Services, seen: InstallationSeen, error: ForgeTrouble | NotFound) -> None:
    log.warning("installations.not_listed", installation=seen.installation_id, owner=seen.login, reason=str(error))
    # what passes by itself is told by the calls for runners, to which more is allowed
    if isinstance(error, ForgeTrouble) and error.problem.kind not in PASSING:
        await services.database.run(note_problem, seen.installation_id, None, error.problem)


async def _keep_reached(services: Services, seen: InstallationSeen, reached: Sequence[RepoSeen]) -> None:
    repos = list({each.repo.forge_id: each for each in reached}.values())  # one may have moved to the next page
    for first in range(0, len(repos), REPOS_AT_ONCE):
        await services.database.run(_keep_repos, seen, repos[first : first + REPOS_AT_ONCE])
    await services.database.run(_finish, seen.installation_id, [each.repo.forge_id for each in repos])


async def _keep_repos(transaction: Transaction, seen: InstallationSeen, repos: Sequence[RepoSeen]) -> None:
    org_id = await keep_account(transaction, seen.account_id, seen.login)
    await transaction.execute(
        _SQL["keep_repos"], org_id, seen.installation_id,
        [each.repo.forge_id for each in repos],
        [each.repo.name for each in repos],
        [each.repo.private for each in repos],
        [each.archived for each in repos],
        [each.pushed_at for each in repos],
    )  # fmt: skip


async def _finish(transaction: Transaction, installation_id: int, reached: list[int]) -> None:
    await transaction.execute(_SQL["leave_unlisted"], installation_id, reached)
    await transaction.execute(_SQL["note_listed"], installation_id)
    await clear_problem(transaction, installation_id, None)
