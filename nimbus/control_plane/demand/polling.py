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
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
import trio

from nimbus.control_plane.demand.admission import announce
from nimbus.control_plane.demand.demand import DemandRules, Recorded, record_event
from nimbus.control_plane.demand.poll_rules import PollRules, choose_due, idle_room, is_news, pace, plan_looks
from nimbus.control_plane.duties import Duty, DutyLost
from nimbus.control_plane.github.client import GithubClient
from nimbus.control_plane.orgs.problems import clear_problem, meets_every_call, note_problem
from nimbus.control_plane.services import Services
from nimbus.model.errors import NimbusError, NotFound, Refused, Unavailable
from nimbus.model.forge import PASSING, ForgeTrouble, ProblemKind
from nimbus.model.job import JobState, Learned
from nimbus.runtime.postgres import Row, Transaction, load_queries
from nimbus.wire.github import ForgeRepo, WorkflowJobEvent
from nimbus.wire.githubrest import RunSeen

log = structlog.get_logger()
_SQL = load_queries("nimbus.control_plane", "queries", "polling.sql")

NAME = "polling"
STATUSES = ("queued", "in_progress")
INSTALLATIONS_AT_ONCE = 4  # one that GitHub answers slowly holds up no other
MAX_REPOS = 100  # of one installation in one pass
MAX_LOOKUPS = 100  # single jobs of one repository in one pass
FOREIGN_S = 600.0  # a job that is not ours may become so: by an alias that its org adds
GONE = "gone"  # the conclusion of a job that GitHub no longer knows, twice in a row, or that we cannot ask about
GONE_STRIKES = 2


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


@dataclass
class _Turn:
    """One installation's part of a pass."""

    installation_id: int
    found: int = 0
    problem: NimbusError | None = None


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
        turns = [
            _Turn(row["installation_id"])
            for row in await self._services.database.run(_fetch, "installations")
            if now_s >= self._memory.patience_s.get(row["installation_id"], 0.0)
        ]
        places = trio.CapacityLimiter(INSTALLATIONS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for turn in turns:
                nursery.start_soon(self._take_turn, turn, places, duty)
        found = sum(turn.found for turn in turns) + await self._end_unreachable()
        if found:
            log.info("poll.found", steps=found)
        for turn in turns:
            if turn.problem is not None:
                raise turn.problem
        return found

    async def _take_turn(self, turn: _Turn, places: trio.CapacityLimiter, duty: Duty) -> None:
        """One installation's part of the pass. A duty that is lost and a database that is away come out at its end."""
        async with places:
            try:
                await self._poll_installation(turn, duty)
            except (DutyLost, Unavailable) as error:
                turn.problem = error

    async def _poll_installation(self, turn: _Turn, duty: Duty) -> None:
        quota = self._github.quota(turn.installation_id)
        factor = pace(quota, self._rules.reserve)
        if factor is None:
            return
        due = await self._services.database.run(
            _fetch, "due", turn.installation_id, factor * self._rules.interval_s, factor * self._rules.idle_interval_s,
            self._rules.idle_after_s, MAX_REPOS,
        )  # fmt: skip
        for row in choose_due(due, idle_room(self._rules, quota)):
            polled = PolledRepo(row["repo_id"], turn.installation_id, _forge(row))
            try:
                turn.found += await self._poll_repo(polled, duty)
            except ForgeTrouble as trouble:
                await self._note_trouble(polled, trouble)
                if meets_every_call(trouble.problem):
                    break  # the rest of its repositories is not tried
            except NotFound:
                # deleted, renamed or taken from the App a moment ago: the list of repositories will say so
                log.info("poll.repo_not_found", repo=polled.forge.full_name)
                await self._services.database.run(_execute, "note_polled", polled.repo_id)

    async def _note_trouble(self, polled: PolledRepo, trouble: ForgeTrouble) -> None:
        """Keep what somebody must act on. What passes by itself is told by the calls for runners, which have more."""
        problem = trouble.problem
        log.warning("poll.trouble", repo=polled.forge.full_name, kind=str(problem.kind), said=problem.said)
        if meets_every_call(problem):
            self._memory.patience_s[polled.installation_id] = time.monotonic() + problem.retry_after_s
        if not meets_every_call(problem) or problem.kind is ProblemKind.OUTAGE:
            # GitHub may fail at this one only, every time: it must not be the first again
            await self._services.database.run(_execute, "note_polled", polled.repo_id)
        if problem.kind not in PASSING:
            await self._services.database.run(note_problem, polled.installation_id, polled.forge.name, problem)

    async def _poll_repo(self, polled: PolledRepo, duty: Duty) -> int:
        runs: list[RunSeen] = []
        for status in STATUSES:
            await duty.keep()
            runs += await self._github.list_runs(polled.installation_id, polled.forge.full_name, status)
        looks = self._memory.looks.setdefault(polled.repo_id, {})
        chosen = plan_looks(runs, looks, self._rules.max_runs)
        listed = {(run.run_id, run.attempt) for run in runs}
        left_out = listed - {(run.run_id, run.attempt) for run in chosen}
        shown: set[int] = set()
        found = 0
        for run in chosen:
            looks[run.run_id, run.attempt] = time.monotonic()  # before: one that fails must not be the first again
            found += await self._take(await self._list_jobs(polled, run, duty), shown)
        found += await self._look_up(polled, shown, left_out, duty)
        self._memory.looks[polled.repo_id] = {key: at_s for key, at_s in looks.items() if key in listed}
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
        return await self._take((_gone(polled.forge, row),), shown)

    async def _end_unreachable(self) -> int:
        """End our open jobs that GitHub has ended long ago by its own limits, where it can no longer be asked."""
        found = 0
        for row in await self._services.database.run(_fetch, "unreachable", MAX_LOOKUPS):
            log.warning("poll.job_unreachable", forge_job=row["forge_job_id"], repo=row["repo"])
            found += await self._record(_gone(_forge(row), row))
        return found

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
        except Unavailable:
            raise
        except Exception:
            # as in the inbox: one job that cannot be recorded must not keep the others back, let alone end the process
            log.exception("poll.job_failed", forge_job=event.forge_job_id)
            recorded = None
        if recorded is None:
            self._memory.foreign.add(memo)
            return 0
        await announce(self._services, recorded, self._demand)
        return 1


def _forge(row: Row) -> ForgeRepo:
    full_name = f"{row['login']}/{row['repo']}"
    return ForgeRepo(row["forge_id"], row["repo"], full_name, row["private"], row["owner_id"], row["login"])


def _gone(repo: ForgeRepo, row: Row) -> WorkflowJobEvent:
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
        repo=repo,
        installation_id=None,
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
