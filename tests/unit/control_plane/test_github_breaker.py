"""The breaker opens after five failures, lets one probe through, waits longer each time, and any answer closes it."""

from __future__ import annotations

import random

import pytest

from nimbus.control_plane.github.breaker import FAILURES, FIRST_S, LONGEST_S, Breaker, Passage
from nimbus.model.forge import ForgeTrouble, ProblemKind


def fail_times(breaker: Breaker, times: int, elapsed_s: float = 0.0) -> None:
    for _ in range(times):
        breaker.fail(breaker.enter(elapsed_s), elapsed_s)


def opened() -> Breaker:
    breaker = Breaker(random.Random(1))
    fail_times(breaker, FAILURES)
    return breaker


def test_four_failures_and_an_answer_leave_it_closed() -> None:
    breaker = Breaker(random.Random(1))
    for _ in range(10):
        fail_times(breaker, FAILURES - 1)
        breaker.enter(0.0)
        breaker.succeed()
    assert not breaker.is_open


def test_five_in_a_row_open_it_and_it_says_for_how_long() -> None:
    breaker = opened()
    with pytest.raises(ForgeTrouble) as caught:
        breaker.enter(0.0)
    assert caught.value.problem.kind is ProblemKind.OUTAGE
    assert FIRST_S / 2 <= caught.value.retry_after_s <= FIRST_S


def test_one_probe_goes_through_at_a_time() -> None:
    breaker = opened()
    assert breaker.enter(FIRST_S) is Passage.PROBE
    with pytest.raises(ForgeTrouble, match="is being tried"):
        breaker.enter(FIRST_S)
    breaker.succeed()
    assert breaker.enter(FIRST_S) is Passage.PLAIN


def test_each_failed_probe_doubles_the_wait_up_to_a_minute() -> None:
    breaker, now_s, waits = opened(), 0.0, []
    for _ in range(12):
        with pytest.raises(ForgeTrouble) as caught:
            breaker.enter(now_s)
        waits.append(caught.value.retry_after_s)
        now_s += waits[-1]
        breaker.fail(breaker.enter(now_s), now_s)
    for number, wait_s in enumerate(waits):
        longest_s = min(FIRST_S * 2**number, LONGEST_S)
        assert longest_s / 2 <= wait_s <= longest_s
    breaker.enter(now_s + LONGEST_S)
    breaker.succeed()
    fail_times(breaker, FAILURES, now_s)
    with pytest.raises(ForgeTrouble) as caught:
        breaker.enter(now_s)
    assert caught.value.retry_after_s <= FIRST_S


def test_calls_that_were_under_way_when_it_opened_do_not_lengthen_it() -> None:
    breaker = opened()
    for _ in range(20):
        breaker.fail(Passage.PLAIN, 0.9)
    assert breaker.enter(FIRST_S) is Passage.PROBE


def test_an_answer_to_a_call_that_was_under_way_closes_it() -> None:
    breaker = opened()
    breaker.succeed()
    assert breaker.enter(0.0) is Passage.PLAIN


def test_a_cancelled_probe_lets_the_next_one_through() -> None:
    breaker = opened()
    breaker.abandon(breaker.enter(FIRST_S))
    assert breaker.enter(FIRST_S) is Passage.PROBE
    breaker.abandon(Passage.PLAIN)
    with pytest.raises(ForgeTrouble):
        breaker.enter(FIRST_S)
