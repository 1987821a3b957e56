"""Demand: `jobs` mirrors what GitHub tells, and machine requests follow it. Step 2 of the straight line.

A runner is not bound to a job, so demand is counted for each label set: as many machines without a job as
there are queued jobs. Too few: more are queued. Too many: those that GitHub does not know yet are cancelled
here, registered idle ones by runners.py, after GitHub let them go. Events come late, twice and in any order
(model/job.py ranks them). Called by webhooks.py and its own sweeper; never talks to GitHub, never rings.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

import structlog
import trio

from nimbus.control_plane.machines import MachineRequest, cancel_machine, queue_machine
from nimbus.control_plane.services import MACHINES, Services
from nimbus.model.errors import Refused, Unavailable
from nimbus.model.job import JobState, merge
from nimbus.model.vm import Shape
from nimbus.runtime.postgres import Transaction, load_queries
from nimbus.wire.github import WorkflowJobEvent
from nimbus.wire.leaseapi import MachineKind

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "demand.sql")

SWEEP_S = 15.0
JOBLESS_PAUSE_S = 60.0  # after a machine of a label set ended without a job, before the sweeper makes another


class RunnerLevel(enum.StrEnum):
    """Where runners register. At repository level, a repository's job lands on no other's machine."""

    REPO = "repo"
    ORG = "org"


@dataclass(frozen=True)
class DemandRules:
    """Which jobs are ours and what machine they get."""

    labels: frozenset[str] = frozenset({"nimbus"})  # lower case; a job that carries none of them is ignored
    image: str = "base"
    shape: Shape = field(default_factory=Shape)
    level: RunnerLevel = RunnerLevel.REPO
    default_installation_id: int | None = None

    def owns(self, event: WorkflowJobEvent) -> bool:
        return not self.labels.isdisjoint(event.labels)


@dataclass(frozen=True)
class LabelSet:
    """One kind of demand. `repo_id` None stands for the whole org."""

    org_id: int
    repo_id: int | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """What an event changed; `queued` machines are worth a ring."""

    job_id: int
    state: JobState
    queued: int
    cancelled: int


async def record_event(
    transaction: Transaction, event: WorkflowJobEvent, told: JobState, received_at: datetime, rules: DemandRules
) -> Recorded:
    """Take one `workflow_job` event in: the job's row, its machine's link, the demand of its label set."""
    repo = event.repo
    org_id: int = await transaction.fetchval(_SQL["keep_org"], repo.owner_id, repo.owner_login)
    repo_id: int = await transaction.fetchval(_SQL["keep_repo"], org_id, repo.forge_id, repo.name, repo.private)
    job_id, state = await _keep_job(transaction, event, told, org_id, repo_id)
    touched = {LabelSet(org_id, _level(repo_id, rules), event.labels)}
    if event.runner_name is not None:
        linked = await transaction.fetchrow(_SQL["link_machine"], org_id, event.runner_name, job_id)
        if linked is not None:
            # the machine may have been made for another label set: that one lacks a machine now
            touched.add(LabelSet(org_id, linked["repo_id"], tuple(linked["labels"])))
    installation_id = event.installation_id or rules.default_installation_id
    queued = cancelled = 0
    for label_set in sorted(touched, key=lambda each: each.labels):
        more, fewer = await balance(transaction, label_set, rules, installation_id, received_at)
        queued, cancelled = queued + more, cancelled + fewer
    return Recorded(job_id, state, queued, cancelled)


async def _keep_job(
    transaction: Transaction, event: WorkflowJobEvent, told: JobState, org_id: int, repo_id: int
) -> tuple[int, JobState]:
    known = await transaction.fetchrow(_SQL["lock_job"], event.forge_job_id)
    picked_up = told in {JobState.IN_PROGRESS, JobState.COMPLETED} and event.runner_name is not None
    started_at = event.started_at if picked_up else None  # of a queued job it is only the time of creation
    if known is None:
        job_id: int = await transaction.fetchval(
            _SQL["insert_job"], org_id, repo_id, event.forge_job_id, event.run_id, event.run_attempt,
            event.name, event.workflow_name, list(event.labels), event.html_url, told, event.conclusion,
            event.runner_name, event.created_at, started_at, event.completed_at,
        )  # fmt: skip
        return job_id, told
    if known["org_id"] != org_id:
        raise Refused(f"GitHub's job {event.forge_job_id} belongs to another org here: it is left alone")
    state = merge(JobState(known["state"]), told)
    await transaction.execute(
        _SQL["update_job"], known["job_id"], state, event.conclusion, event.runner_name,
        event.created_at, started_at, event.completed_at,
    )  # fmt: skip
    return known["job_id"], state


def _level(repo_id: int | None, rules: DemandRules) -> int | None:
    return repo_id if rules.level is RunnerLevel.REPO else None


async def balance(
    transaction: Transaction,
    label_set: LabelSet,
    rules: DemandRules,
    installation_id: int | None,
    webhook_at: datetime | None,
) -> tuple[int, int]:
    """Queue what a label set lacks, cancel what it has too much; how many of each."""
    key = (label_set.org_id, label_set.repo_id, list(label_set.labels))
    count = await transaction.fetchrow(_SQL["count_demand"], *key)
    lacking = 0 if count is None else count["wanted"] - count["present"]
    for _ in range(lacking):
        request = MachineRequest(
            org_id=label_set.org_id,
            kind=MachineKind.RUNNER,
            image=rules.image,
            shape=rules.shape,
            labels=label_set.labels,
            repo_id=label_set.repo_id,
            webhook_at=webhook_at,
            installation_id=installation_id,
        )
        await queue_machine(transaction, request)
    surplus = await transaction.fetch(_SQL["surplus_unregistered"], *key, max(0, -lacking))
    for row in surplus:
        await cancel_machine(transaction, row["machine_id"], "no queued job needs it any more")
    return max(0, lacking), len(surplus)


async def lock_org(transaction: Transaction, org_id: int | None) -> None:
    """Wait for whoever else counts this org's demand, until the commit."""
    await transaction.execute(_SQL["lock_org"], org_id)


async def is_needed(transaction: Transaction, label_set: LabelSet, others: int) -> bool:
    """Whether queued jobs of the set outnumber the `others` that are registered and wait for one."""
    key = (label_set.org_id, label_set.repo_id, list(label_set.labels))
    count = await transaction.fetchrow(_SQL["count_demand"], *key)
    return count is not None and count["wanted"] > others


async def meet_demand(services: Services, rules: DemandRules) -> int:
    """Queue machines for queued jobs that have none: one failed too often, or an event was lost. How many."""
    queued = await services.database.run(_meet, rules)
    if queued:
        log.info("demand.met_late", machines=queued)
        await services.bell.ring(MACHINES)
    return queued


async def _meet(transaction: Transaction, rules: DemandRules) -> int:
    rows = await transaction.fetch(_SQL["unmet_demand"], JOBLESS_PAUSE_S)
    sets = {LabelSet(row["org_id"], _level(row["repo_id"], rules), tuple(row["labels"])) for row in rows}
    queued = 0
    # in one order everywhere, so that two sweepers never wait for each other
    for label_set in sorted(sets, key=lambda each: (each.org_id, each.repo_id or 0, each.labels)):
        await lock_org(transaction, label_set.org_id)
        known = await transaction.fetchval(_SQL["known_installation"], label_set.org_id)
        more, _ = await balance(transaction, label_set, rules, known or rules.default_installation_id, None)
        queued += more
    return queued


async def sweep_demand(services: Services, rules: DemandRules) -> None:
    """Meet demand until cancelled; a database that is away is tried again, anything else is a bug and escapes."""
    while True:
        try:
            await meet_demand(services, rules)
        except Unavailable as error:
            log.warning("demand.postponed", reason=str(error))
        await trio.sleep(SWEEP_S)
