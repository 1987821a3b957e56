"""A block that is entered too late, or for nobody any more, is given back by the thread that entered it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from nimbus.host_agent.lane import Hung
from nimbus.host_agent.page import Page, open_page
from nimbus.model.errors import HostFault

PATIENCE_S = 60.0


class Slow:
    """A block whose making hangs until `answer`; what happened is in `done`."""

    def __init__(self) -> None:
        self.answer, self.asked, self.left = threading.Event(), threading.Event(), threading.Event()
        self.done: list[str] = []

    @contextmanager
    def block(self) -> Iterator[str]:
        self.asked.set()
        assert self.answer.wait(PATIENCE_S)
        self.done.append("made")
        try:
            yield "value"
        finally:
            self.done.append("left")
            self.left.set()

    def unmake(self) -> None:
        self.done.append("unmade")


async def wait_set(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, PATIENCE_S)


async def test_a_page_that_is_there_in_time_is_left_at_the_blocks_end_and_never_unmade() -> None:
    slow = Slow()
    slow.answer.set()
    async with open_page(Page(slow.block(), slow.unmake), PATIENCE_S) as value:
        assert (value, slow.done) == ("value", ["made"])
    assert slow.done == ["made", "left"]


async def test_a_page_that_comes_after_its_limit_is_a_fault_at_once_and_is_undone_when_it_comes() -> None:
    slow = Slow()
    with pytest.raises(Hung):
        await Page(slow.block(), slow.unmake).open(0.05)
    assert slow.done == []
    slow.answer.set()
    await wait_set(slow.left)
    assert slow.done == ["made", "unmade", "left"]


async def test_a_page_whose_caller_is_cancelled_holds_nobody_and_is_undone_when_it_comes() -> None:
    slow = Slow()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Page(slow.block(), slow.unmake).open, 10 * PATIENCE_S)
            await wait_set(slow.asked)
            nursery.cancel_scope.cancel()
    slow.answer.set()
    await wait_set(slow.left)
    assert slow.done == ["made", "unmade", "left"]


async def test_a_page_that_cannot_be_made_says_why_and_has_nothing_to_undo() -> None:
    slow = Slow()

    @contextmanager
    def refused(room: int) -> Iterator[int]:
        if not room:
            raise HostFault("no room")
        yield room

    with pytest.raises(HostFault, match="no room"):
        await Page(refused(0), slow.unmake).open(PATIENCE_S)
    assert slow.done == []
