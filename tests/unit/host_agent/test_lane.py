"""What hangs is left behind: what looks at once when cancelled, what acts at its limit and not before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context

import pytest
import trio

from nimbus.host_agent.lane import Hung, in_thread, limit_files, look

PATIENCE_S = 60.0


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """Whoever waits for it hangs until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_an_act_that_hangs_is_left_behind_at_the_limit_that_the_operator_gave(answer: threading.Event) -> None:
    limit_files(0.2)
    with trio.fail_after(PATIENCE_S), pytest.raises(Hung, match=r"no answer in 0\.2 s"):
        await in_thread(answer.wait)


async def test_an_act_is_waited_for_though_it_is_cancelled_and_tells_its_result() -> None:
    begun, told = threading.Event(), []

    def act() -> str:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return "done"

    async def run() -> None:
        told.append(await in_thread(act))

    go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
        go_on.set()
    assert told == ["done"]


async def test_an_act_that_is_cancelled_before_it_begins_never_begins() -> None:
    begun = threading.Event()
    with trio.CancelScope() as scope:
        scope.cancel()
        await in_thread(begun.set)
    assert scope.cancelled_caught
    assert not begun.is_set()


async def test_a_look_is_left_at_once_when_it_is_cancelled(answer: threading.Event) -> None:
    with trio.fail_after(PATIENCE_S), trio.move_on_after(0.1) as scope:
        await look(answer.wait, 10 * PATIENCE_S)
    assert scope.cancelled_caught


def test_a_limit_that_was_given_before_the_loop_holds_in_it(answer: threading.Event) -> None:
    def run() -> None:
        limit_files(0.2)
        trio.run(in_thread, answer.wait)

    with pytest.raises(Hung):
        copy_context().run(run)
