"""The fake GitHub's nouns: repository, run, job, step, runner. State only; `forge.py` alone changes it.

They never leave the process: what the outside sees is rendered by `payloads.py` and the route modules.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from nimbus.model.job import JobState
from nimbus.sim.workflow import JobSpec, StepSpec


class Conclusion(enum.StrEnum):
    """How a job or a step ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Repo:
    """A repository of one of the organisations."""

    repo_id: int
    name: str
    owner: str
    owner_id: int

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True)
class Happening:
    """One line of a job's history, for people and for the waterfall."""

    at_s: float
    what: str


@dataclass
class StepRun:
    """One step of one job."""

    number: int
    spec: StepSpec
    state: JobState = JobState.QUEUED
    conclusion: Conclusion | None = None
    started_at_s: float | None = None
    completed_at_s: float | None = None


@dataclass
class Job:
    """One job of a run, from creation to conclusion."""

    job_id: int
    run: Run
    spec: JobSpec
    state: JobState
    created_at_s: float
    steps: list[StepRun]
    conclusion: Conclusion | None = None
    runner: Runner | None = None  # kept after the end: GitHub's payload still names it
    offered_to: Runner | None = None
    offered_at_s: float = 0.0
    passed_by: set[int] = field(default_factory=set)  # runners that were offered it and did not accept
    started_at_s: float | None = None
    completed_at_s: float | None = None
    cancelled_at_s: float | None = None  # when somebody asked for it
    history: list[Happening] = field(default_factory=list)
    attempt: int = 1  # of its run, when it was made

    @property
    def updated_at_s(self) -> float:
        return max(at_s for at_s in (self.created_at_s, self.started_at_s, self.completed_at_s) if at_s is not None)


@dataclass
class Run:
    """One run of a workflow. `jobs` are those of its newest attempt."""

    run_id: int
    workflow_name: str
    repo: Repo
    created_at_s: float
    attempt: int = 1
    jobs: list[Job] = field(default_factory=list)
    past: list[Job] = field(default_factory=list)  # those that another attempt took the place of

    @property
    def updated_at_s(self) -> float:
        return max(job.updated_at_s for job in self.jobs)

    def jobs_of(self, attempt: int) -> list[Job]:
        """An attempt's jobs; one that was not run again then stands in it as it ended before."""
        newest: dict[str, Job] = {}
        for job in sorted([*self.past, *self.jobs], key=lambda job: job.attempt):
            if job.attempt <= attempt:
                newest[job.spec.key] = job
        return [newest[job.spec.key] for job in self.jobs]

    @property
    def state(self) -> JobState:
        states = {job.state for job in self.jobs}
        if states == {JobState.COMPLETED}:
            return JobState.COMPLETED
        return JobState.QUEUED if states <= {JobState.QUEUED, JobState.WAITING} else JobState.IN_PROGRESS

    @property
    def conclusion(self) -> Conclusion | None:
        if self.state is not JobState.COMPLETED:
            return None
        ends = {job.conclusion for job in self.jobs}
        return next((end for end in (Conclusion.FAILURE, Conclusion.CANCELLED) if end in ends), Conclusion.SUCCESS)


@dataclass
class Runner:
    """A just-in-time runner: it takes one job and is gone."""

    runner_id: int
    name: str
    scope: str  # "owner" for an organisation's runner, "owner/name" for a repository's
    labels: tuple[str, ...]
    group_id: int
    token: str = field(repr=False)  # what its JIT config holds; a secret
    work_folder: str
    registered_at_s: float
    seen_at_s: float | None = None  # of its newest request; None before its first session
    online_at_s: float | None = None  # of its first session
    online: bool = False
    awaited: bool = False  # it was there when the sim ended, and has not called since the sim is back
    job: Job | None = None  # accepted and not yet completed
    offered: Job | None = None  # the job whose `offered_to` is this runner

    @property
    def busy(self) -> bool:
        return self.job is not None

    def reaches(self, repo: Repo) -> bool:
        """Whether a job of this repository may land on this runner."""
        return self.scope.lower() in {repo.owner.lower(), repo.full_name.lower()}
