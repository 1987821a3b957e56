"""A stream between what is published and what is stored: the table is behind, away or has holes. Time is virtual."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from nimbus.logging_pipeline.directory import JobEntry, JobMachine
from nimbus.logging_pipeline.live.follow import PAGE_ROWS, Follow, FollowRequest, FollowTerms, Surroundings
from nimbus.logging_pipeline.live.hub import Hub, HubTerms
from nimbus.logging_pipeline.live.jobwatch import JobWatch
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.rows import Place, ReadRow, ReadScope, Row, Source
from nimbus.logging_pipeline.tickets import Reader
from nimbus.model.errors import Unavailable

ONE = Source(1, 7, 1)


@dataclass
class MemoryTable:
    """Rows that are stored when a test says so."""

    rows: dict[tuple[Source, int], Row] = field(default_factory=dict)
    away: bool = False
    looks: int = 0

    def store(self, source: Source, rows: Sequence[Row]) -> None:
        self.rows |= {(source, row.seq): row for row in rows}

    async def page(self, scope: ReadScope, places: Sequence[Place], limit: int) -> list[ReadRow]:
        self.looks += 1
        await trio.sleep(0.005)
        if self.away:
            raise Unavailable("away")
        known = {(place.machine_id, place.fence): place.seq for place in places}
        found = [
            ReadRow(source.machine_id, source.fence, row)
            for (source, seq), row in self.rows.items()
            if source.org_id == scope.org_id
            and source.machine_id in scope.machines
            and scope.fence in (None, source.fence)
            and seq > known.get((source.machine_id, source.fence), -1)
        ]
        return sorted(found, key=lambda read: (read.machine_id, read.fence, read.row.seq))[:limit]


@dataclass
class Stage:
    """A hub, a table and the watch over jobs, without a service around them."""

    table: MemoryTable = field(default_factory=MemoryTable)
    hub: Hub = field(default_factory=lambda: Hub(HubTerms(queue_rows=50)))
    jobs: dict[int, JobEntry] = field(default_factory=dict)
    terms: FollowTerms = field(default_factory=FollowTerms)
    told: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = JobWatch(self._ask)
        self.around = Surroundings(
            self.table, self.hub, self.watch, Metrics(), lambda _: False, trio.CapacityLimiter(8), self.terms
        )

    async def _ask(self, job_ids: Sequence[int]) -> Mapping[int, JobEntry]:
        await trio.lowlevel.checkpoint()
        return {job_id: self.jobs[job_id] for job_id in job_ids if job_id in self.jobs}

    def publish(self, *seqs: int, source: Source = ONE, store: bool = True, end: bool = False) -> None:
        """As the writer does it; `end` makes an end row of the last."""
        rows = [Row(seq, 0, "end" if end and seq == seqs[-1] else "stdout", "info", f"{seq}") for seq in seqs]
        self.hub.publish(source, rows)
        if store:
            self.table.store(source, rows)

    def store(self, *seqs: int, source: Source = ONE, end: bool = False) -> None:
        """What was published elsewhere, or earlier."""
        rows = [Row(seq, 0, "end" if end and seq == seqs[-1] else "stdout", "info", f"{seq}") for seq in seqs]
        self.table.store(source, rows)

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.told if "seq" in event]

    @property
    def kinds(self) -> set[str]:
        return {event["event"] for event in self.told} - {"message"}

    async def read(self, job: JobEntry | None = None, places: tuple[Place, ...] = ()) -> None:
        """Follow to the end; what is told is in `told`."""
        machines = tuple({each.machine_id for each in job.machines}) if job else (ONE.machine_id,)
        reader = Reader("tester", 1, int(time.time()) + 86_400)
        wanted = FollowRequest(ReadScope(1, machines), places, reader, self.hub.take_seat(1), job)
        async with Follow(self.around, wanted) as body:
            async for chunk in body:
                self.told += parse_events(chunk)


def parse_events(text: bytes) -> list[dict[str, Any]]:
    events = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "data" in fields:
            told = {"event": fields.get("event", "message"), "id": fields.get("id", "")}
            events.append({**json.loads(fields["data"]), **told})
    return events


@asynccontextmanager
async def open_reader(stage: Stage, job: JobEntry | None = None) -> AsyncIterator[None]:
    """Somebody follows to the end, beside the body; left once that was told."""
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.watch.run)
            async with trio.open_nursery() as reading:
                reading.start_soon(stage.read, job)
                await trio.sleep(0.1)
                yield
            nursery.cancel_scope.cancel()


async def test_rows_are_told_while_they_are_being_stored(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with open_reader(stage):
        stage.publish(0, 1, store=False)
        await trio.sleep(0.01)
        assert stage.seqs == [0, 1]
        stage.store(0, 1)
        stage.publish(2, end=True)
    assert stage.seqs == [0, 1, 2]


async def test_rows_whose_insert_failed_come_again_and_are_told_once(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with open_reader(stage):
        stage.publish(0, 1, 2, store=False)
        stage.publish(0, 1, store=False)
        await trio.sleep(5)
        stage.publish(0, 1, 2, 3)
        stage.publish(4, end=True)
    assert (stage.seqs, stage.kinds) == ([0, 1, 2, 3, 4], {"end"})


async def test_a_row_published_before_somebody_came_and_stored_after_is_told_though_nothing_follows_it(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    stage.publish(0, store=False)
    async with open_reader(stage):
        await trio.sleep(6)
        stage.store(0)
        await trio.sleep(stage.terms.late_s)
        assert stage.seqs == [0]
        stage.publish(1, end=True)
    assert stage.seqs == [0, 1]


async def test_rows_on_their_way_when_somebody_came_fill_the_hole_before_those_after_them(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    stage.store(0)
    stage.publish(1, 2, store=False)
    async with open_reader(stage):
        stage.publish(3, 4, store=False)
        await trio.sleep(2)
        assert stage.seqs == [0]
        stage.store(1, 2)
        await trio.sleep(2)
        assert stage.seqs == [0, 1, 2, 3, 4]  # the last two are told from memory: they are not stored yet
        stage.publish(5, end=True)
    assert (stage.seqs, stage.kinds) == ([0, 1, 2, 3, 4, 5], {"end"})


async def test_while_the_table_is_away_what_is_published_is_told_and_nothing_spins(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with open_reader(stage):
        stage.publish(0)
        await trio.sleep(30)
        stage.table.away, before = True, stage.table.looks
        stage.publish(1, store=False)
        stage.publish(3, store=False)
        await trio.sleep(60)
        assert stage.seqs == [0, 1]
        assert stage.table.looks - before < 70
        stage.table.away = False
        stage.store(1, 2)
        await trio.sleep(2)
        assert stage.seqs == [0, 1, 2, 3]
        stage.publish(4, end=True)
    assert stage.kinds == {"end"}


async def test_a_hole_that_nothing_fills_is_told_when_the_patience_is_over_and_not_before(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    async with open_reader(stage):
        stage.publish(0, 4)
        await trio.sleep(stage.terms.gap_s - 1)
        assert stage.kinds == set()
        await trio.sleep(3)
        assert [event["missing"] for event in stage.told if event["event"] == "gap"] == [3]
        stage.publish(5, end=True)
    assert stage.seqs == [0, 4, 5]


async def test_a_hole_at_one_machine_holds_the_lines_of_another_up_not_at_all(autojump_clock: MockClock) -> None:
    stage, other = Stage(), Source(1, 9, 1)
    job = JobEntry(5, 1, "in_progress", (JobMachine(7, 1), JobMachine(9, 1)))
    stage.jobs[5] = job
    async with open_reader(stage, job):
        stage.publish(2)
        stage.publish(0, 1, source=other)
        await trio.sleep(0.01)
        assert [(event["machine_id"], event["seq"]) for event in stage.told] == [(9, 0), (9, 1)]
        stage.publish(0, 1)
        stage.publish(3, end=True)
        stage.publish(2, source=other, end=True)
        stage.jobs[5] = JobEntry(5, 1, "completed", job.machines)
    assert stage.seqs == [0, 1, 0, 1, 2, 3, 2]


async def test_an_idle_stream_stops_looking_at_the_table(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with open_reader(stage):
        stage.publish(0)
        await trio.sleep(60)
        before = stage.table.looks
        await trio.sleep(600)
        assert stage.table.looks == before
        stage.publish(1, end=True)


async def test_a_stream_of_a_machine_that_printed_nothing_lately_looks_once(autojump_clock: MockClock) -> None:
    stage = Stage()
    stage.publish(0)
    await trio.sleep(2 * stage.terms.late_s)
    stage.publish(0, source=Source(1, 9, 1))  # another machine
    async with open_reader(stage):
        await trio.sleep(600)
        assert (stage.table.looks, stage.seqs) == (1, [0])
        stage.publish(1, end=True)


async def test_out_of_hearing_of_other_replicas_a_stream_looks_each_second(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with open_reader(stage):
        await trio.sleep(60)
        stage.hub.is_whole = False
        stage.hub.ask_all_to_look()
        await trio.sleep(60)
        stage.store(0, 1)  # another replica took it in
        await trio.sleep(1.5)
        assert stage.seqs == [0, 1]
        stage.store(2, end=True)
    assert stage.seqs == [0, 1, 2]


async def test_a_job_whose_agent_died_ends_after_what_it_left_was_told(autojump_clock: MockClock) -> None:
    stage = Stage()
    job = JobEntry(5, 1, "in_progress", (JobMachine(7, 1),))
    stage.jobs[5] = job
    async with open_reader(stage, job):
        stage.publish(0)
        await trio.sleep(30)
        stage.jobs[5] = JobEntry(5, 1, "lost", job.machines)
        await trio.sleep(1.5)
        stage.store(1)  # not published here: the last look finds it
    assert (stage.seqs, stage.told[-1]["why"], stage.told[-1]["state"]) == ([0, 1], "complete", "lost")


async def test_a_job_that_never_had_a_machine_ends_with_its_cancellation(autojump_clock: MockClock) -> None:
    stage = Stage()
    job = JobEntry(5, 1, "queued", ())
    stage.jobs[5] = job
    async with open_reader(stage, job):
        stage.jobs[5] = JobEntry(5, 1, "cancelled", ())
    assert [event["event"] for event in stage.told] == ["end"]


async def test_a_heartbeat_says_that_a_silent_stream_is_alive(autojump_clock: MockClock) -> None:
    stage = Stage()
    reader = Reader("tester", 1, int(time.time()) + 86_400)
    wanted = FollowRequest(ReadScope(1, (7,)), (), reader, stage.hub.take_seat(1), None)
    async with Follow(stage.around, wanted) as body:
        assert await body.__anext__() == b"retry: 2000\n\n"
        began = trio.current_time()
        assert [await body.__anext__() for _ in range(3)] == [b": alive\n\n"] * 3
        assert trio.current_time() - began == pytest.approx(45, abs=1)


# --- any order of things ------------------------------------------------------------------------------------------

ACT = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 30)),  # and store at once
    st.tuples(st.just("fail"), st.integers(1, 30)),  # publish, and never store: it comes again with the next
    st.tuples(st.just("elsewhere"), st.integers(1, 30)),  # stored by a replica that is not heard
    st.tuples(st.just("burst"), st.integers(60, 700)),  # more than a reader may lag behind
    st.tuples(st.just("late"), st.integers(1, 30)),  # published now, stored two seconds later
    st.tuples(st.just("pause"), st.integers(0, 4)),
    st.tuples(st.just("away"), st.integers(1, 3)),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(ACT, max_size=14))
def test_whatever_happens_on_the_way_a_reader_is_told_every_row_once_and_in_order(acts: list[tuple[str, int]]) -> None:
    stage = Stage()

    async def play() -> None:
        async with open_reader(stage):
            stored = published = 0
            for what, number in acts:
                seqs = range(stored, stored + number)
                if what in ("publish", "burst"):
                    stage.publish(*seqs)
                    stored += number
                elif what == "fail":
                    stage.publish(*seqs, store=False)
                    published = max(published, stored + number)
                elif what == "elsewhere":
                    stage.store(*seqs)
                    stage.hub.ask_all_to_look()
                    stored += number
                elif what == "late":
                    stage.publish(*seqs, store=False)
                    await trio.sleep(2)
                    stage.store(*seqs)
                    stored += number
                elif what == "pause":
                    await trio.sleep(number)
                else:
                    stage.table.away = True
                    await trio.sleep(number)
                    stage.table.away = False
            stage.publish(*range(stored, published))  # what was not heard is sent again as it was
            stage.publish(max(stored, published), end=True)

    trio.run(play, clock=MockClock(autojump_threshold=0))

    assert stage.seqs == list(range(len(stage.table.rows)))
    assert stage.kinds <= {"end", "resync"}
    assert PAGE_ROWS < 700  # a burst is more than a page
