"""Any sequence of what runners, people, time and SIGKILL can do leaves the fake GitHub in a lawful state."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nimbus.model.errors import NimbusError
from nimbus.model.job import RANK, JobState
from nimbus.sim.forge import Forge, ForgePolicy
from nimbus.sim.jobs import Conclusion, Job
from nimbus.sim.records import FORMAT, Header, Pen, parse_world
from nimbus.sim.workflow import parse_workflow
from nimbus.wire.github import runner_serves

LABELS = st.sampled_from([("nimbus",), ("nimbus", "gpu")])
PICK = st.integers(0, 2)  # few, so that most steps meet somebody


class ForgeMachine(RuleBasedStateMachine):
    """Jobs come, runners register, accept, complete, fall silent, are deleted; jobs are cancelled, the sim killed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_800_000_000.0
        self.told: dict[int, list[str]] = {}
        self.forge = self.open_forge()
        self.pen = Pen()

    def open_forge(self) -> Forge:
        forge = Forge("octo-org", ForgePolicy(), lambda: self.now_s)
        forge.tell = self.hear
        return forge

    def hear(self, job: Job, action: str) -> None:
        self.told.setdefault(job.job_id, []).append(action)

    @rule(labels=LABELS)
    def job_comes(self, labels: tuple[str, ...]) -> None:
        text = f"jobs: {{a: {{runs-on: [{', '.join(labels)}], steps: [{{run: x}}]}}}}"
        self.forge.start_run(parse_workflow(text), "hello")

    @rule(labels=LABELS, number=PICK, online=st.booleans())
    def runner_comes(self, labels: tuple[str, ...], number: int, online: bool) -> None:
        with contextlib.suppress(NimbusError):
            runner = self.forge.register("octo-org/hello", f"nimbus-{number}-1", labels, 1, "_work")
            if online:
                self.forge.go_online(runner)

    @rule(number=PICK, what=st.sampled_from(["online", "offline", "delete"]))
    def runner_comes_and_goes(self, number: int, what: str) -> None:
        for runner in self.forge.runners_of("octo-org/hello", f"nimbus-{number}-1"):
            self.forge.authenticate(runner.token)
            if what == "online":
                self.forge.go_online(runner)
            elif what == "offline":
                self.forge.go_offline(runner)
            else:
                with contextlib.suppress(NimbusError):  # a busy one
                    self.forge.delete_runner(runner.scope, runner.runner_id)

    @precondition(lambda self: any(job.offered_to for job in self.forge.jobs.values()))
    @rule(number=PICK)
    def a_runner_accepts(self, number: int) -> None:
        offered = [job for job in self.forge.jobs.values() if job.offered_to is not None]
        job = offered[number % len(offered)]
        assert job.offered_to is not None
        self.forge.accept(self.forge.authenticate(job.offered_to.token), job.job_id)

    @precondition(lambda self: any(runner.busy for runner in self.forge.runners.values()))
    @rule(number=PICK, conclusion=st.sampled_from([Conclusion.SUCCESS, Conclusion.FAILURE]))
    def a_runner_completes(self, number: int, conclusion: Conclusion) -> None:
        busy = [runner for runner in self.forge.runners.values() if runner.busy]
        runner = busy[number % len(busy)]
        assert runner.job is not None
        self.forge.complete(runner, runner.job.job_id, conclusion)

    @rule(number=PICK)
    def job_is_cancelled(self, number: int) -> None:
        for job in list(self.forge.jobs.values())[number : number + 1]:
            with contextlib.suppress(NimbusError):
                self.forge.cancel(job.job_id)

    @rule(number=PICK, failed_only=st.booleans())
    def run_is_run_again(self, number: int, failed_only: bool) -> None:
        for run_id in list(self.forge.runs)[number : number + 1]:
            with contextlib.suppress(NimbusError):
                self.forge.rerun(run_id, failed_only=failed_only)

    @rule(seconds=st.sampled_from([1.0, 61.0, 301.0, 601.0, 86_401.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.forge.sweep()

    @rule()
    def the_sim_is_killed_and_comes_back(self) -> None:
        before = self.render(self.forge)
        recalled, last_id = parse_world(before), self.forge.last_id
        self.forge = self.open_forge()
        self.forge.take_up(last_id, recalled.runs, recalled.runners)
        assert self.render(self.forge) == before
        assert self.forge.last_id >= last_id

    def render(self, forge: Forge) -> bytes:
        header = Header(FORMAT, forge.owner, 0)  # ids may go up with the clock and never down
        return self.pen.render(header, forge.runners.values(), forge.runs.values(), [])

    @invariant()
    def what_the_pen_remembers_is_what_it_would_write_anew(self) -> None:
        remembered, self.pen = self.render(self.forge), Pen()
        assert self.render(self.forge) == remembered

    @invariant()
    def no_runner_has_two_jobs_and_no_job_two_runners(self) -> None:
        held = [job for job in self.forge.jobs.values() if job.state is JobState.IN_PROGRESS]
        assert {id(job.runner) for job in held} == {id(r) for r in self.forge.runners.values() if r.busy}
        assert len({id(job.runner) for job in held}) == len(held)
        offered = [job.offered_to for job in self.forge.jobs.values() if job.offered_to is not None]
        assert len({id(runner) for runner in offered}) == len(offered)

    @invariant()
    def an_offer_is_to_a_registered_idle_runner_with_all_labels(self) -> None:
        for job in self.forge.jobs.values():
            if job.offered_to is not None:
                assert job.state is JobState.QUEUED
                assert job.offered_to.runner_id in self.forge.runners
                assert not job.offered_to.busy
                assert runner_serves(job.offered_to.labels, job.spec.labels)

    @invariant()
    def a_runner_that_ran_a_completed_job_is_gone(self) -> None:
        for job in self.forge.jobs.values():
            if job.state is JobState.COMPLETED and job.runner is not None:
                assert job.runner.runner_id not in self.forge.runners

    @invariant()
    def each_job_is_told_of_in_order_and_once(self) -> None:
        for actions in self.told.values():
            ranks = [RANK[JobState(action)] for action in actions]
            assert ranks == sorted(set(ranks))

    @invariant()
    def a_job_and_a_runner_agree_on_the_offer(self) -> None:
        offers = {(id(job), id(job.offered_to)) for job in self.forge.jobs.values() if job.offered_to is not None}
        runners = self.forge.runners.values()
        assert offers == {(id(runner.offered), id(runner)) for runner in runners if runner.offered is not None}

    @invariant()
    def every_attempt_holds_each_job_of_the_workflow_once(self) -> None:
        for run in self.forge.runs.values():
            for attempt in range(1, run.attempt + 1):
                assert [job.spec.key for job in run.jobs_of(attempt)] == [job.spec.key for job in run.jobs]
                assert all(job.attempt <= attempt for job in run.jobs_of(attempt))

    @invariant()
    def a_completed_job_has_a_conclusion_and_no_other_has_one(self) -> None:
        for job in self.forge.jobs.values():
            assert (job.conclusion is not None) == (job.state is JobState.COMPLETED)


TestForgeModel = ForgeMachine.TestCase
TestForgeModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
