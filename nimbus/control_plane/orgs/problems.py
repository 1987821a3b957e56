"""What GitHub refuses us, kept for its installation or repository until a call succeeds: who must act, and since when.

Never calls GitHub and decides nothing about machines: the grant leaves out those that could not be registered, and
waiting.py says why. Called wherever the client is (runners.py, registrations.py, roster.py, polling.py, redelivery.py)
and by whoever hears that an owner acted.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import structlog

from nimbus.control_plane.services import Services
from nimbus.model.errors import Unavailable
from nimbus.model.forge import PASSING, Problem, ProblemKind, explain
from nimbus.runtime.postgres import Transaction, load_queries

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "problems.sql")

RETRY_LEAST_S, RETRY_MOST_S = 1.0, 7200.0  # GitHub's hourly limits begin anew within one hour
STALE_S = 7 * 86_400.0  # without a single call that would have told of it again
SAID_CHARS = 300
_WHOLE = PASSING | {ProblemKind.SUSPENDED, ProblemKind.IP_ALLOW_LIST, ProblemKind.APP_KEY}
_WHOEVER_ASKS = _WHOLE | {ProblemKind.NOT_INSTALLED}


class Task(enum.StrEnum):
    """What a problem keeps us from. A machine waits for nothing that only keeps us from reading."""

    ANY = "any"
    REGISTER = "register"
    READ = "read"


class Blocked(Unavailable):
    """A runner cannot be registered before `retry_after_s` have passed; the message names who must act."""


@dataclass(frozen=True)
class Place:
    """Where a call to GitHub was meant to work: an installation on an owner, or one of its repositories."""

    installation_id: int
    owner: str
    repo: str | None

    def block(self, problem: Problem) -> Blocked:
        """The problem as whoever waits for it hears it."""
        sentence = explain(problem.kind, self.owner, None if meets_every_call(problem) else self.repo)
        return Blocked(f"{sentence} (GitHub says: {problem.said})", problem.retry_after_s)


def meets_every_call(problem: Problem) -> bool:
    """Pure: whether it is the whole installation's, whatever was asked for."""
    return problem.kind in _WHOLE


async def note_problem(
    transaction: Transaction,
    installation_id: int,
    repo_name: str | None,
    problem: Problem,
    *,
    task: Task = Task.READ,
) -> None:
    """Keep a refusal. Those that meet every call of the installation are kept for all of it."""
    if problem.ours and task is not Task.REGISTER:
        return  # a read that makes room for registrations must not keep them waiting
    scope = "" if repo_name is None or meets_every_call(problem) else repo_name
    kept_for = Task.ANY if problem.kind in _WHOEVER_ASKS else task
    retry_after_s = min(max(problem.retry_after_s, RETRY_LEAST_S), RETRY_MOST_S)
    await transaction.execute(
        _SQL["note"], installation_id, scope, kept_for, problem.kind, problem.said[:SAID_CHARS], retry_after_s
    )


async def clear_problem(
    transaction: Transaction, installation_id: int, repo_name: str | None, *, task: Task = Task.READ
) -> None:
    """A call succeeded: neither its place nor the whole installation has this task's problem any more."""
    await transaction.execute(_SQL["clear"], installation_id, repo_name or "", task)


async def retry_now(transaction: Transaction, installation_id: int) -> None:
    """An owner acted: whatever was refused is tried again at once."""
    await transaction.execute(_SQL["retry_now"], installation_id)


async def check_blocked(transaction: Transaction, place: Place) -> None:
    """Raises Blocked where a runner was refused there a while ago and it is too early to ask again."""
    row = await transaction.fetchrow(_SQL["blocking"], place.installation_id, place.repo or "")
    if row is not None:
        raise place.block(Problem(ProblemKind(row["kind"]), row["said"], max(row["retry_after_s"], 0.0)))


async def keep_problem(services: Services, place: Place, problem: Problem) -> None:
    """Note what was met while runners were registered, looked for or undone, in a transaction of its own."""
    log.warning("forge.problem", installation=place.installation_id, repo=place.repo, kind=str(problem.kind))
    await services.database.run(note_problem, place.installation_id, place.repo, problem, task=Task.REGISTER)


async def end_problem(services: Services, place: Place, task: Task) -> None:
    """Clear it in a transaction of its own."""
    await services.database.run(clear_problem, place.installation_id, place.repo, task=task)


async def forget_stale(transaction: Transaction) -> None:
    await transaction.execute(_SQL["forget_stale"], STALE_S)


async def count_problems(services: Services) -> None:
    """Bring the metric up to date."""
    gauge = services.metrics.forge_problems
    counts = await services.database.run(_count)
    for kind in ProblemKind:
        gauge.labels(kind).set(counts.get(kind, 0))


async def _count(transaction: Transaction) -> dict[str, int]:
    return {row["kind"]: row["problems"] for row in await transaction.fetch(_SQL["count"])}
