"""The fake GitHub stays lawful on its bad days, too: the model of test_forge_model.py with its runners struck."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis.stateful import invariant, precondition, rule

from nimbus.model.errors import Conflict
from nimbus.sim.faults import Faults, parse_plan
from nimbus.sim.faults_runners import BadRunners
from nimbus.sim.forge import Forge
from tests.unit.sim.test_forge_model import PICK, ForgeMachine

RUNNERS = (
    "stolen taken_before_delete busy_refused assignment_lost idle_dropped listed_late listed_offline"  # all of them
)


class BadForgeMachine(ForgeMachine):
    """The same with every fault of a runner at three in ten."""

    def open_forge(self) -> Forge:
        forge = super().open_forge()
        rates = ", ".join(f'"{kind}": 0.3' for kind in RUNNERS.split())
        self.bad = BadRunners(Faults(parse_plan(f'{{"runners": {{{rates}}}}}')))
        self.bad.attach(forge, "hello")
        return forge

    @precondition(lambda self: any(job.offered_to for job in self.forge.jobs.values()))
    @rule(number=PICK)
    def a_runner_accepts(self, number: int) -> None:
        with contextlib.suppress(Conflict):  # it lost its job to another
            super().a_runner_accepts(number)

    @rule()
    def faults_have_their_turn(self) -> None:
        self.bad.sweep()

    @invariant()
    def the_list_shows_no_runner_that_is_not_there(self) -> None:
        shown = self.bad.seen(self.forge.runners.values(), self.now_s)
        assert {runner.runner_id for runner in shown} <= set(self.forge.runners)
        assert all(self.forge.runners[runner.runner_id].online for runner in shown if runner.online)


TestBadForgeModel = BadForgeMachine.TestCase
TestBadForgeModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
