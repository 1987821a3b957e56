"""The fake GitHub's rules: who gets which job and when, as facts 5.1 to 5.4 tell of the real one.

A job goes to an online idle runner that carries all its labels; a runner takes one job and is removed;
an offer that is not accepted in 60 s is withdrawn and the job queued again. No I/O, no clock of its own
and no sleeping: the routes call it, `app.py` calls `sweep` each second, and every change rings `changed`.
It never speaks HTTP and never sends a webhook: `tell` is handed the job and the action.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nimbus.model.errors import Conflict, NotFound, Refused, Unauthorized
from nimbus.model.job import JobState
from nimbus.sim.jobs import Conclusion, Happening, Job, Repo, Run, Runner, StepRun
from nimbus.sim.workflow import JobSpec, Workflow
from nimbus.wire.github import runner_serves

DAY_S = 86_400.0


def _stable_id(name: str) -> int:
    """An id that a restarted sim gives again, as GitHub's accounts and repositories keep theirs."""
    return 1 + int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:5])


class Ids:
    """Ascending numbers, one sequence for all organisations: GitHub gives none twice."""

    def __init__(self, last: int) -> None:
        self.last = last

    def take(self) -> int:
        self.last += 1
        return self.last


@dataclass(frozen=True)
class ForgePolicy:
    """GitHub's time limits; the rehearsal may shorten those that nobody can wait for."""

    accept_within_s: float = 60.0
    offline_after_s: float = 60.0
    lost_after_s: float = 600.0  # a busy runner silent for this long: its job fails
    return_within_s: float = 60.0  # the same for one that has not called since the sim is back
    cancel_within_s: float = 300.0  # a runner told to stop and still busy: the job is ended without it
    queued_at_most_s: float = DAY_S
    offline_at_most_s: float = DAY_S
    idle_at_most_s: float = 0.0  # an online runner without a job is dropped after this long; 0: never


class Forge:
    """One organisation: its repositories, runs, jobs and runners, all in memory; `memory.py` keeps a copy."""

    def __init__(self, owner: str, policy: ForgePolicy, now_s: Callable[[], float], ids: Ids | None = None) -> None:
        self.owner = owner
        self.policy = policy
        self.now_s = now_s
        self.tell: Callable[[Job, str], None] = lambda _job, _action: None
        self.changed: Callable[[], None] = lambda: None
        # Where GitHub may be in two minds about a runner; `faults_runners.py` is, on a bad day.
        self.before_online: Callable[[Runner], None] = lambda _runner: None  # the first time
        self.before_accept: Callable[[Runner], bool] = lambda _runner: True  # False: the offer stands no more
        self.before_delete: Callable[[Runner], bool] = lambda _runner: True  # False: it is refused as busy
        # The control plane keeps ids for ever, and the sim may have lost its file: start where no earlier one was.
        self.ids = ids or Ids(int(now_s() * 1000))
        self.owner_id = _stable_id(owner)
        self.repos: dict[str, Repo] = {}
        self.archived: set[str] = set()  # names in lower case
        self.runs: dict[int, Run] = {}
        self.jobs: dict[int, Job] = {}
        self.runners: dict[int, Runner] = {}

    @property
    def last_id(self) -> int:
        return self.ids.last

    def take_up(self, last_id: int, runs: Iterable[Run], runners: Iterable[Runner]) -> None:
        """Go on where an earlier sim ended: nobody is online, and who was there has a while to call again."""
        now = self.now_s()
        self.ids.last = max(self.ids.last, last_id)
        for run in runs:
            self.repos[run.repo.name.lower()] = run.repo
            self.runs[run.run_id] = run
            self.jobs |= {job.job_id: job for job in (*run.past, *run.jobs)}
        for runner in runners:
            runner.seen_at_s = now if runner.online_at_s is not None else None
            self.runners[runner.runner_id] = runner

    # -- runs and jobs --------------------------------------------------------------------------

    def repo(self, name: str) -> Repo:
        """The repository of that name, made at its first mention; its id is a function of the name."""
        key = name.lower()
        if key not in self.repos:
            self.repos[key] = Repo(_stable_id(f"{self.owner}/{name}"), name, self.owner, self.owner_id)
        return self.repos[key]

    def archive(self, name: str, *, archived: bool) -> Repo:
        """An archived repository is read only: nothing runs in it."""
        repo = self.repo(name)
        if archived:
            self.archived.add(name.lower())
        else:
            self.archived.discard(name.lower())
        self.changed()
        return repo

    def pushed_at_s(self, repo: Repo) -> float | None:
        """Of the newest push that started a run."""
        return max((run.created_at_s for run in self.runs.values() if run.repo == repo), default=None)

    def start_run(self, workflow: Workflow, repo_name: str, first: Runner | None = None) -> Run:
        """A new run. `first` is offered its first job before any other runner is."""
        if repo_name.lower() in self.archived:
            raise Refused(f"{self.owner}/{repo_name} is archived: nothing runs in it")
        run = Run(self.ids.take(), workflow.name, self.repo(repo_name), self.now_s())
        run.jobs = [self._new_job(run, spec) for spec in workflow.jobs]
        self.runs[run.run_id] = run
        self._begin(run.jobs, first)
        return run

    def rerun(self, run_id: int, *, failed_only: bool) -> Run:
        """Another attempt of a completed run: its jobs, or those that failed, come again under new ids."""
        if run_id not in self.runs:
            raise NotFound(f"there is no run {run_id}")
        run = self.runs[run_id]
        if run.state is not JobState.COMPLETED:
            raise Conflict(f"run {run_id} is {run.state}: only a completed one can be run again")
        again = {job.job_id: job for job in run.jobs if not failed_only or job.conclusion is not Conclusion.SUCCESS}
        if not again:
            raise Conflict(f"no job of run {run_id} failed")
        run.attempt += 1
        run.past += again.values()
        run.jobs = [self._new_job(run, job.spec) if job.job_id in again else job for job in run.jobs]
        self._begin([job for job in run.jobs if job.attempt == run.attempt])
        return run

    def _new_job(self, run: Run, spec: JobSpec) -> Job:
        state = JobState.QUEUED if spec.environment is None else JobState.WAITING
        steps = [StepRun(number, step) for number, step in enumerate(spec.steps, start=1)]
        return Job(self.ids.take(), run, spec, state, self.now_s(), steps, attempt=run.attempt)

    def _begin(self, jobs: Sequence[Job], first: Runner | None = None) -> None:
        for job in jobs:
            self.jobs[job.job_id] = job
            self._note(job, job.state.value)
            self.tell(job, "queued")  # also for a job at a gate: its status says `waiting`
        if first is not None and not first.busy and first.offered is None:
            self._offer(jobs[0], first)
        self._assign()

    def job(self, job_id: int) -> Job:
        try:
            return self.jobs[job_id]
        except KeyError:
            raise NotFound(f"there is no job {job_id}") from None

    def approve(self, job_id: int) -> Job:
        """Open the gate of a waiting job: GitHub then tells of it as queued."""
        job = self.job(job_id)
        if job.state is not JobState.WAITING:
            raise Conflict(f"job {job_id} is {job.state} and waits at no gate")
        job.state = JobState.QUEUED
        self._note(job, "queued")
        self.tell(job, "queued")
        self._assign()
        return job

    def cancel(self, job_id: int) -> Job:
        """Cancel: at once before a runner accepted, else by telling the runner."""
        job = self.job(job_id)
        if job.state is JobState.COMPLETED:
            raise Conflict(f"job {job_id} is completed already")
        if job.state is JobState.IN_PROGRESS:
            job.cancelled_at_s = job.cancelled_at_s or self.now_s()
            self._note(job, "cancel requested")
            self.changed()
        else:
            self._complete(job, Conclusion.CANCELLED)
        return job

    # -- runners, as the REST API sees them -------------------------------------------------------

    def register(self, scope: str, name: str, labels: tuple[str, ...], group_id: int, work_folder: str) -> Runner:
        """A new just-in-time runner: offline, with exactly these labels in lower case."""
        if any(runner.name.lower() == name.lower() for runner in self.runners.values()):
            raise Conflict(f"Already exists - A runner with the name {name} already exists.")
        lowered = tuple(dict.fromkeys(label.lower() for label in labels))
        token = secrets.token_urlsafe(32)
        runner = Runner(self.ids.take(), name, scope, lowered, group_id, token, work_folder, self.now_s())
        self.runners[runner.runner_id] = runner
        self.changed()
        return runner

    def runners_of(self, scope: str, name: str | None) -> list[Runner]:
        return [
            runner
            for runner in self.runners.values()
            if runner.scope.lower() == scope.lower() and (name is None or runner.name.lower() == name.lower())
        ]

    def runner_of(self, scope: str, runner_id: int) -> Runner:
        runner = self.runners.get(runner_id)
        if runner is None or runner.scope.lower() != scope.lower():
            raise NotFound("Not Found")
        return runner

    def delete_runner(self, scope: str, runner_id: int) -> None:
        runner = self.runner_of(scope, runner_id)
        if runner.busy or not self.before_delete(runner):
            raise Refused(f'Runner "{runner.name}" is currently running a job and cannot be deleted.')
        self.drop(runner)

    def drop(self, runner: Runner) -> None:
        """Forget a runner that runs nothing: it was deleted, has done its job, or GitHub is tired of it."""
        offered = self.offer(runner)
        if offered is not None:
            self._withdraw(offered)
        self.runners.pop(runner.runner_id, None)
        self._assign()

    # -- runners, as they see themselves ----------------------------------------------------------

    def find_runner(self, token: str) -> Runner | None:
        held = (each for each in self.runners.values() if secrets.compare_digest(each.token.encode(), token.encode()))
        return next(held, None)

    def see(self, runner: Runner) -> None:
        """It called just now."""
        runner.seen_at_s = self.now_s()
        if runner.awaited:
            self.go_online(runner)

    def authenticate(self, token: str) -> Runner:
        """The runner that holds the token, seen alive now."""
        runner = self.find_runner(token)
        if runner is None:
            raise Unauthorized("this runner is not registered, or no longer")
        self.see(runner)
        return runner

    def go_online(self, runner: Runner) -> None:
        if runner.online_at_s is None:
            self.before_online(runner)
        runner.online, runner.awaited = True, False
        runner.online_at_s = runner.online_at_s or self.now_s()
        self._assign()

    def go_offline(self, runner: Runner) -> None:
        runner.online = False
        offered = self.offer(runner)
        if offered is not None:
            self._withdraw(offered)
        self._assign()

    def offer(self, runner: Runner) -> Job | None:
        """The job that is offered to the runner, if any."""
        return runner.offered

    def accept(self, runner: Runner, job_id: int) -> Job:
        job = self.job(job_id)
        if runner.job is job:
            return job  # said again by a runner that missed our answer
        if job.offered_to is not runner:
            raise Conflict(f"job {job_id} is not offered to this runner")
        if not self.before_accept(runner):
            self._withdraw(job)
            self._assign()
            raise Conflict(f"job {job_id} is no longer offered to this runner")
        self._end_offer(job)
        job.runner, runner.job = runner, job
        job.state, job.started_at_s = JobState.IN_PROGRESS, self.now_s()
        self._note(job, f"accepted by {runner.name}")
        self.tell(job, "in_progress")
        self.changed()
        return job

    def job_of(self, runner: Runner, job_id: int) -> Job:
        """The job that the runner is running; a runner reaches no other."""
        if runner.job is None or runner.job.job_id != job_id:
            raise NotFound(f"job {job_id} is not this runner's")
        return runner.job

    def start_step(self, job: Job, number: int) -> StepRun:
        step = self.step(job, number)
        step.state, step.started_at_s = JobState.IN_PROGRESS, self.now_s()
        self.changed()
        return step

    def finish_step(self, job: Job, number: int, conclusion: Conclusion) -> StepRun:
        step = self.step(job, number)
        step.state, step.conclusion, step.completed_at_s = JobState.COMPLETED, conclusion, self.now_s()
        self._note(job, f"step {number} {conclusion}")
        self.changed()
        return step

    def step(self, job: Job, number: int) -> StepRun:
        if not 1 <= number <= len(job.steps):
            raise NotFound(f"job {job.job_id} has no step {number}")
        return job.steps[number - 1]

    def complete(self, runner: Runner, job_id: int, conclusion: Conclusion) -> Job:
        """The runner's last word on its job. GitHub removes a just-in-time runner with it."""
        job = self.job_of(runner, job_id)
        # A job asked to stop ends cancelled, whatever its last step made of the signal.
        self._complete(job, Conclusion.CANCELLED if job.cancelled_at_s is not None else conclusion)
        return job

    # -- time -------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Apply every limit that has passed."""
        now, policy = self.now_s(), self.policy
        for runner in list(self.runners.values()):
            silent_s = now - (runner.seen_at_s if runner.seen_at_s is not None else runner.registered_at_s)
            if runner.online and silent_s > policy.offline_after_s:
                runner.online = False
            if runner.job is not None:
                if silent_s > (policy.return_within_s if runner.awaited else policy.lost_after_s):
                    self._note(runner.job, "the runner lost communication with the server")
                    self._complete(runner.job, Conclusion.FAILURE)
                elif now - (runner.job.cancelled_at_s or now) > policy.cancel_within_s:
                    self._complete(runner.job, Conclusion.CANCELLED)
            else:
                idle_at_most_s = policy.idle_at_most_s or math.inf
                if self._idle_s(runner) > idle_at_most_s or (not runner.online and silent_s > policy.offline_at_most_s):
                    self.drop(runner)
        for job in list(self.jobs.values()):
            if job.offered_to is not None and now - job.offered_at_s > policy.accept_within_s:
                self._withdraw(job)
            if job.state is JobState.QUEUED and now - job.created_at_s > policy.queued_at_most_s:
                self._complete(job, Conclusion.FAILURE)
        self._assign()

    # -- inside -----------------------------------------------------------------------------------

    def _assign(self) -> None:
        free = [each for each in self.runners.values() if each.online and not each.busy and each.offered is None]
        # Labels and repositories that nobody serves: a storm brings many jobs, and few kinds of them.
        hopeless: set[tuple[tuple[str, ...], int]] = set()
        for job in self.jobs.values():
            if not free:
                break
            kind = (job.spec.labels, job.run.repo.repo_id)
            if job.state is not JobState.QUEUED or job.offered_to is not None or kind in hopeless:
                continue
            fitting = [runner for runner in free if _fits(runner, job)]
            if not fitting:
                hopeless.add(kind)
            runner = next((each for each in fitting if each.runner_id not in job.passed_by), None)
            if runner is not None:
                free.remove(runner)
                self._offer(job, runner)
        self.changed()

    def _offer(self, job: Job, runner: Runner) -> None:
        job.offered_to, job.offered_at_s, runner.offered = runner, self.now_s(), job
        self._note(job, f"offered to {runner.name}")

    def _idle_s(self, runner: Runner) -> float:
        """How long it has been there without a job or an offer."""
        if not runner.online or runner.offered is not None:
            return 0.0
        return self.now_s() - (runner.online_at_s or self.now_s())

    def _end_offer(self, job: Job) -> None:
        if job.offered_to is not None:
            job.offered_to.offered, job.offered_to = None, None

    def _withdraw(self, job: Job) -> None:
        assert job.offered_to is not None  # noqa: S101 -- the callers looked; this tells mypy
        job.passed_by.add(job.offered_to.runner_id)
        self._note(job, f"queued again: {job.offered_to.name} did not accept it")
        self._end_offer(job)

    def _complete(self, job: Job, conclusion: Conclusion) -> None:
        runner = job.runner
        job.state, job.conclusion, job.completed_at_s = JobState.COMPLETED, conclusion, self.now_s()
        self._end_offer(job)
        self._note(job, f"completed {conclusion}")
        if runner is not None:
            runner.job = None
            self.drop(runner)
        self.tell(job, "completed")
        self._assign()

    def _note(self, job: Job, what: str) -> None:
        job.history.append(Happening(self.now_s(), what))


def _fits(runner: Runner, job: Job) -> bool:
    return runner.reaches(job.run.repo) and runner_serves(runner.labels, job.spec.labels)
