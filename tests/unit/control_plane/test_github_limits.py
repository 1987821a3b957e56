"""GitHub's limits are held for all callers of an installation, and a call that repairs never starves one for a runner.

Time is virtual here: Trio's clock jumps, and GitHub's clock goes with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.control_plane.github.answers import Answer
from nimbus.control_plane.github.limits import (
    LONGEST_PENALTY_S,
    SPREAD_S,
    Budget,
    Entrance,
    Lane,
    LimitTerms,
    Purpose,
    Quota,
)
from nimbus.model.forge import ForgeTrouble, Problem, ProblemKind

START_S = 1_800_000_000.0
MINT = Entrance(Purpose.RUNNERS, 5)
LOOK = Entrance(Purpose.RUNNERS, 1)
POLL = Entrance(Purpose.REPAIR, 1)
SLOW_DOWN = Problem(ProblemKind.SECONDARY_LIMIT, "You have exceeded a secondary rate limit", 60.0)


def budget(**terms: float) -> Budget:
    return Budget(LimitTerms(**terms), lambda: START_S, random.Random(1))  # type: ignore[arg-type]


def told(limit: int, remaining: int, reset_at_s: float, **more: str) -> Answer:
    headers = {"limit": str(limit), "remaining": str(remaining), "reset": str(int(reset_at_s))} | more
    return Answer(200, {f"x-ratelimit-{name}": value for name, value in headers.items()}, b"")


def refusal(of: Budget, entrance: Entrance, elapsed_s: float, inside: int = 0) -> Problem:
    problem = of.check(entrance, inside, elapsed_s)
    assert problem is not None
    return problem


# -- points -------------------------------------------------------------------------------------------------------


def test_180_registrations_go_in_a_minute_and_the_next_when_the_first_is_a_minute_old() -> None:
    mine = budget(reserve=0.1)
    for number in range(180):
        assert mine.check(MINT, 0, number / 10) is None
        mine.spend(5, number / 10)
    problem = refusal(mine, MINT, 18.0)
    assert problem.kind is ProblemKind.SECONDARY_LIMIT
    assert problem.retry_after_s == pytest.approx(42.0)
    assert mine.check(MINT, 0, 60.0) is None
    assert refusal(mine, POLL, 60.0).retry_after_s > 0, "polls leave a tenth to the runners"


def test_polls_stop_at_the_reserve_and_registrations_go_on() -> None:
    mine = budget(points_per_minute=100, reserve=0.1)
    for _ in range(90):
        assert mine.check(POLL, 0, 0.0) is None
        mine.spend(1, 0.0)
    assert mine.check(POLL, 0, 0.0) is not None
    assert mine.check(MINT, 0, 0.0) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from([MINT, LOOK, POLL])), max_size=300))
def test_no_minute_ever_costs_more_than_its_points(steps: list[tuple[float, Entrance]]) -> None:
    mine, elapsed_s, spent = budget(points_per_minute=40), 0.0, []
    for pause_s, entrance in steps:
        elapsed_s += pause_s
        problem = mine.check(entrance, 0, elapsed_s)
        if problem is not None:
            # what it says is true: after that time the same call goes, if nobody else's came between
            elapsed_s += problem.retry_after_s
            assert mine.check(entrance, 0, elapsed_s) is None
        mine.spend(entrance.points, elapsed_s)
        spent.append((elapsed_s, entrance.points))
        assert sum(points for at_s, points in spent if at_s > elapsed_s - 59.9) <= 40


# -- the hourly quota ---------------------------------------------------------------------------------------------


def test_an_unknown_quota_stops_nobody_and_a_told_one_is_shown() -> None:
    mine = budget()
    assert mine.quota is None
    assert mine.check(POLL, 0, 0.0) is None
    mine.hear_quota(told(5000, 4000, START_S + 1800), 0.0)
    assert mine.quota == Quota(5000, 4000, START_S + 1800)


def test_polls_leave_the_reserve_of_the_hour_to_registrations() -> None:
    mine = budget(reserve=0.1)
    mine.hear_quota(told(5000, 501, START_S + 1800), 0.0)
    assert mine.check(POLL, 0, 0.0) is None
    problem = refusal(mine, POLL, 0.0, inside=1)  # the one under way is not counted by GitHub yet
    assert (problem.kind, problem.retry_after_s) == (ProblemKind.RATE_LIMIT, 1800.0)
    assert mine.check(MINT, 20, 0.0) is None
    assert problem.ours, "GitHub refused nothing"


def test_at_nothing_left_nobody_calls_until_the_reset() -> None:
    mine = budget()
    mine.hear_quota(told(5000, 0, START_S + 1800), 0.0)
    for entrance in (MINT, POLL):
        assert refusal(mine, entrance, 600.0).retry_after_s == pytest.approx(1200.0)
        assert not refusal(mine, entrance, 600.0).ours
        assert mine.check(entrance, 0, 1800.0) is None


def test_an_answer_that_was_overtaken_does_not_raise_what_is_left() -> None:
    mine = budget()
    mine.hear_quota(told(5000, 10, START_S + 1800), 0.0)
    mine.hear_quota(told(5000, 12, START_S + 1801), 0.0)
    assert mine.quota is not None
    assert mine.quota.remaining == 10
    mine.hear_quota(told(5000, 4999, START_S + 5400), 0.0)  # the next hour
    assert mine.quota.remaining == 4999
    mine.hear_quota(told(12500, 12000, START_S + 5400), 0.0)  # the organisation has grown
    assert mine.quota.limit == 12500


def test_headers_that_are_none_or_another_resources_change_nothing() -> None:
    mine = budget()
    mine.hear_quota(told(5000, 4000, START_S + 1800), 0.0)
    mine.hear_quota(told(30, 0, START_S + 60, resource="search"), 0.0)
    mine.hear_quota(Answer(200, {"x-ratelimit-remaining": "0"}, b""), 0.0)
    mine.hear_quota(Answer(200, {f"x-ratelimit-{n}": "much" for n in ("limit", "remaining", "reset")}, b""), 0.0)
    assert mine.quota == Quota(5000, 4000, START_S + 1800)


# -- "slow down" --------------------------------------------------------------------------------------------------


def test_github_names_the_time_and_nobody_calls_before_it() -> None:
    mine = budget()
    mine.hear_limit(Problem(ProblemKind.SECONDARY_LIMIT, "slow down", 17.0), True, 0.0, 1.0)
    for entrance in (MINT, LOOK, POLL):
        problem = refusal(mine, entrance, 17.9)
        assert (problem.kind, problem.said) == (ProblemKind.SECONDARY_LIMIT, "slow down")
        assert mine.check(entrance, 0, 18.0 + SPREAD_S) is None


def test_without_a_time_it_doubles_from_a_minute_up_to_a_quarter_of_an_hour() -> None:
    mine, elapsed_s = budget(), 0.0
    for number in range(8):
        mine.hear_limit(SLOW_DOWN, False, elapsed_s, elapsed_s)
        wait_s = refusal(mine, MINT, elapsed_s).retry_after_s
        least_s = min(60.0 * 2**number, LONGEST_PENALTY_S)
        assert least_s <= wait_s <= least_s + SPREAD_S
        elapsed_s += wait_s
    mine.hear_success(elapsed_s)
    mine.hear_limit(SLOW_DOWN, False, elapsed_s, elapsed_s)
    assert refusal(mine, MINT, elapsed_s).retry_after_s <= 60.0 + SPREAD_S


def test_twenty_answers_to_one_burst_are_one_penalty() -> None:
    mine = budget()
    for number in range(20):
        mine.hear_limit(SLOW_DOWN, False, 0.0, 1.0 + number / 100)
    assert refusal(mine, MINT, 1.2).retry_after_s <= 60.0 + SPREAD_S


def test_a_success_of_a_call_from_before_the_silence_forgives_nothing() -> None:
    mine = budget()
    mine.hear_limit(SLOW_DOWN, False, 0.0, 1.0)
    mine.hear_success(0.5)
    mine.hear_limit(SLOW_DOWN, False, 80.0, 81.0)
    assert refusal(mine, MINT, 81.0).retry_after_s >= 120.0


# -- the way in ---------------------------------------------------------------------------------------------------


class Crowd:
    """Callers of one lane; it remembers in which order they came in, and how many were inside at most."""

    def __init__(self, **terms: float) -> None:
        self.lane = Lane(LimitTerms(**terms), lambda: START_S + trio.current_time(), random.Random(1))  # type: ignore[arg-type]
        self.entered: list[str] = []
        self.refused: list[str] = []
        self.most = dict.fromkeys(Purpose, 0)
        self._inside = dict.fromkeys(Purpose, 0)

    async def visit(self, name: str, entrance: Entrance, stay_s: float = math.inf) -> None:
        try:
            async with self.lane.place(entrance):
                self.entered.append(name)
                self._inside[entrance.purpose] += 1
                self.most[entrance.purpose] = max(self.most[entrance.purpose], self._inside[entrance.purpose])
                try:
                    await trio.sleep(stay_s)
                finally:
                    self._inside[entrance.purpose] -= 1
        except ForgeTrouble:
            self.refused.append(name)


@pytest.fixture
def start(nursery: trio.Nursery) -> Callable[..., Awaitable[None]]:
    async def start(function: Callable[..., Awaitable[None]], *args: object) -> None:
        nursery.start_soon(function, *args)
        await trio.testing.wait_all_tasks_blocked()

    return start


Start = Callable[..., Awaitable[None]]


async def test_no_more_are_inside_than_there_are_places(autojump_clock: trio.testing.MockClock, start: Start) -> None:
    crowd = Crowd(places=4, patience_s=1000.0)
    for number in range(40):
        await start(crowd.visit, f"{number}", LOOK, 1.0)
    await trio.sleep(20)
    assert crowd.most[Purpose.RUNNERS] == 4
    assert crowd.entered == [f"{number}" for number in range(40)], "first come, first served"


async def test_polls_never_take_the_last_place(autojump_clock: trio.testing.MockClock, start: Start) -> None:
    crowd = Crowd(places=4, reserve=0.25)
    for number in range(4):
        await start(crowd.visit, f"poll {number}", POLL)
    assert crowd.entered == ["poll 0", "poll 1", "poll 2"]
    await start(crowd.visit, "mint", MINT)
    assert crowd.entered[-1] == "mint"


async def test_a_registration_that_waits_goes_before_polls_that_waited_longer(
    autojump_clock: trio.testing.MockClock, start: Start
) -> None:
    crowd = Crowd(places=2, reserve=0.0, patience_s=100.0)
    for number in range(2):
        await start(crowd.visit, f"look {number}", LOOK, 10.0)
    await start(crowd.visit, "poll", POLL, 1.0)
    await start(crowd.visit, "mint", MINT, 1.0)
    await trio.sleep(20)
    assert crowd.entered == ["look 0", "look 1", "mint", "poll"]


async def test_patience_ends_and_the_next_in_the_queue_gets_its_turn(
    autojump_clock: trio.testing.MockClock, start: Start
) -> None:
    crowd = Crowd(places=2, patience_s=5.0)
    await start(crowd.visit, "a", LOOK, 6.0)
    await start(crowd.visit, "b", LOOK, 6.0)
    await start(crowd.visit, "impatient", LOOK)
    await trio.sleep(4.0)
    await start(crowd.visit, "next", LOOK)
    await trio.sleep(3.0)
    assert (crowd.entered, crowd.refused) == (["a", "b", "next"], ["impatient"])


async def test_a_wait_that_is_too_long_is_refused_at_once_and_a_short_one_is_waited_for(
    autojump_clock: trio.testing.MockClock, start: Start
) -> None:
    crowd = Crowd(patience_s=5.0)
    now_s = trio.current_time()
    crowd.lane.budget.hear_limit(Problem(ProblemKind.SECONDARY_LIMIT, "slow down", 4.0), True, now_s, now_s)
    await start(crowd.visit, "short", MINT)
    assert crowd.entered == []
    await trio.sleep(4.5)
    assert crowd.entered == ["short"]
    now_s = trio.current_time()
    crowd.lane.budget.hear_limit(Problem(ProblemKind.SECONDARY_LIMIT, "slow down", 30.0), True, now_s, now_s)
    for number in range(5):
        await start(crowd.visit, f"long {number}", MINT)
    assert len(crowd.refused) == 5


async def test_a_caller_in_the_queue_hears_of_a_slow_down_that_came_meanwhile(
    autojump_clock: trio.testing.MockClock, start: Start
) -> None:
    crowd = Crowd(places=2, patience_s=50.0)
    for number in range(2):
        await start(crowd.visit, f"look {number}", LOOK, 1.0)
    await start(crowd.visit, "mint", MINT)
    now_s = trio.current_time()
    crowd.lane.budget.hear_limit(SLOW_DOWN, False, now_s, now_s)
    await trio.sleep(2.0)
    assert (crowd.entered, crowd.refused) == (["look 0", "look 1"], ["mint"])


async def test_after_a_silence_one_call_goes_first_and_the_others_follow_when_it_went_well(
    autojump_clock: trio.testing.MockClock, start: Start
) -> None:
    crowd = Crowd(places=20, patience_s=100.0)
    crowd.lane.budget.hear_limit(Problem(ProblemKind.SECONDARY_LIMIT, "slow down", 4.0), True, 0.0, 0.0)
    for number in range(10):
        await start(crowd.visit, f"{number}", MINT, 10.0)
    await trio.sleep(9)
    assert crowd.entered == ["0"]
    crowd.lane.budget.hear_success(trio.current_time())
    await trio.sleep(10)
    assert len(crowd.entered) == 10


async def test_a_cancelled_caller_gives_back_its_turn_and_its_place(
    autojump_clock: trio.testing.MockClock, start: Start
) -> None:
    crowd = Crowd(places=2, patience_s=1000.0)
    await start(crowd.visit, "stays", LOOK)
    for _ in range(3):
        with trio.move_on_after(1.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crowd.visit, "inside", LOOK)
                nursery.start_soon(crowd.visit, "waiting", LOOK)
    assert crowd.lane.inside == 1
    await start(crowd.visit, "last", LOOK, 1.0)
    assert crowd.entered[-1] == "last"


async def test_a_storm_of_polls_slows_no_registration(autojump_clock: trio.testing.MockClock, start: Start) -> None:
    crowd = Crowd(places=20, reserve=0.1)
    for number in range(1000):
        await start(crowd.visit, f"poll {number}", POLL, 0.5)
    began_s = trio.current_time()
    async with trio.open_nursery() as minting:
        for number in range(18):
            minting.start_soon(crowd.visit, f"mint {number}", MINT, 0.5)
    assert trio.current_time() - began_s <= 6.0
    assert not [name for name in crowd.refused if name.startswith("mint")]
