"""The jobs of a storm: what each does, how long, and how it must end. Pure, and the same for the same seed.

Each job beats into the witness from outside the product (marks.py), whatever the product says. Called by storm.py.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.gate import GATEWAY, GUEST_PORT

BEAT_S = 0.1
TOO_LONG_S = 120.0  # for a job that is to be ended by somebody else
SHORTEST_S = 1.0
_PROGRAM = Path(__file__).with_name("beating_job.py")


@dataclass(frozen=True)
class JobPlan:
    """One job and its end, which is known before it begins."""

    number: int
    lasts_s: float
    exit_code: int = 0
    deaf: bool = False  # ignores SIGTERM
    talks: bool = False  # prints a numbered line at each beat
    timeout_s: float | None = None
    cancel_after_s: float | None = None  # of work

    @property
    def beats(self) -> int:
        return round(self.lasts_s / BEAT_S)

    @property
    def conclusion(self) -> str:
        """What must become of it."""
        if self.cancel_after_s is not None:
            return "cancelled"
        if self.timeout_s is not None:
            return "timed_out"
        return "failure" if self.exit_code else "success"

    @property
    def ends_by_itself(self) -> bool:
        return self.cancel_after_s is None and self.timeout_s is None

    @property
    def output(self) -> list[str]:
        """Each line of a whole run."""
        return [f"line {number}" for number in range(self.beats)] if self.talks else []


def plan_jobs(count: int, longest_s: float, rng: random.Random) -> list[JobPlan]:
    """Most end by themselves, well or not; some are cancelled, some run out of time."""
    return [_plan_job(number, longest_s, rng) for number in range(1, count + 1)]


def _plan_job(number: int, longest_s: float, rng: random.Random) -> JobPlan:
    kind, lasts_s = rng.random(), rng.uniform(SHORTEST_S, longest_s)
    exit_code, limit_s = rng.randint(1, 100), rng.uniform(1.0, 4.0)
    deaf, talks = rng.random() < 0.3, rng.random() < 0.6
    if kind < 0.08:
        return JobPlan(number, TOO_LONG_S, deaf=deaf, talks=talks, cancel_after_s=limit_s)
    if kind < 0.14:
        return JobPlan(number, TOO_LONG_S, deaf=deaf, talks=talks, timeout_s=limit_s)
    return JobPlan(number, lasts_s, exit_code if kind > 0.8 else 0, deaf, talks)


def command_of(plan: JobPlan, backend: str, marks: Path) -> list[str]:
    """What is submitted. A double of a guest writes its marks itself; a guest tells them to a port of the host."""
    if backend == "qemu":
        return ["/bin/sh", "-c", _shell_line(plan)]
    words = (marks, plan.number, plan.beats, plan.exit_code, int(plan.deaf), int(plan.talks))
    return [sys.executable, "-I", "-S", str(_PROGRAM.resolve()), *(str(word) for word in words)]


def _shell_line(plan: JobPlan) -> str:
    """Ends when its marks were received: a VM that is off sends no last word."""
    trap = "trap '' TERM; " if plan.deaf else ""
    say = "echo line $n >&3; " if plan.talks else ""
    loop = f"n=0; while [ $n -lt {plan.beats} ]; do echo beat; {say}n=$((n+1)); sleep {BEAT_S:g}; done"
    marks = f"{{ echo {plan.number}; {loop}; echo end; }} | nc {GATEWAY} {GUEST_PORT} >/dev/null"
    return f"{trap}exec 3>&1; {marks}; exit {plan.exit_code}"
