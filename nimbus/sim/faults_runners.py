"""What a bad day makes of runners: stolen, lost, dropped, busy when they are not, listed late.

Forges ask it where GitHub would be in two minds about a runner, the list of runners where GitHub lags behind itself.
It acts only through a forge's own verbs and throws no dice: `faults.py` says what strikes whom. `world.py` attaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from nimbus.sim.faults import Faults, RunnerFate
from nimbus.sim.forge import Forge
from nimbus.sim.jobs import Runner
from nimbus.sim.workflow import JobSpec, StepSpec, Workflow

_STEP = StepSpec("only", "exit 0", {}, "success")


class BadRunners:
    """All forges of one world."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._forges: list[Forge] = []
        self._struck: set[tuple[str, int]] = set()  # what happens to a runner once, and has
        self._refused_since_s: dict[int, float] = {}

    def attach(self, forge: Forge, repo: str) -> None:
        """Strike this forge's runners; `repo` is where a foreign job for an organisation's runner is started."""
        self._forges.append(forge)
        forge.before_online = partial(self._before_online, forge, repo)
        forge.before_accept = self._before_accept
        forge.before_delete = partial(self._before_delete, forge, repo)

    def sweep(self) -> None:
        """Drop those who were idle for too long, and forget those who are gone."""
        idle_s = self._faults.plan.runners.idle_dropped_s
        for forge in self._forges:
            for runner in list(forge.runners.values()):
                idle = runner.online and not runner.busy and runner.offered is None
                if idle and forge.now_s() - (runner.online_at_s or 0.0) > idle_s and self._fate(runner).idle_dropped:
                    self._faults.count("runners.idle_dropped")
                    forge.drop(runner)
        known = frozenset(runner_id for forge in self._forges for runner_id in forge.runners)
        self._faults.forget_runners(known)
        self._struck = {(kind, runner_id) for kind, runner_id in self._struck if runner_id in known}
        self._refused_since_s = {each: since_s for each, since_s in self._refused_since_s.items() if each in known}

    def seen(self, runners: Iterable[Runner], now_s: float) -> list[Runner]:
        """The runners as the list shows them now."""
        shown = []
        for runner in runners:
            fate = self._fate(runner)
            if fate.listed_late and now_s - runner.registered_at_s < fate.list_lag_s:
                self._once("listed_late", runner)
            elif fate.listed_offline and runner.online and now_s - (runner.online_at_s or now_s) < fate.list_lag_s:
                self._once("listed_offline", runner)
                shown.append(replace(runner, online=False))
            else:
                shown.append(runner)
        return shown

    # -- what the forges ask ----------------------------------------------------------------------

    def _before_online(self, forge: Forge, repo: str, runner: Runner) -> None:
        if self._fate(runner).stolen and _steal(forge, repo, runner):
            self._once("stolen", runner)

    def _before_accept(self, runner: Runner) -> bool:
        """Whether the offer still stands."""
        return not (self._fate(runner).assignment_lost and self._once("assignment_lost", runner))

    def _before_delete(self, forge: Forge, repo: str, runner: Runner) -> bool:
        """Whether it is as idle as it seems."""
        fate, now_s = self._fate(runner), forge.now_s()
        taken = ("taken_before_delete", runner.runner_id) in self._struck
        if taken and runner.offered is not None:
            return False
        if fate.taken_before_delete and not taken and runner.online:
            self._once("taken_before_delete", runner)
            if runner.offered is not None or _steal(forge, repo, runner):
                return False
        if fate.busy_refused:
            since_s = self._refused_since_s.setdefault(runner.runner_id, now_s)
            if now_s - since_s < self._faults.plan.runners.busy_refused_s:
                self._once("busy_refused", runner)
                return False
        return True

    # -- inside -----------------------------------------------------------------------------------

    def _fate(self, runner: Runner) -> RunnerFate:
        return self._faults.runner(runner.runner_id)

    def _once(self, kind: str, runner: Runner) -> bool:
        """True the first time, which is counted."""
        key = (kind, runner.runner_id)
        if key in self._struck:
            return False
        self._struck.add(key)
        self._faults.count(f"runners.{kind}")
        return True


def _steal(forge: Forge, repo: str, runner: Runner) -> bool:
    """Start a job for which nobody made this runner, and give it to it before any other; not where nothing runs."""
    name = runner.scope.partition("/")[2] or repo
    if name.lower() in forge.archived:
        return False
    spec = JobSpec("foreign", "foreign", runner.labels[:1], None, (_STEP,))  # with fewer labels, where it has several
    forge.start_run(Workflow("somebody else's", (spec,)), name, runner)
    return True
