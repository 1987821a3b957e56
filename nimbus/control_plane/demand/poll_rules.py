"""What a poll may ask of GitHub, and what of its answers is new: pure rules, without a call or a query.

polling.py goes by them; forge.py makes the values of the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nimbus.control_plane.github.limits import Quota
from nimbus.model.job import RANK, JobState
from nimbus.runtime.postgres import Row
from nimbus.wire.github import WorkflowJobEvent
from nimbus.wire.githubrest import RunSeen

PASSES = 10  # in one interval: a repository is looked at a tenth of it late at most
IDLE_SHARE = 0.25  # of the hourly quota, at most, goes into repositories where nothing happens
READS_A_REPO = 2  # of one without runs: those that are queued, those in progress
HOUR_S = 3600.0
_SLOWER, _SLOWEST = 0.5, 0.2  # of the quota is left: twice, and four times as slow


@dataclass(frozen=True)
class PollRules:
    """How often a repository is looked at. An interval of 0: polling is off."""

    interval_s: float = 300.0
    idle_after_s: float = 21_600.0
    idle_interval_s: float = 900.0
    reserve: float = 0.1  # of the quota: it is for runners
    max_runs: int = 200  # of one repository in one pass; the next takes those that were not looked into


def pace(quota: Quota | None, reserve: float) -> float | None:
    """How many times slower than usual an installation is polled; None for not at all."""
    if quota is None or quota.limit <= 0:
        return 1.0
    left = quota.remaining / quota.limit
    if left <= reserve:
        return None
    if left < _SLOWEST:
        return 4.0
    return 2.0 if left < _SLOWER else 1.0


def idle_room(rules: PollRules, quota: Quota | None) -> int | None:
    """How many idle repositories of an installation one pass may take: ten thousand must not eat the quota."""
    if quota is None or quota.limit <= 0:
        return None
    passes_an_hour = HOUR_S * PASSES / rules.interval_s
    return max(1, int(quota.limit * IDLE_SHARE / READS_A_REPO / passes_an_hour))


def choose_due(due: Iterable[Row], room: int | None) -> list[Row]:
    """Of the repositories that are due all active ones, and the idle ones for which there is room."""
    chosen: list[Row] = []
    idle = 0
    for row in due:
        idle += not row["active"]
        if row["active"] or room is None or idle <= room:
            chosen.append(row)
    return chosen


def plan_looks(runs: Iterable[RunSeen], looks: Mapping[tuple[int, int], float], most: int) -> list[RunSeen]:
    """Which runs to look into: those looked at longest ago, and of those never looked at the oldest."""
    distinct = {(run.run_id, run.attempt): run for run in runs}
    return sorted(distinct.values(), key=lambda run: (looks.get((run.run_id, run.attempt), 0.0), run.run_id))[:most]


def is_news(known: Row | None, event: WorkflowJobEvent) -> bool:
    """Whether an answer tells more than we know. One that is older than our knowledge never does."""
    if event.told is None:
        return False
    if known is None or RANK[event.told] > RANK[JobState(known["state"])]:
        return True
    picked_up = event.told in {JobState.IN_PROGRESS, JobState.COMPLETED}
    return picked_up and event.runner_name is not None and known["runner_name"] is None
