"""GitHub's limits, held by us: how many calls at once, points a minute, the hourly quota, and "slow down".

One `Lane` for each installation, shared by every caller in this process (facts 5.6). It knows nothing of HTTP:
`github/transport.py` enters it before a call and tells it what the answer said. A caller waits here for a few
seconds at most; what takes longer is a ForgeTrouble that says when. Calls for runners go before calls that repair,
and a share of everything is theirs alone: a poll never starves a registration.
"""

from __future__ import annotations

import enum
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from nimbus.control_plane.github.answers import LIMITED_S, LONGEST_LIMIT_S, Answer
from nimbus.model.forge import ForgeTrouble, Problem, ProblemKind

MINUTE_S = 60.0
READ_POINTS, WRITE_POINTS = 1, 5  # as GitHub counts them
LONGEST_PENALTY_S = 900.0  # of our own doubling; GitHub may name a longer one
LEAST_WAIT_S = 0.001  # a wait that rounding made nothing of must still end later than now
SPREAD_S = 5.0
SAME_WINDOW_S = 5.0  # GitHub's reset times for one window differ by a second or two


class Purpose(enum.StrEnum):
    """Why a call is made, and so who goes first."""

    RUNNERS = "runners"  # a guest or a slot waits for it
    REPAIR = "repair"  # it can wait: lists, polls, redelivery


@dataclass(frozen=True)
class LimitTerms:
    """What we allow ourselves."""

    places: int = 20  # calls at once; GitHub's limit is 100 for the App's every process
    points_per_minute: int = 900
    reserve: float = 0.1  # the share of places, points and quota that is kept for runners
    patience_s: float = 5.0  # a caller waits no longer than this
    owner_retry_s: float = 300.0  # before a refusal that an owner must end is asked about again
    penalty_s: float = LIMITED_S  # of silence where GitHub limits us and names no time; it doubles


@dataclass(frozen=True)
class Quota:
    """The hourly quota, as the last answer told it."""

    limit: int
    remaining: int
    reset_at_s: float


@dataclass(frozen=True)
class Entrance:
    """Who asks to go in: for what, and at which price."""

    purpose: Purpose
    points: int


@dataclass(eq=False)
class _Turn:
    """One caller in the queue; `called` is set when it should look again."""

    entrance: Entrance
    called: trio.Event = field(default_factory=trio.Event)


class Budget:
    """What one installation may still spend. Pure but for the clocks: elapsed seconds are passed in."""

    def __init__(self, terms: LimitTerms, now_s: Callable[[], float], chance: random.Random) -> None:
        self._terms = terms
        self._now_s = now_s
        self._chance = chance
        self._spent: deque[tuple[float, int]] = deque()
        self._points = 0
        self._quota: Quota | None = None
        self._quota_ends_s = 0.0  # elapsed
        self._silence_ends_s = 0.0  # elapsed; nobody calls before
        self._silenced_at_s = -math.inf
        self._penalties = 0
        self._silencer = Problem(ProblemKind.SECONDARY_LIMIT, "", LIMITED_S)

    @property
    def quota(self) -> Quota | None:
        """None before the first answer and after the reset."""
        return self._quota if self._quota is not None and self._quota.reset_at_s > self._now_s() else None

    def spend(self, points: int, elapsed_s: float) -> None:
        self._spent.append((elapsed_s, points))
        self._points += points

    def check(self, entrance: Entrance, inside: int, elapsed_s: float) -> Problem | None:
        """None where the call may be made now; else why not, and after how long it is worth another look."""
        if elapsed_s < self._silence_ends_s:
            return replace(self._silencer, retry_after_s=max(LEAST_WAIT_S, self._silence_ends_s - elapsed_s))
        repair = entrance.purpose is Purpose.REPAIR
        quota = self.quota
        if quota is not None and elapsed_s < self._quota_ends_s:
            floor = math.ceil(quota.limit * self._terms.reserve) if repair else 0
            if quota.remaining - inside <= floor:
                said = f"{quota.remaining} of {quota.limit} calls are left in this hour"
                wait_s = max(LEAST_WAIT_S, self._quota_ends_s - elapsed_s)
                return Problem(ProblemKind.RATE_LIMIT, said, wait_s, ours=quota.remaining > 0)
        self._forget_spent(elapsed_s)
        points = self._terms.points_per_minute
        if repair:
            points = max(entrance.points, math.floor(points * (1 - self._terms.reserve)))
        if self._points + entrance.points > points:
            wait_s = self._frees_points_s(self._points + entrance.points - points, elapsed_s)
            said = f"our own limit of {points} points a minute"
            return Problem(ProblemKind.SECONDARY_LIMIT, said, wait_s, ours=True)
        return None

    def hear_quota(self, answer: Answer, elapsed_s: float) -> None:
        """Keep what the limit headers say; answers overtake each other, so within one window the least counts."""
        told = [answer.seconds(f"x-ratelimit-{name}") for name in ("limit", "remaining", "reset")]
        if None in told or answer.headers.get("x-ratelimit-resource", "core") != "core":
            return
        limit, remaining, reset_at_s = (value or 0.0 for value in told)
        window_s = reset_at_s - self._now_s()
        known = self.quota
        if known is not None and known.limit == limit and abs(known.reset_at_s - reset_at_s) <= SAME_WINDOW_S:
            remaining = min(remaining, known.remaining)
        self._quota = Quota(int(limit), int(remaining), reset_at_s)
        self._quota_ends_s = elapsed_s + min(max(window_s, 0.0), LONGEST_LIMIT_S)

    @property
    def on_trial(self) -> bool:
        """Since GitHub said "slow down", no call went well: one alone tries before the others follow."""
        return self._penalties > 0

    def hear_limit(self, problem: Problem, told: bool, sent_at_s: float, elapsed_s: float) -> bool:
        """GitHub said "slow down". False for an answer to a call that was under way at the first such word.

        `told`: GitHub named the time itself. Else it doubles with each time in a row.
        """
        first = sent_at_s >= self._silenced_at_s or self._penalties == 0
        self._penalties += int(first)
        self._silenced_at_s = elapsed_s
        wait_s = problem.retry_after_s
        if not told:
            wait_s = min(self._terms.penalty_s * 2.0 ** min(self._penalties - 1, 10), LONGEST_PENALTY_S)
        # other processes of ours were told the same: not all in the same moment
        wait_s += min(0.1 * wait_s, SPREAD_S) * self._chance.random()
        self._silence_ends_s = max(self._silence_ends_s, elapsed_s + wait_s)
        self._silencer = problem
        return first

    def hear_success(self, sent_at_s: float) -> None:
        """A call that began after the silence met no limit: the next one starts from the beginning."""
        if sent_at_s >= self._silence_ends_s:
            self._penalties = 0

    def _forget_spent(self, elapsed_s: float) -> None:
        while self._spent and self._spent[0][0] <= elapsed_s - MINUTE_S:
            self._points -= self._spent.popleft()[1]

    def _frees_points_s(self, wanted: int, elapsed_s: float) -> float:
        """How long until at least `wanted` points are a minute old."""
        for spent_at_s, points in self._spent:
            wanted -= points
            if wanted <= 0:
                return max(LEAST_WAIT_S, spent_at_s + MINUTE_S - elapsed_s)
        return MINUTE_S


class Lane:
    """The way in to GitHub for one installation. Elapsed time is Trio's, which tests may replace."""

    def __init__(self, terms: LimitTerms, now_s: Callable[[], float], chance: random.Random) -> None:
        self._terms = terms
        self._repair_places = max(1, min(terms.places - 1, math.floor(terms.places * (1 - terms.reserve))))
        self._inside = dict.fromkeys(Purpose, 0)
        self._queues: dict[Purpose, deque[_Turn]] = {purpose: deque() for purpose in Purpose}
        self.budget = Budget(terms, now_s, chance)

    @property
    def inside(self) -> int:
        """Calls under way."""
        return sum(self._inside.values())

    @asynccontextmanager
    async def place(self, entrance: Entrance) -> AsyncIterator[None]:
        """A place for one call, for as long as the body runs. ForgeTrouble where that would take too long."""
        await self._enter(entrance)
        try:
            yield
        finally:
            self._inside[entrance.purpose] -= 1
            self._call_next()

    async def _enter(self, entrance: Entrance) -> None:
        turn, queue = _Turn(entrance), self._queues[entrance.purpose]
        give_up_s = trio.current_time() + self._terms.patience_s
        queue.append(turn)
        try:
            await trio.lowlevel.checkpoint()
            while True:
                problem = self.budget.check(entrance, self.inside, trio.current_time())
                if problem is None and self._is_turn(turn):
                    break
                await self._wait(turn, problem, give_up_s)
            self._inside[entrance.purpose] += 1
            self.budget.spend(entrance.points, trio.current_time())
        finally:
            queue.remove(turn)
            self._call_next()

    async def _wait(self, turn: _Turn, problem: Problem | None, give_up_s: float) -> None:
        """Until another look is worth it: a time that is known, or somebody leaves."""
        if problem is None:
            said = f"our own limit of {self._terms.places} calls at once"
            problem = Problem(ProblemKind.SECONDARY_LIMIT, said, self._terms.patience_s, ours=True)
            look_again_s = give_up_s
        else:
            look_again_s = trio.current_time() + problem.retry_after_s
        if look_again_s > give_up_s or trio.current_time() >= give_up_s:
            raise ForgeTrouble(problem)
        with trio.move_on_at(look_again_s):
            await turn.called.wait()
        turn.called = trio.Event()

    def _is_turn(self, turn: _Turn) -> bool:
        purpose = turn.entrance.purpose
        places = 1 if self.budget.on_trial else self._terms.places
        if self.inside >= places or self._queues[purpose][0] is not turn:
            return False
        if purpose is Purpose.RUNNERS:
            return True
        return not self._queues[Purpose.RUNNERS] and self._inside[purpose] < self._repair_places

    def _call_next(self) -> None:
        for queue in self._queues.values():
            if queue:
                queue[0].called.set()
