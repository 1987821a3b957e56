"""Demand: `jobs` mirrors what GitHub tells, and machine requests follow it. Step 2 of the straight line.

A runner is not bound to a job, so demand is counted for each label set: as many machines without a job as
there are queued jobs. Too few: more are queued. Too many: those that GitHub does not know yet are cancelled
here, registered idle ones by runners.py, after GitHub let them go. Events come late, twice and in any order
(model/job.py ranks them), by webhook or by repair. A new job asks for nothing until its org's budget had room for it
(admission.py). Called by inbox.py, polling.py, orgs.py and admission.py; never talks to GitHub.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nimbus.control_plane.demand.installations import keep_account, see_installation, serving_installation
from nimbus.control_plane.orgs.aliases import judge, load_aliases, refusal_of
from nimbus.control_plane.queue.machines import MachineRequest, cancel_machine, queue_machine
from nimbus.model.errors import Refused
from nimbus.model.job import REPAIRS, JobState, Learned, merge
from nimbus.model.labels import LabelRules, Wanted, is_too_long, judge_labels, may_own
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.github import WorkflowJobEvent
from nimbus.wire.leaseapi import MachineKind
from nimbus.wire.vmjson import render_shape

_SQL = load_queries("nimbus.control_plane", "queries", "demand.sql")

STOLEN_LIMIT = 3
_NOT_BEGUN = frozenset({JobState.WAITING, JobState.QUEUED})
GIVEN_UP_AFTER = timedelta(days=1)  # GitHub fails a job that was queued for so long


class RunnerLevel(enum.StrEnum):
    """Where runners register. At repository level, a repository's job lands on no other's machine."""

    REPO = "repo"
    ORG = "org"


@dataclass(frozen=True)
class DemandRules:
    """Which jobs are ours and what machine they get."""

    labels: LabelRules = field(default_factory=LabelRules)
    level: RunnerLevel = RunnerLevel.REPO
    default_installation_id: int | None = None
    sweep_s: float = 15.0
    pause_s: float = 60.0  # after a machine of a label set ended without a job, before the sweeper makes another
    untold_s: float = 330.0  # so long after a runner ended a repair may still tell which job it served
    aging_s: float = 60.0  # of waiting that are worth one step of priority
    stolen_limit: int = STOLEN_LIMIT  # runners that others may take from a label set, for each of its jobs, in an hour

    def owns(self, event: WorkflowJobEvent) -> bool:
        """By its labels alone: an org's aliases and runners that were taken are for `record_event` to know."""
        return may_own(event.labels, self.labels) and not is_too_long(event.labels)


@dataclass(frozen=True)
class LabelSet:
    """One kind of demand. `repo_id` None stands for the whole org."""

    org_id: int
    repo_id: int | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """What an event changed; `queued` machines are worth a ring. `drift`: the repair without which we'd not know.

    `asks`: a job is kept that may be admitted now.
    """

    org_id: int
    job_id: int
    state: JobState
    queued: int
    cancelled: int
    drift: Learned | None = None
    asks: bool = False
    installation_id: int | None = None
    webhook_at: datetime | None = None


@dataclass(frozen=True)
class _Told:
    """One event, and when and how it came."""

    event: WorkflowJobEvent
    state: JobState
    received_at: datetime
    learned: Learned

    @property
    def queued_at(self) -> datetime:
        """Since when it waits for a runner: GitHub tells only when it was made, and it may have stood at a gate."""
        made_at = self.event.created_at or self.received_at
        late = self.state is JobState.QUEUED and self.received_at - made_at > GIVEN_UP_AFTER
        return self.received_at if late else made_at


@dataclass(frozen=True)
class _Step:
    """What an event did to its job. `kept`: it is queued and not admitted yet; `unpaid`: it began before it was."""

    job_id: int
    state: JobState
    moved: bool
    kept: bool
    unpaid: bool


async def record_event(
    transaction: Transaction,
    event: WorkflowJobEvent,
    told: JobState,
    received_at: datetime,
    rules: DemandRules,
    learned: Learned = Learned.WEBHOOK,
) -> Recorded | None:
    """Take one `workflow_job` event in: the job's row, its machine's link, the demand of its label set.

    None where the job is not ours: neither by its labels, nor by an alias, nor because it took one of our runners.
    """
    repo = event.repo
    if not rules.owns(event) and not await _is_known(transaction, event):
        return None
    org_id = await keep_account(transaction, repo.owner_id, repo.owner_login)  # also the lock under which we count
    installation_id = event.installation_id
    if installation_id is not None and not await see_installation(transaction, installation_id, org_id):
        installation_id = None  # another org's: a runner that is minted through it would be that one's
    repo_id: int = await transaction.fetchval(
        _SQL["keep_repo"], org_id, repo.forge_id, repo.name, repo.private, installation_id
    )
    step = await _keep_job(transaction, _Told(event, told, received_at, learned), (org_id, repo_id), rules)
    touched = {level_of(org_id, repo_id, event.labels, rules)}
    asks = step.kept and step.moved
    if event.runner_name is not None:
        linked = await transaction.fetchrow(
            _SQL["link_machine"], org_id, event.runner_name, step.job_id, list(event.labels), repo_id
        )
        if linked is not None:
            # the machine may have been made for another label set: that one lacks a machine now
            touched.add(LabelSet(org_id, linked["repo_id"], tuple(linked["labels"])))
            if step.unpaid:  # it stands in for the job that the machine was made for: that one is to be admitted anew
                asks = await _take_back(transaction, org_id, linked) or asks
    queued = cancelled = 0
    for label_set in sorted(touched, key=lambda each: each.labels):
        more, fewer = await balance(transaction, label_set, rules, installation_id, received_at)
        queued, cancelled = queued + more, cancelled + fewer
    drift = learned if step.moved and learned in REPAIRS else None
    return Recorded(org_id, step.job_id, step.state, queued, cancelled, drift, asks, installation_id, received_at)


async def _take_back(transaction: Transaction, org_id: int, machine: Row) -> bool:
    """Keep the newest job of the machine's label set again that was admitted and still waits; whether there is one."""
    key = (org_id, machine["repo_id"], machine["labels"])
    return bool(await transaction.fetchval(_SQL["take_back"], *key))


async def _is_known(transaction: Transaction, event: WorkflowJobEvent) -> bool:
    return bool(await _find_known(transaction, [event]))


async def find_foreign(
    transaction: Transaction, events: Sequence[WorkflowJobEvent], rules: DemandRules
) -> list[WorkflowJobEvent]:
    """Those of the events that `record_event` would leave alone: most jobs of an organisation are other hosts'."""
    doubtful = [event for event in events if not rules.owns(event)]
    known = await _find_known(transaction, doubtful) if doubtful else set()
    return [event for place, event in enumerate(doubtful, start=1) if place not in known]


async def _find_known(transaction: Transaction, events: Sequence[WorkflowJobEvent]) -> set[int]:
    rows = await transaction.fetch(
        _SQL["is_known"],
        [event.forge_job_id for event in events],
        [event.repo.owner_id for event in events],
        ["\n".join(event.labels) for event in events],
        [event.runner_name for event in events],
        [event.repo.forge_id for event in events],
    )
    return {row["place"] for row in rows if not is_too_long(events[row["place"] - 1].labels)}


async def _keep_job(transaction: Transaction, heard: _Told, owner: tuple[int, int], rules: DemandRules) -> _Step:
    event, told, learned = heard.event, heard.state, heard.learned
    org_id, repo_id = owner
    known = await transaction.fetchrow(_SQL["lock_job"], event.forge_job_id)
    picked_up = told in {JobState.IN_PROGRESS, JobState.COMPLETED} and event.runner_name is not None
    started_at = event.started_at if picked_up else None  # of a queued job it is only the time of creation
    if known is None:
        judged = await judge(transaction, org_id, event.labels, rules.labels)
        job_id: int = await transaction.fetchval(
            _SQL["insert_job"], org_id, repo_id, event.forge_job_id, event.run_id, event.run_attempt,
            event.name, event.workflow_name, list(event.labels), event.html_url, told, event.conclusion,
            event.runner_name, heard.queued_at, started_at, event.completed_at, learned, refusal_of(judged),
        )  # fmt: skip
        kept = told is JobState.QUEUED and refusal_of(judged) is None
        return _Step(job_id, told, moved=True, kept=kept, unpaid=told not in _NOT_BEGUN)
    if known["org_id"] != org_id:
        raise Refused(f"GitHub's job {event.forge_job_id} belongs to another org here: it is left alone")
    state = merge(JobState(known["state"]), told)
    moved = state != known["state"]
    await transaction.execute(
        _SQL["update_job"], known["job_id"], state, event.conclusion, event.runner_name,
        event.created_at, started_at, event.completed_at, learned if moved and learned in REPAIRS else None,
        heard.received_at, learned,
    )  # fmt: skip
    limited = known["limited_until"] is not None
    kept = limited and state is JobState.QUEUED and known["refusal"] is None
    return _Step(known["job_id"], state, moved, kept, unpaid=limited and state not in _NOT_BEGUN)


def level_of(org_id: int, repo_id: int | None, labels: Sequence[str], rules: DemandRules) -> LabelSet:
    """The label set that a repository's job counts for."""
    return LabelSet(org_id, repo_id if rules.level is RunnerLevel.REPO else None, tuple(labels))


async def rejudge_org(transaction: Transaction, org_id: int, rules: DemandRules) -> int:
    """Read the labels of the org's queued jobs anew and follow them; how many machines that queued.

    After an alias was set or removed, a limit of labels changed, or an event got lost.
    """
    await lock_org(transaction, org_id)
    aliases = await load_aliases(transaction, org_id)
    queued = 0
    rows = await transaction.fetch(_SQL["waiting_sets"], org_id, rules.pause_s)
    for labels in sorted({tuple(row["labels"]) for row in rows}):
        judged = judge_labels(labels, rules.labels, aliases)
        await transaction.execute(_SQL["judge_jobs"], org_id, list(labels), refusal_of(judged))
        if isinstance(judged, Wanted):
            what = (render_shape(judged.shape), judged.arch, judged.image, list(judged.host_labels), judged.alias)
            turn = (judged.priority, judged.priority * rules.aging_s)
            await transaction.execute(_SQL["refit_machines"], org_id, list(labels), *what, *turn)
    sets = {level_of(org_id, row["repo_id"], row["labels"], rules) for row in rows if not row["rests"]}
    for label_set in sorted(sets, key=lambda each: (each.repo_id or 0, each.labels)):
        more, _ = await balance(transaction, label_set, rules, None, None)
        queued += more
    return queued


# --- as many machines as jobs -------------------------------------------------------------------------------------


async def balance(
    transaction: Transaction,
    label_set: LabelSet,
    rules: DemandRules,
    installation_id: int | None,
    webhook_at: datetime | None,
) -> tuple[int, int]:
    """Queue what a label set lacks, cancel what it has too much; how many of each."""
    key = (label_set.org_id, label_set.repo_id, list(label_set.labels))
    count = await _count(transaction, label_set, rules)
    surplus_now = max(0, count["present"] - count["wanted"])
    lacking = count["wanted"] - count["present"] - count["untold"]
    queued = 0
    if lacking > 0 and await _may_replace(transaction, label_set, rules, count["wasted"]):
        named = installation_id or rules.default_installation_id
        # an event may come when its installation is gone: where no other serves the org, its problem is to be told
        installation_id = await serving_installation(transaction, label_set.org_id, named) or installation_id
        queued = await _queue(transaction, label_set, rules, lacking, (installation_id, webhook_at))
    surplus = await transaction.fetch(_SQL["surplus_unregistered"], *key, surplus_now)
    for row in surplus:
        await cancel_machine(transaction, row["machine_id"], "no queued job needs it any more")
    return queued, len(surplus)


async def _may_replace(transaction: Transaction, label_set: LabelSet, rules: DemandRules, wasted: int) -> bool:
    """Whether the set's runners did not go to other jobs so often that the next one would, too."""
    if not wasted:
        return True
    key = (label_set.org_id, label_set.repo_id, list(label_set.labels))
    return bool(wasted <= rules.stolen_limit * await transaction.fetchval(_SQL["jobs_of_hour"], *key))


async def _queue(
    transaction: Transaction,
    label_set: LabelSet,
    rules: DemandRules,
    lacking: int,
    origin: tuple[int | None, datetime | None],
) -> int:
    """So many machines for the set; none where its labels have come to mean nothing."""
    wanted = await judge(transaction, label_set.org_id, label_set.labels, rules.labels)
    if not isinstance(wanted, Wanted):
        return 0
    installation_id, webhook_at = origin
    request = MachineRequest(
        org_id=label_set.org_id,
        kind=MachineKind.RUNNER,
        image=wanted.image,
        shape=wanted.shape,
        labels=label_set.labels,
        host_labels=wanted.host_labels,
        arch=wanted.arch,
        alias=wanted.alias,
        priority=wanted.priority,
        aging_s=rules.aging_s,
        repo_id=label_set.repo_id,
        webhook_at=webhook_at,
        installation_id=installation_id,
    )
    for _ in range(lacking):
        await queue_machine(transaction, request)
    return lacking


async def lock_org(transaction: Transaction, org_id: int | None) -> None:
    """Wait for whoever else counts this org's demand, until the commit."""
    await transaction.execute(_SQL["lock_org"], org_id)


async def is_needed(transaction: Transaction, label_set: LabelSet, others: int, rules: DemandRules) -> bool:
    """Whether queued jobs of the set outnumber the `others` that are registered and wait for one, or just served it."""
    count = await _count(transaction, label_set, rules)
    return bool(count["wanted"] - count["untold"] > others)


async def _count(transaction: Transaction, label_set: LabelSet, rules: DemandRules) -> Row:
    key = (label_set.org_id, label_set.repo_id, list(label_set.labels))
    count = await transaction.fetchrow(_SQL["count_demand"], *key, rules.untold_s)
    assert count is not None  # noqa: S101 -- a SELECT without FROM
    return count


async def waiting_orgs(transaction: Transaction) -> list[int]:
    """The orgs with queued jobs of GitHub's."""
    return [row["org_id"] for row in await transaction.fetch(_SQL["waiting_orgs"])]
