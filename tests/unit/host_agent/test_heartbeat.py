"""A host tells of itself whatever happens, and obeys what it hears; a fake control plane, virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import structlog
import trio
import trio.testing

from nimbus.host_agent.heartbeat import FAREWELL_S, INTERVAL_S, JITTER, LEAST_S, Heart
from nimbus.host_agent.wish import LEASING, POOLING, Pulse, Wish
from nimbus.model.errors import NotFound, Unavailable
from nimbus.model.labels import Arch
from nimbus.wire.heartbeat import Heartbeat, HeartbeatReply, HostRoom, Wanted

ROOM = HostRoom(8, 16384, 64)
BEAT = Heartbeat("0.1.0", "boot", 1, 1, "working", "fake", Arch.X64, ("nimbus",), ROOM, ROOM)
SLACK_S = INTERVAL_S * (1 + JITTER) + LEAST_S


@dataclass
class Plane:
    """Answers each heartbeat with `reply`, or fails as it is told to."""

    reply: HeartbeatReply = field(default_factory=lambda: HeartbeatReply(Wanted.WORKING, INTERVAL_S))
    error: Exception | None = None
    hangs: bool = False
    heard: list[tuple[float, Heartbeat]] = field(default_factory=list)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.error is not None:
            raise self.error
        self.heard.append((trio.current_time(), beat))
        return self.reply


def make_heart(plane: Plane) -> Heart:
    async def survey() -> Heartbeat:
        await trio.lowlevel.checkpoint()
        return BEAT

    pulse = Pulse()
    return Heart(plane, survey, Wish(pulse), pulse)


async def test_a_host_tells_of_itself_at_once_and_then_every_interval(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane()
    with trio.move_on_after(100 * INTERVAL_S):
        await make_heart(plane).beat_forever()
    times = [when for when, _ in plane.heard]
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == pytest.approx(trio.current_time() - 100 * INTERVAL_S)
    assert all(INTERVAL_S * (1 - JITTER) <= gap <= INTERVAL_S * (1 + JITTER) for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 1


async def test_the_control_plane_sets_the_interval(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(HeartbeatReply(Wanted.WORKING, 100.0))
    with trio.move_on_after(350):
        await make_heart(plane).beat_forever()
    assert len(plane.heard) == 4


async def test_a_change_is_told_at_once_and_many_changes_once_a_second(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(HeartbeatReply(Wanted.WORKING, 1000.0))
    heart = make_heart(plane)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heart.beat_forever)
        await trio.sleep(100)
        changed_at = trio.current_time()
        heart.pulse.note()
        await trio.sleep(0.1)
        for _ in range(50):
            heart.pulse.note()
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    after = [when - changed_at for when, _ in plane.heard if when >= changed_at]
    assert after[0] < 0.1
    assert len(after) <= 7


async def test_nothing_that_goes_wrong_ends_the_reports_and_a_bug_is_told_in_full_each_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plane = Plane()
    heart = make_heart(plane)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heart.beat_forever)
            for error in (Unavailable("away"), NotFound("an older control plane"), ZeroDivisionError()):
                plane.error = error
                await trio.sleep(5 * SLACK_S)
            plane.error = None
            heard = len(plane.heard)
            await trio.sleep(5 * SLACK_S)
            nursery.cancel_scope.cancel()
    assert len(plane.heard) > heard
    events = [each["event"] for each in logs]
    assert [event for event in events if event != "heartbeat.failed"] == [
        "heartbeat.not_heard",
        "heartbeat.heard_again",
    ]
    bugs = [each for each in logs if each["event"] == "heartbeat.failed"]
    assert len(bugs) > 1
    assert all(each["exc_info"] for each in bugs)


async def test_the_last_word_of_an_agent_that_leaves_waits_for_no_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heart = make_heart(Plane(hangs=True))
    began = trio.current_time()
    await heart.say_farewell()
    assert trio.current_time() - began <= FAREWELL_S


async def test_the_last_word_of_an_agent_is_that_it_leaves(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane()
    await make_heart(plane).say_farewell()
    assert [beat for _, beat in plane.heard] == [replace(BEAT, doing="leaving")]


async def test_why_a_host_is_granted_nothing_is_said_on_it_once(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(HeartbeatReply(Wanted.WORKING, INTERVAL_S, barred="its version 0.0.9 is older than 0.1.0"))
    with structlog.testing.capture_logs() as logs, trio.move_on_after(5 * SLACK_S):
        await make_heart(plane).beat_forever()
    told = [(each["event"], each["why"]) for each in logs]
    assert told == [("agent.granted_nothing", "its version 0.0.9 is older than 0.1.0")]


@dataclass
class Task:
    """Runs until cancelled, and counts."""

    begun: int = 0
    runs: bool = False

    async def run(self) -> None:
        self.begun += 1
        self.runs = True
        try:
            await trio.sleep_forever()
        finally:
            self.runs = False


async def test_a_cordoned_host_leases_nothing_and_keeps_its_pool_and_a_drained_one_gives_that_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wish, lease, pool = Wish(Pulse()), Task(), Task()
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wish.run_while, LEASING, lease.run)
        nursery.start_soon(wish.run_while, POOLING, pool.run)
        for wanted in (Wanted.WORKING, Wanted.CORDONED, Wanted.DRAINED, Wanted.CORDONED, Wanted.WORKING):
            wish.hear(wanted)
            await trio.testing.wait_all_tasks_blocked()
            seen.append((lease.runs, pool.runs))
        nursery.cancel_scope.cancel()
    assert seen == [(True, True), (False, True), (False, False), (False, True), (True, True)]
    assert (lease.begun, pool.begun) == (2, 2)


async def test_a_new_wish_and_the_end_of_a_task_are_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    pulse = Pulse()
    wish, task = Wish(pulse), Task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wish.run_while, LEASING, task.run)
        await trio.testing.wait_all_tasks_blocked()
        wish.hear(Wanted.CORDONED)
        with trio.fail_after(1):
            await pulse.wait()
        nursery.cancel_scope.cancel()
    assert not task.runs


async def test_a_task_that_ends_by_itself_or_fails_is_not_begun_again(autojump_clock: trio.testing.MockClock) -> None:
    async def end() -> None:
        await trio.lowlevel.checkpoint()

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    wish = Wish(Pulse())
    with trio.fail_after(1):
        await wish.run_while(LEASING, end)
        with pytest.RaisesGroup(ZeroDivisionError):
            await wish.run_while(LEASING, fail)
