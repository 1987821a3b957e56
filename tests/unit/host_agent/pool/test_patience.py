"""What could not be made is left alone for longer each time, and a person hears of it once."""

from __future__ import annotations

import math

from nimbus.host_agent.pool.patience import FIRST_S, MOST_S, Patience


def test_what_never_failed_is_tried_at_once() -> None:
    assert Patience().wait_s("shape", now=7.0) == 0


def test_each_failure_in_a_row_doubles_the_wait_up_to_a_limit() -> None:
    patience, waits = Patience(), []
    for _ in range(50):
        patience.note_failure("shape", "no room", now=0.0)
        waits.append(patience.wait_s("shape", now=0.0))
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits[-1] == MOST_S


def test_the_wait_of_one_holds_up_no_other() -> None:
    patience = Patience()
    patience.note_failure("large", "no room", now=0.0)
    assert patience.wait_s("small", now=0.0) == 0


def test_the_same_failure_is_told_once_and_another_one_anew() -> None:
    patience = Patience()
    told = [patience.note_failure("shape", why, now=0.0) for why in ("a", "a", "b", "b")]
    assert told == [True, False, True, False]


def test_what_went_well_is_forgotten() -> None:
    patience = Patience()
    for _ in range(5):
        patience.note_failure("shape", "no room", now=0.0)
    patience.forget("shape")
    assert patience.wait_s("shape", now=0.0) == 0
    assert patience.note_failure("shape", "no room", now=0.0)
    assert patience.wait_s("shape", now=FIRST_S / 2) == FIRST_S / 2


def test_an_alarm_is_never_tried_again() -> None:
    patience = Patience()
    patience.note_failure("shape", "too many rights", now=0.0, for_good=True)
    assert math.isinf(patience.wait_s("shape", now=1e9))
