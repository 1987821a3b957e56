"""A forge on a stage: its clock is the test's, its webhooks are a list, its sockets are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nimbus.sim.forge import Forge, ForgePolicy
from nimbus.sim.jobs import Job, Runner
from nimbus.sim.payloads import render_workflow_job_event
from nimbus.sim.workflow import parse_workflow


@dataclass
class Clock:
    """A clock that only the test moves."""

    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Stage:
    """A forge, its clock and the webhooks it would have sent."""

    clock: Clock = field(default_factory=Clock)
    told: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forge = Forge("octo-org", ForgePolicy(), self.clock)
        self.forge.tell = lambda job, action: self.told.append(render_workflow_job_event(job, action, 7))

    def job(self, labels: str = "nimbus", extra: str = "") -> Job:
        text = f"jobs: {{a: {{runs-on: [{labels}], {extra} steps: [{{run: 'true'}}, {{run: 'false'}}]}}}}"
        return self.forge.start_run(parse_workflow(text), "hello").jobs[0]

    def runner(self, *labels: str, name: str = "nimbus-1-1", scope: str = "octo-org/hello") -> Runner:
        return self.forge.register(scope, name, labels or ("nimbus",), 1, "_work")

    def online(self, *labels: str, name: str = "nimbus-1-1") -> Runner:
        runner = self.forge.authenticate(self.runner(*labels, name=name).token)
        self.forge.go_online(runner)
        return runner

    def running(self) -> tuple[Job, Runner]:
        job, runner = self.job(), self.online()
        return self.forge.accept(runner, job.job_id), runner

    @property
    def actions(self) -> list[str]:
        return [str(event["action"]) for event in self.told]
