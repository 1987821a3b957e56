"""A storm while it lasts: jobs go in, processes are killed and come back, and what the API says is looked at.

Judges nothing (aftermath.py does) and starts nothing that it was not given. One thread does it all, because a process
ends with the thread that started it. Called by storm.py.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.fleet import Agent, Fleet
from tests.acceptance.stack import Json
from tests.faults.office import Office
from tests.faults.reckoning import PLANE
from tests.faults.victims import Victim
from tests.faults.workload import JobPlan, command_of

IN_FLIGHT = 12  # jobs that are submitted and have not ended: enough for every host to be busy
LOOK_S = 0.5
OVERTIME_S = 5.0  # between two kills beyond those that were asked for: a process takes seconds to stand again
TICK_S = 0.05
SETTLE_S = 120.0  # for the last outputs and records, once every job has ended
ENDED = frozenset({"completed", "lost"})


@dataclass(frozen=True)
class StormOrder:
    """What is asked for."""

    jobs: int
    backend: str
    every_s: float
    kills: int
    seed: int

    @property
    def limit_s(self) -> float:
        """Far beyond what it takes: two cores may be shared."""
        return 300 + 6 * self.every_s * self.kills * 3 + 15 * self.jobs


@dataclass
class Storm:
    """The storm while it lasts."""

    order: StormOrder
    fleet: Fleet
    office: Office
    victims: list[Victim]
    marks: Path
    rng: random.Random
    plans: list[JobPlan]
    job_ids: dict[int, int] = field(default_factory=dict)  # by the plan's number
    jobs: dict[int, Json] = field(default_factory=dict)  # as last seen
    cancel_at: dict[int, float] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
    took_s: float = 0.0

    def rage(self) -> None:
        """Until enough was killed and every job has ended."""
        next_kill = self.began + self.order.every_s
        next_look = self.began
        while not self._is_over():
            if time.monotonic() > self.began + self.order.limit_s:
                break  # what is missing is told by the reckoning
            for victim in self.victims:
                victim.tend()
            self._submit()
            if time.monotonic() >= next_look:
                self.look()
                self._cancel()
                next_look = time.monotonic() + LOOK_S
            if time.monotonic() >= next_kill and self._strike():
                next_kill += self._pause_s()
            time.sleep(TICK_S)
        self.took_s = time.monotonic() - self.began

    def settle(self) -> None:
        """All processes up, every record and spool gone."""
        deadline = time.monotonic() + SETTLE_S
        for victim in self.victims:
            victim.hurry()
        while time.monotonic() < deadline:
            for victim in self.victims:
                victim.tend()
            agents = [victim.room for victim in self.victims if isinstance(victim.room, Agent)]
            left = any(agent.records() or any(agent.layout.spools.glob("*")) for agent in agents)
            if all(victim.ready for victim in self.victims) and not left:
                return
            time.sleep(TICK_S)

    def _is_over(self) -> bool:
        calm = all(victim.kills >= self.order.kills for victim in self.victims)
        return calm and len(self.jobs) == len(self.plans) and all(j["state"] in ENDED for j in self.jobs.values())

    def _submit(self) -> None:
        """Spread over the kills that are to come, so that each of them meets jobs at work."""
        if not self._plane.ready:
            return
        done = sum(min(victim.kills, self.order.kills) for victim in self.victims)
        share = done / (self.order.kills * len(self.victims))
        first = min(IN_FLIGHT, len(self.plans) // 3 + 2)
        allowed = first + round(share * (len(self.plans) - first))
        ended = sum(job["state"] in ENDED for job in self.jobs.values())
        for plan in self.plans[len(self.job_ids) : allowed]:
            if len(self.job_ids) - ended >= IN_FLIGHT:
                return
            limit = {} if plan.timeout_s is None else {"timeout_s": plan.timeout_s}
            argv = command_of(plan, self.order.backend, self.marks)
            answer = self.office.submit(
                {"argv": argv, "name": f"storm {plan.number}", "mem_mib": 192, "disk_mib": 128, **limit}
                | {"idempotency_key": f"storm-{self.order.seed}-{plan.number}"}
            )
            if answer is None:
                return
            self.job_ids[plan.number] = answer["job_id"]

    def look(self) -> None:
        """What the API says of every job now."""
        found = self.office.jobs() if self._plane.ready else None
        rows = {job["job_id"]: job for job in found or ()}
        self.jobs |= {number: rows[job_id] for number, job_id in self.job_ids.items() if job_id in rows}

    def _cancel(self) -> None:
        """Some are cancelled after a while of work; asked again where nobody answered."""
        for plan in self.plans:
            job, now = self.jobs.get(plan.number, {}), time.monotonic()
            if plan.cancel_after_s is None or job.get("state") != "in_progress" or plan.number in self.cancelled:
                continue
            due = self.cancel_at.setdefault(plan.number, now + plan.cancel_after_s)
            if now >= due and self.office.cancel(job["job_id"]) is not None:
                self.cancelled.add(plan.number)

    def _pause_s(self) -> float:
        """A quick storm is over with its last kill: from then on the jobs' ends count."""
        is_enough = all(victim.kills >= self.order.kills for victim in self.victims)
        return max(self.order.every_s, OVERTIME_S) if is_enough else self.order.every_s

    def _strike(self) -> bool:
        """One SIGKILL; False where everybody is dead already. Once each had its share, only of who stands again: a
        storm that lets nobody stand has no end.
        """
        wanting = [victim for victim in self.victims if victim.kills < self.order.kills]
        choice = [victim for victim in wanting if victim.is_up] or [v for v in self.victims if not wanting and v.ready]
        if not choice:
            return False
        victim = self.rng.choice(choice)
        away_s = victim.kill(self.rng)
        states = Counter(job["state"] for job in self.jobs.values())
        counts = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
        say(
            f"{time.monotonic() - self.began:6.1f} s  SIGKILL {victim.kills} of {victim.name},"
            f" away for {away_s:.1f} s; jobs: {counts}"
        )
        return True

    @property
    def _plane(self) -> Victim:
        return next(victim for victim in self.victims if victim.name == PLANE)


def say(line: str) -> None:
    """One line for whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
