"""A job as its forge (GitHub, or our own API) tells it. Events come late, twice and out of order.

States are ranked: an event that would move a job backwards changes nothing (facts: GitHub promises
neither order nor exactly-once). `waiting` is a job behind an environment gate: it never boots anything.
"""

from __future__ import annotations

import enum


class JobState(enum.StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    LOST = "lost"


class JobSource(enum.StrEnum):
    """Who told us of the job."""

    GITHUB = "github"
    API = "api"


class Learned(enum.StrEnum):
    """By which way a job, or a step of it, became known to us."""

    WEBHOOK = "webhook"
    REDELIVERY = "redelivery"  # a delivery that GitHub had to be asked for again
    POLL = "poll"  # nothing was delivered: we looked
    API = "api"


REPAIRS = frozenset({Learned.REDELIVERY, Learned.POLL})

RANK: dict[JobState, int] = {
    JobState.WAITING: 0,
    JobState.QUEUED: 1,
    JobState.IN_PROGRESS: 2,
    JobState.COMPLETED: 3,
    JobState.LOST: 3,
}


def merge(known: JobState | None, told: JobState) -> JobState:
    """The state after being told `told`: never a lower rank than the one known."""
    if known is None:
        return told
    return told if RANK[told] > RANK[known] else known
