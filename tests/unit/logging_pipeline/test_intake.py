"""How much may be on its way: bounded, and shared so that no sender takes another's room or turn."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from nimbus.logging_pipeline.ingest.intake import Admission, Intake, IntakeLimits, Turns
from nimbus.logging_pipeline.ingest.writer import Writer
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.rows import Chunk, Row, Source
from nimbus.logging_pipeline.store.recall import Kept
from nimbus.model.errors import NimbusError, RateLimited, Unavailable
from tests.unit.logging_pipeline.untouched import plan_untouched

LIMITS = IntakeLimits(all_bytes=1000, machine_bytes=300)


def flood(intake: Intake, org: int, size: int = 10) -> int:
    """Send as this org, from ever other machines, until it is told to come again; how much was let in."""
    taken = 0
    for machine in range(10_000):
        try:
            intake.enter(Source(org, machine, 1), size)
        except RateLimited:
            break
        taken += size
    return taken


def test_one_org_alone_gets_half_and_those_who_come_next_a_half_of_what_is_left() -> None:
    intake = Intake(LIMITS)
    assert [flood(intake, org) for org in (1, 2, 3)] == [500, 250, 130]
    assert intake.bytes <= 1000


def test_a_machine_has_a_share_of_its_orgs() -> None:
    intake = Intake(LIMITS)
    intake.enter(Source(1, 7, 1), 200)
    with pytest.raises(RateLimited, match="machine"):
        intake.enter(Source(1, 7, 2), 200)
    intake.enter(Source(1, 8, 1), 200)


def test_who_holds_nothing_is_told_that_nothing_is_free() -> None:
    intake = Intake(LIMITS)
    intake.enter(Source(1, 1, 1), 500)
    with pytest.raises(Unavailable) as told:
        intake.enter(Source(2, 1, 1), 600)
    assert not isinstance(told.value, RateLimited)
    assert told.value.retry_after_s == 1


def test_what_leaves_makes_room_and_what_was_handed_over_stays_until_its_holder_leaves() -> None:
    intake = Intake(LIMITS)
    admission = intake.enter(Source(1, 1, 1), 200)
    admission.grow(100)
    kept = admission.hand_over()
    admission.leave()
    assert intake.bytes == 300
    kept.leave()
    kept.leave()
    assert intake.bytes == 0


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 400), st.booleans()), max_size=60))
def test_never_more_than_the_limit_is_on_its_way(steps: list[tuple[int, int, int, bool]]) -> None:
    intake = Intake(LIMITS)
    inside: list[Admission] = []
    for org, machine, size, leaves in steps:
        if leaves and inside:
            inside.pop(0).leave()
        with contextlib.suppress(NimbusError):
            inside.append(intake.enter(Source(org, machine, 1), size))
        assert 0 <= intake.bytes <= LIMITS.all_bytes
    for admission in inside:
        admission.leave()
    assert intake.bytes == 0


@dataclass
class Ask:
    source: Source
    number: int


@given(st.lists(st.integers(1, 4), max_size=40))
def test_orgs_take_turns_and_each_keeps_its_order(orgs: list[int]) -> None:
    turns: Turns[Ask] = Turns()
    for number, org in enumerate(orgs):
        turns.put(Ask(Source(org, 1, 1), number))
    taken = []
    while turns:
        taken.append(turns.take())
    for org in set(orgs):
        mine = [ask.number for ask in taken if ask.source.org_id == org]
        assert mine == sorted(mine)
        # nobody is served twice while somebody who waits is not served at all
        places = [place for place, ask in enumerate(taken) if ask.source.org_id == org]
        assert all(place <= (nth + 1) * len(set(orgs)) for nth, place in enumerate(places))


@dataclass
class SlowTable:
    """Takes a second for each insert, however small."""

    inserts: int = 0

    async def insert(self, chunks: Sequence[Chunk]) -> None:
        self.inserts += 1
        await trio.sleep(1)

    async def recall(self, machines: set[tuple[int, int]]) -> dict[Source, Kept]:
        await trio.lowlevel.checkpoint()
        return {}


async def test_an_org_that_floods_does_not_delay_another(autojump_clock: trio.testing.MockClock) -> None:
    writer = Writer(
        SlowTable(), plan_untouched(), Metrics(), IntakeLimits(all_bytes=10_000_000, machine_bytes=1_000_000)
    )
    rows = [Row(seq, 0, "stdout", "info", "x") for seq in range(30_000)]

    async def send(source: Source, sent: list[Row]) -> None:
        with trio.CancelScope():
            await writer.store(source, "agent", sent, writer.intake.enter(source, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for machine in range(100):
            nursery.start_soon(send, Source(1, machine, 1), rows)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await send(Source(2, 1, 1), [Row(0, 0, "stdout", "info", "one line")])
        assert trio.current_time() - began <= 5  # an insert under way, two ready, one whose turn it was, its own
        nursery.cancel_scope.cancel()
