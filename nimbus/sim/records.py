"""What the fake GitHub's file says of its world: nouns <-> lines of JSON, the last of which counts the others.

Pure: no file, no clock. Installation tokens and offers are left out: GitHub's clients fetch new tokens, and a job
that was on offer is queued. A runner's token stays, because its guest lives on. `memory.py` calls it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from nimbus.model.job import JobState
from nimbus.sim.accounts import Account, Refusal
from nimbus.sim.deliveries import Delivery
from nimbus.sim.jobs import Conclusion, Happening, Job, Repo, Run, Runner, StepRun
from nimbus.sim.registrations import Registration
from nimbus.sim.workflow import JobSpec

FORMAT = "nimbus-sim/2"
_READABLE = frozenset({FORMAT, "nimbus-sim/1"})  # the previous one knew one organisation and no second attempt


@dataclass(frozen=True)
class AccountRecord:
    """One organisation and the App's installation on it."""

    owner: str
    installation_id: int
    suspended_at_s: float | None = None
    removed: bool = False
    refusals: Mapping[str, tuple[Refusal, ...]] = field(default_factory=dict)
    repos: tuple[str, ...] = ()
    archived: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """The first line: whose world it is."""

    format: str
    owner: str  # of the first organisation
    last_id: int
    suspended: bool = False  # the previous format's only installation
    accounts: tuple[AccountRecord, ...] = ()
    registrations: tuple[Registration, ...] = ()


@dataclass(frozen=True)
class RunnerRecord:
    """A runner without what a restart ends: its session."""

    runner_id: int
    name: str
    scope: str
    labels: tuple[str, ...]
    group_id: int
    work_folder: str
    registered_at_s: float
    token: str = field(repr=False, default="")  # none once its job has ended: nobody may use it again
    online_at_s: float | None = None
    here: bool = False  # online or busy, or still awaited from an earlier restart


@dataclass(frozen=True)
class JobRecord:
    """A job; its runner is named while it runs it and whole afterwards, when the forge has none of that name."""

    job_id: int
    spec: JobSpec
    state: JobState
    created_at_s: float
    steps: list[StepRun]
    conclusion: Conclusion | None = None
    runner_id: int | None = None
    gone_runner: RunnerRecord | None = None
    passed_by: tuple[int, ...] = ()
    started_at_s: float | None = None
    completed_at_s: float | None = None
    cancelled_at_s: float | None = None
    history: tuple[Happening, ...] = ()
    attempt: int = 1


@dataclass(frozen=True)
class RunRecord:
    """A run with its jobs."""

    run_id: int
    workflow_name: str
    repo: Repo
    created_at_s: float
    attempt: int
    jobs: tuple[JobRecord, ...]
    past: tuple[JobRecord, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line of the file: exactly one of these."""

    header: Header | None = None
    runner: RunnerRecord | None = None
    run: RunRecord | None = None
    delivery: Delivery | None = None
    end: int | None = None  # how many lines stand before this one


@dataclass(frozen=True)
class Recalled:
    """What a file told, as the forge and the deliveries hold it."""

    header: Header
    runners: list[Runner]
    runs: list[Run]
    deliveries: list[Delivery]


_LINES: TypeAdapter[Line] = TypeAdapter(Line)


class Pen:
    """Writes the lines; remembers those of what has ended, which is most of a world and never changes again."""

    def __init__(self) -> None:
        self._settled: dict[tuple[str, int, int], bytes] = {}

    def render(
        self, header: Header, runners: Iterable[Runner], runs: Iterable[Run], deliveries: Iterable[Delivery]
    ) -> bytes:
        """The whole file."""
        known, self._settled = self._settled, {}
        lines = [_render(Line(header=header))]
        lines += [_render(Line(runner=_record_runner(runner, runner.token))) for runner in runners]
        for run in runs:
            key = ("run", run.run_id, run.attempt)
            line = known.get(key) or _render(_line_of(run))
            lines.append(line)
            if run.state is JobState.COMPLETED:
                self._settled[key] = line
        for each in deliveries:
            key = ("delivery", each.delivery_id, 0)
            line = known.get(key) or _render(Line(delivery=each))
            lines.append(line)
            if each.delivered_at_s is not None:
                self._settled[key] = line
        lines.append(_render(Line(end=len(lines))))
        return b"".join(lines)


def parse_world(data: bytes) -> Recalled:
    """What `Pen.render` wrote; ValueError, without quoting the file, for anything else."""
    try:
        lines = [_LINES.validate_python(json.loads(line)) for line in data.splitlines()]
    except ValidationError as error:
        raise ValueError(f"{error.error_count()} fields are not as the sim writes them") from None
    except (ValueError, RecursionError):
        raise ValueError("it is not lines of JSON") from None
    if not lines or lines[-1].end != len(lines) - 1:
        raise ValueError("its end is missing")
    header = lines[0].header
    if header is None or header.format not in _READABLE:
        raise ValueError(f"it does not begin as {FORMAT}")
    runners = {line.runner.runner_id: _make_runner(line.runner) for line in lines if line.runner is not None}
    runs = [_make_run(line.run, runners) for line in lines if line.run is not None]
    return Recalled(header, [*runners.values()], runs, [line.delivery for line in lines if line.delivery is not None])


def _render(line: Line) -> bytes:
    return _LINES.dump_json(line, exclude_defaults=True) + b"\n"


def _line_of(run: Run) -> Line:
    jobs, past = (tuple(_record_job(job) for job in each) for each in (run.jobs, run.past))
    return Line(run=RunRecord(run.run_id, run.workflow_name, run.repo, run.created_at_s, run.attempt, jobs, past))


def record_account(account: Account) -> AccountRecord:
    """All of an account but its runs and runners, which have lines of their own."""
    return AccountRecord(
        owner=account.owner,
        installation_id=account.installation_id,
        suspended_at_s=account.suspended_at_s,
        removed=account.removed,
        refusals={scope: tuple(sorted(refusals)) for scope, refusals in sorted(account.refusals.items())},
        repos=tuple(repo.name for repo in account.forge.repos.values()),
        archived=tuple(sorted(account.forge.archived)),
    )


def restore_account(account: Account, record: AccountRecord) -> None:
    """Give an account what its record says."""
    account.suspended_at_s, account.removed = record.suspended_at_s, record.removed
    account.refusals = {scope: frozenset(refusals) for scope, refusals in record.refusals.items()}
    account.forge.archived = set(record.archived)
    for name in record.repos:
        account.forge.repo(name)


def _record_runner(runner: Runner, token: str) -> RunnerRecord:
    return RunnerRecord(
        runner_id=runner.runner_id,
        name=runner.name,
        scope=runner.scope,
        labels=runner.labels,
        group_id=runner.group_id,
        work_folder=runner.work_folder,
        registered_at_s=runner.registered_at_s,
        token=token,
        online_at_s=runner.online_at_s,
        here=runner.online or runner.busy or runner.awaited,
    )


def _make_runner(record: RunnerRecord) -> Runner:
    return Runner(
        runner_id=record.runner_id,
        name=record.name,
        scope=record.scope,
        labels=record.labels,
        group_id=record.group_id,
        token=record.token,
        work_folder=record.work_folder,
        registered_at_s=record.registered_at_s,
        online_at_s=record.online_at_s,
        awaited=record.here,
    )


def _record_job(job: Job) -> JobRecord:
    runner, running = job.runner, job.state is JobState.IN_PROGRESS
    return JobRecord(
        job_id=job.job_id,
        spec=job.spec,
        state=job.state,
        created_at_s=job.created_at_s,
        steps=job.steps,
        conclusion=job.conclusion,
        runner_id=runner.runner_id if runner is not None and running else None,
        gone_runner=_record_runner(runner, "") if runner is not None and not running else None,
        passed_by=tuple(sorted(job.passed_by)),
        started_at_s=job.started_at_s,
        completed_at_s=job.completed_at_s,
        cancelled_at_s=job.cancelled_at_s,
        history=tuple(job.history),
        attempt=job.attempt,
    )


def _make_run(record: RunRecord, runners: dict[int, Runner]) -> Run:
    run = Run(record.run_id, record.workflow_name, record.repo, record.created_at_s, record.attempt)
    run.jobs = [_make_job(each, run, runners) for each in record.jobs]
    run.past = [_make_job(each, run, runners) for each in record.past]
    return run


def _make_job(record: JobRecord, run: Run, runners: dict[int, Runner]) -> Job:
    _check_numbers(record.steps)
    job = Job(
        job_id=record.job_id,
        run=run,
        spec=record.spec,
        state=record.state,
        created_at_s=record.created_at_s,
        steps=record.steps,
        conclusion=record.conclusion,
        runner=_make_runner(record.gone_runner) if record.gone_runner is not None else None,
        passed_by=set(record.passed_by),
        started_at_s=record.started_at_s,
        completed_at_s=record.completed_at_s,
        cancelled_at_s=record.cancelled_at_s,
        history=list(record.history),
        attempt=record.attempt,
    )
    if (job.state is JobState.COMPLETED) != (job.conclusion is not None):
        raise ValueError("a job has a conclusion and has not ended, or the reverse")
    if job.state is JobState.IN_PROGRESS:
        runner = runners.get(record.runner_id or 0)
        if runner is None or runner.busy:
            raise ValueError("a job runs on no runner of its own")
        job.runner, runner.job = runner, job
    return job


def _check_numbers(steps: Sequence[StepRun]) -> None:
    if [step.number for step in steps] != list(range(1, len(steps) + 1)):
        raise ValueError("the steps of a job are not numbered from one")
