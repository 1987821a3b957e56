"""The third source of demand: GitHub is asked, repository by repository, what jobs it has.

A pass takes the repositories that are due, installation by installation, as fast as the installation's quota allows.
Each one's queued and running runs are listed (a run with one started job hides its queued siblings), then their jobs;
what is new goes the way of a webhook (`record_event`). Then our open jobs that no list showed are asked for one by
one. An answer may be older than a webhook that came meanwhile: states only ever rise, so it changes nothing then.
It lists no installations (installations.py) and decides nothing about demand. forge.py runs it, as a duty.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from nimbus.control_plane.demand import DemandRules, Recorded, announce, record_event
from nimbus.control_plane.duties import Duty
from nimbus.control_plane.github_client import GithubClient
from nimbus.control_plane.github_limits import Quota
from nimbus.control_plane.problems import clear_problem, note_problem
from nimbus.control_plane.services import Services
from nimbus.model.errors import NotFound, Refused
from nimbus.model.forge import PASSING, ForgeTrouble, ProblemKind
from nimbus.model.job import RANK, JobState, Learned
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.github import ForgeRepo, WorkflowJobEvent
from nimbus.wire.githubrest import RunSeen

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "polling.sql")

NAME = "polling"
PASSES = 10  # in one interval: a repository is looked at a tenth of it late at most
STATUSES = ("queued", "in_progress")
MAX_REPOS = 100  # of one installation in one pass
MAX_RUNS = 200  # of one repository in one pass; the next takes those that were not looked at
MAX_LOOKUPS = 100  # single jobs, likewise
IDLE_SHARE = 0.25  # of the hourly quota, at most, goes into repositories where nothing happens
READS_A_REPO = len(STATUSES)
HOUR_S = 3600.0
FOREIGN_S = 600.0  # a job that is not ours may become so: by an alias that its org adds
GONE = "gone"  # the conclusion of a job that GitHub no longer knows, twice in a row
GONE_STRIKES = 2
# What no call of that installation can get round: the rest of its repositories is not tried.
_WHOLE = PASSING | {ProblemKind.SUSPENDED, ProblemKind.IP_ALLOW_LIST, ProblemKind.APP_KEY}


@dataclass(frozen=True)
class PollRules:
    """How often a repository is looked at. An interval of 0: polling is off."""

    interval_s: float = 300.0
    idle_after_s: float = 21_600.0
    idle_interval_s: float = 900.0
    reserve: float = 0.1  # of the quota: it is for runners


@dataclass(frozen=True)
class PolledRepo:
    """One repository as a pass goes through it."""

    repo_id: int
    installation_id: int
    forge: ForgeRepo


@dataclass
class Memory:
    """What this process learned in earlier passes. Losing it costs calls, nothing else."""

    patience_s: dict[int, float] = field(default_factory=dict)  # installations, and when to ask again
    looks: dict[int, dict[tuple[int, int], float]] = field(default_factory=dict)  # repos, runs and attempts
    strikes: dict[int, int] = field(default_factory=dict)  # jobs that GitHub did not find
    foreign: set[tuple[int, JobState, str | None]] = field(default_factory=set)
    foreign_since_s: float = 0.0


def pace(quota: Quota | None, reserve: float) -> float | None:
    """Pure: how many times slower than usual an installation is polled; None for not at all."""
    if quota is None or quota.limit <= 0:
        return 1.0
    left = quota.remaining / quota.limit
    if left <= reserve:
        return None
    if left < 0.2:
        return 4.0
    return 2.0 if left < 0.5 else 1.0


def idle_interval_s(rules: PollRules, repos: int, quota: Quota | None) -> float:
    """Pure: how often idle repositories are looked at, so that ten thousand of them do not eat the quota."""
    if quota is None or quota.limit <= 0:
        return rules.idle_interval_s
    return max(rules.idle_interval_s, repos * READS_A_REPO * HOUR_S / (quota.limit * IDLE_SHARE))


def plan_looks(runs: Iterable[RunSeen], looks: Mapping[tuple[int, int], float]) -> list[RunSeen]:
    """Pure: which runs to look into: those looked at longest ago, then the oldest."""
    distinct = {(run.run_id, run.attempt): run for run in runs}
    return sorted(distinct.values(), key=lambda run: (looks.get((run.run_id, run.attempt), 0.0), run.run_id))[:MAX_RUNS]


def is_news(known: Row | None, event: WorkflowJobEvent) -> bool:
    """Pure: whether an answer tells more than we know. One that is older than our knowledge never does."""
    if event.told is None:
        return False
    if known is None or RANK[event.told] > RANK[JobState(known["state"])]:
        return True
    picked_up = event.told in {JobState.IN_PROGRESS, JobState.COMPLETED}
    return picked_up and event.runner_name is not None and known["runner_name"] is None


class Poller:
    """The passes of one process."""

    def __init__(self, services: Services, github: GithubClient, demand: DemandRules, rules: PollRules) -> None:
        self._services = services
        self._github = github
        self._demand = demand
        self._rules = rules
        self._memory = Memory()

    async def poll(self, duty: Duty) -> int:
        """One pass over what is due; how many steps of jobs it found."""
        now_s = time.monotonic()
        if now_s > self._memory.foreign_since_s + FOREIGN_S:
            self._memory.foreign, self._memory.foreign_since_s = set(), now_s
        found = 0
        for row in await self._services.database.run(_fetch, "installations"):
            installation_id = row["installation_id"]
            if time.monotonic() < self._memory.patience_s.get(installation_id, 0.0):
                continue
            found += await self._poll_installation(installation_id, row["repos"], duty)
        if found:
            log.info("poll.found", steps=found)
        return found

    async def _poll_installation(self, installation_id: int, repos: int, duty: Duty) -> int:
        quota = self._github.quota(installation_id)
        factor = pace(quota, self._rules.reserve)
        if factor is None:
            return 0
        idle_s = idle_interval_s(self._rules, repos, quota)
        due = await self._services.database.run(
            _fetch, "due", installation_id, factor * self._rules.interval_s, factor * idle_s,
            self._rules.idle_after_s, MAX_REPOS,
        )  # fmt: skip
        found = 0
        for row in due:
            polled = _polled(row, installation_id)
            try:
                found += await self._poll_repo(polled, duty)
            except ForgeTrouble as trouble:
                await self._note_trouble(polled, trouble)
                if trouble.problem.kind in _WHOLE:
                    break
            except NotFound:
                # deleted, renamed or taken from the App a moment ago: the list of repositories will say so
                log.info("poll.repo_not_found", repo=polled.forge.full_name)
                await self._services.database.run(_execute, "note_polled", polled.repo_id)
        return found

    async def _note_trouble(self, polled: PolledRepo, trouble: ForgeTrouble) -> None:
        """Keep what somebody must act on. What passes by itself is told by the calls for runners, which have more."""
        problem = trouble.problem
        log.warning("poll.trouble", repo=polled.forge.full_name, kind=str(problem.kind), said=problem.said)
        if problem.kind in _WHOLE:
            self._memory.patience_s[polled.installation_id] = time.monotonic() + problem.retry_after_s
        else:
            await self._services.database.run(_execute, "note_polled", polled.repo_id)
        if problem.kind not in PASSING:
            scope = None if problem.kind in _WHOLE else polled.forge.name
            await self._services.database.run(note_problem, polled.installation_id, scope, problem)

    async def _poll_repo(self, polled: PolledRepo, duty: Duty) -> int:
        runs: list[RunSeen] = []
        for status in STATUSES:
            await duty.keep()
            runs += await self._github.list_runs(polled.installation_id, polled.forge.full_name, status)
        looks = self._memory.looks.setdefault(polled.repo_id, {})
        chosen = plan_looks(runs, looks)
        left_out = {(run.run_id, run.attempt) for run in runs} - {(run.run_id, run.attempt) for run in chosen}
        shown: set[int] = set()
        found = 0
        for run in chosen:
            events = await self._list_jobs(polled, run, duty)
            looks[run.run_id, run.attempt] = time.monotonic()
            found += await self._take(events, shown)
        found += await self._look_up(polled, shown, left_out, duty)
        self._memory.looks[polled.repo_id] = {
            key: at_s
            for key, at_s in looks.items()
            if key in left_out or key in {(r.run_id, r.attempt) for r in chosen}
        }
        await self._services.database.run(_finish_repo, polled, list(shown))
        self._services.metrics.polls.inc()
        return found

    async def _list_jobs(self, polled: PolledRepo, run: RunSeen, duty: Duty) -> tuple[WorkflowJobEvent, ...]:
        await duty.keep()
        try:
            return await self._github.list_jobs(polled.installation_id, polled.forge, run)
        except NotFound:  # the run was deleted meanwhile
            return ()

    async def _look_up(self, polled: PolledRepo, shown: set[int], left_out: set[tuple[int, int]], duty: Duty) -> int:
        """Ask for our open jobs that no run showed: they have ended, or their run has."""
        rows = await self._services.database.run(
            _fetch, "unshown", polled.repo_id, list(shown), self._rules.idle_interval_s
        )
        by_run: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in [row for row in rows if (row["run_id"], row["attempt"]) not in left_out][:MAX_LOOKUPS]:
            by_run[row["run_id"], row["attempt"]].append(row)
        found = 0
        for (run_id, attempt), jobs in by_run.items():
            if len(jobs) > 1 and run_id:  # one list for all of them
                run = RunSeen(run_id, attempt, datetime.now(UTC))
                found += await self._take(await self._list_jobs(polled, run, duty), shown)
            for row in jobs:
                if row["forge_job_id"] not in shown:
                    found += await self._look_up_one(polled, row, shown, duty)
        return found

    async def _look_up_one(self, polled: PolledRepo, row: Row, shown: set[int], duty: Duty) -> int:
        await duty.keep()
        event = await self._github.find_job(polled.installation_id, polled.forge, row["forge_job_id"])
        if event is not None:
            return await self._take((event,), shown)
        strikes = self._memory.strikes.get(row["forge_job_id"], 0) + 1
        self._memory.strikes[row["forge_job_id"]] = strikes
        if strikes < GONE_STRIKES:  # it may be so new that not all of GitHub knows it
            return 0
        log.warning("poll.job_gone", forge_job=row["forge_job_id"], repo=polled.forge.full_name)
        return await self._take((_gone(polled, row),), shown)

    async def _take(self, events: Sequence[WorkflowJobEvent], shown: set[int]) -> int:
        """Record what is new, each job in a transaction of its own; how many steps that were."""
        ids = [event.forge_job_id for event in events]
        shown.update(ids)
        for forge_job_id in ids:
            self._memory.strikes.pop(forge_job_id, None)
        rows = await self._services.database.run(_fetch, "known", ids) if ids else []
        known = {row["forge_job_id"]: row for row in rows}
        found = 0
        for event in events:
            if is_news(known.get(event.forge_job_id), event):
                found += await self._record(event)
        self._services.metrics.jobs_found_by_poll.inc(found)
        return found

    async def _record(self, event: WorkflowJobEvent) -> int:
        assert event.told is not None  # noqa: S101 -- else it were no news
        memo = (event.forge_job_id, event.told, event.runner_name)
        if memo in self._memory.foreign:
            return 0
        try:
            recorded = await self._services.database.run(_record, event, event.told, self._demand)
        except Refused as error:  # it stands under another org here: a repository that moved
            log.warning("poll.job_refused", forge_job=event.forge_job_id, reason=str(error))
            recorded = None
        if recorded is None:
            self._memory.foreign.add(memo)
            return 0
        await announce(self._services, recorded)
        return 1


def _polled(row: Row, installation_id: int) -> PolledRepo:
    full_name = f"{row['login']}/{row['name']}"
    forge = ForgeRepo(row["forge_id"], row["name"], full_name, row["private"], row["owner_id"], row["login"])
    return PolledRepo(row["repo_id"], installation_id, forge)


def _gone(polled: PolledRepo, row: Row) -> WorkflowJobEvent:
    """The event that GitHub would have sent, had it ended the job in the usual way."""
    return WorkflowJobEvent(
        action="completed",
        told=JobState.COMPLETED,
        forge_job_id=row["forge_job_id"],
        run_id=row["run_id"],
        run_attempt=row["attempt"],
        name=row["name"],
        workflow_name=None,
        head_branch=None,
        head_sha=None,
        html_url=None,
        conclusion=GONE,
        labels=tuple(row["labels"]),
        runner_id=None,
        runner_name=None,
        created_at=None,
        started_at=None,
        completed_at=datetime.now(UTC),
        repo=polled.forge,
        installation_id=polled.installation_id,
    )


async def _record(
    transaction: Transaction, event: WorkflowJobEvent, told: JobState, rules: DemandRules
) -> Recorded | None:
    now = await transaction.fetchval(_SQL["now"])
    return await record_event(transaction, event, told, now, rules, Learned.POLL)


async def _fetch(transaction: Transaction, query: str, *args: object) -> Sequence[Row]:
    return await transaction.fetch(_SQL[query], *args)


async def _execute(transaction: Transaction, query: str, *args: object) -> None:
    await transaction.execute(_SQL[query], *args)


async def _finish_repo(transaction: Transaction, polled: PolledRepo, shown: list[int]) -> None:
    await transaction.execute(_SQL["note_polled"], polled.repo_id)
    await transaction.execute(_SQL["note_checked"], shown)
    await clear_problem(transaction, polled.installation_id, polled.forge.name)
