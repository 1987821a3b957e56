"""Exactly once, whatever arrives how often, in which order, and whatever dies in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.ingest.intake import IntakeLimits
from nimbus.logging_pipeline.ingest.marks import MAX_ISLANDS, SeqSet
from nimbus.logging_pipeline.ingest.writer import RowTable, Stored, Writer
from nimbus.logging_pipeline.metrics import Metrics
from nimbus.logging_pipeline.rows import Chunk, Row, Source
from nimbus.logging_pipeline.store.recall import Kept
from nimbus.model.errors import Unavailable
from tests.unit.logging_pipeline.rig import open_rig, row
from tests.unit.logging_pipeline.untouched import plan_untouched

small_numbers = st.integers(min_value=0, max_value=60)


@given(st.lists(small_numbers))
def test_a_seq_set_knows_what_a_set_knows(numbers: list[int]) -> None:
    marks, model = SeqSet(), set()
    for number in numbers:
        marks.add(number)
        model.add(number)
    assert [number in marks for number in range(62)] == [number in model for number in range(62)]
    assert marks.acked == next(n for n in range(62) if n not in model) - 1
    assert SeqSet(marks.islands).islands == marks.islands
    assert all(high + 1 < low for (_, high), (low, _) in zip(marks.islands, marks.islands[1:], strict=False))


def test_a_full_seq_set_takes_only_what_opens_no_gap() -> None:
    marks = SeqSet((2 * n, 2 * n) for n in range(MAX_ISLANDS))
    assert not marks.would_fit(5000)
    assert marks.would_fit(1)
    assert marks.would_fit(4)
    assert marks.would_fit(2 * MAX_ISLANDS - 1)


@dataclass
class ShakyTable:
    """A table in memory. An insert fails before or after it stored its rows, as told: the caller cannot know which."""

    faults: list[str]
    rows: list[tuple[Source, int]] = field(default_factory=list)

    async def insert(self, chunks: Sequence[Chunk]) -> None:
        await trio.lowlevel.checkpoint()
        rows = [(chunk.source, row.seq) for chunk in chunks for row in chunk.rows]
        fault = self.faults.pop() if self.faults else ""
        if fault == "before":
            raise Unavailable("down")
        self.rows += rows
        if fault == "after":
            raise Unavailable("answer lost")

    async def recall(self, machines: set[tuple[int, int]]) -> dict[Source, Kept]:
        await trio.lowlevel.checkpoint()
        sources = {source for source, _ in self.rows if (source.org_id, source.machine_id) in machines}
        return {each: Kept(tuple((seq, seq) for source, seq in self.rows if source == each), 0) for each in sources}


def open_writer(table: RowTable, limits: IntakeLimits | None = None) -> Writer:
    return Writer(table, plan_untouched(), Metrics(), limits)


async def store(writer: Writer, source: Source, rows: list[Row], size: int = 100) -> Stored:
    return await writer.store(source, "agent", rows, writer.intake.enter(source, size))


batches = st.lists(
    st.tuples(st.integers(min_value=1, max_value=3), st.lists(st.integers(min_value=0, max_value=30), max_size=12)),
    max_size=12,
)


@given(batches, st.lists(st.sampled_from(["", "before", "after"]), max_size=8))
def test_duplicate_reordered_and_overlapping_batches_are_stored_exactly_once_through_faults(
    sent: list[tuple[int, list[int]]], faults: list[str]
) -> None:
    table = ShakyTable(list(faults))

    async def deliver(writer: Writer, machine: int, seqs: list[int]) -> None:
        rows = [Row(seq, 0, "stdout", "info", str(seq)) for seq in sorted(set(seqs))]  # as a parsed body has them
        while True:
            try:
                stored = await store(writer, Source(1, machine, 1), rows)
            except Unavailable:
                continue
            have = {seq for source, seq in table.rows if source.machine_id == machine}
            assert set(seqs) <= have
            assert stored.acked_seq == next(n for n in range(40) if n not in have) - 1
            return

    async def main() -> None:
        writer = open_writer(table)
        async with trio.open_nursery() as running:
            running.start_soon(writer.run)
            async with trio.open_nursery() as senders:
                for machine in (1, 2, 3):
                    mine = [seqs for each, seqs in sent if each == machine]
                    senders.start_soon(deliver_all, writer, machine, mine)
            running.cancel_scope.cancel()

    async def deliver_all(writer: Writer, machine: int, mine: list[list[int]]) -> None:
        for seqs in mine:
            await deliver(writer, machine, seqs)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    stored = [(source.machine_id, seq) for source, seq in table.rows]
    assert sorted(stored) == sorted({(machine, seq) for machine, seqs in sent for seq in seqs})


async def test_rows_of_a_sender_that_left_are_stored_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    table = ShakyTable([])
    writer = open_writer(table)
    with trio.move_on_after(1):
        await store(writer, Source(1, 1, 1), [Row(0, 0, "stdout", "info", "x")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await store(writer, Source(1, 1, 1), [Row(1, 0, "stdout", "info", "y")])
        nursery.cancel_scope.cancel()
    assert [seq for _, seq in table.rows] == [0, 1]


async def test_a_restarted_pipeline_knows_from_the_table_what_it_has(tmp_path: Path, engine: Endpoint) -> None:
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.ingest([row(n) for n in (0, 1, 2, 5, 6, 9)])
            rig.services.writer.memory.clear()  # what a restart forgets
            assert (await rig.ingest([row(n) for n in range(8)])).json() == {"acked_seq": 7}
            assert (await rig.ingest([row(8)])).json() == {"acked_seq": 9}
            counted = await rig.services.table.rows_of(
                f"SELECT count() AS n FROM {rig.services.table.name}"  # noqa: S608 - our own name
            )
            assert int(counted[0]["n"]) == 10


async def test_an_engine_killed_under_load_costs_a_503_and_no_row(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path) as rig:
            refusals = 0

            async def send(machine: int) -> None:
                nonlocal refusals
                for first in range(0, 400, 20):
                    while True:
                        reply = await rig.ingest([row(n) for n in range(first, first + 20)], machine=machine)
                        if reply.status_code == 200:
                            assert reply.json() == {"acked_seq": first + 19}
                            break
                        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
                        assert "engine" not in reply.text or "password" not in reply.text
                        refusals += 1
                        await trio.sleep(0.05)

            async with trio.open_nursery() as senders:
                for machine in (1, 2, 3):
                    senders.start_soon(send, machine)
                await trio.sleep(0.3)  # some inserts in; what is under way is hit at random
                kill_engine(tmp_path)
            assert refusals > 0
            for machine in (1, 2, 3):
                assert await rig.messages(f"/logs/machines/{machine}", limit="1000") == [
                    f"line {n}" for n in range(400)
                ]
                followed = await rig.read(f"/logs/machines/{machine}", limit="10")
                assert followed.json()["more"] is True


def kill_engine(state: Path) -> None:
    """SIGKILL to the engine that serves this state folder."""
    wanted = str(state / "clickhouse").encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in words and b"nimbus.logging_pipeline.engine.main" in words:
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise AssertionError("no engine found")


async def test_a_stream_outlives_the_engine(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_rig(tmp_path) as rig:
            rig.control.add_job(5, 1, "in_progress", [(7, 1)])
            await rig.ingest([row(0)])
            async with rig.follow("/logs/jobs/5") as events:
                assert (await anext(events))["seq"] == 0
                kill_engine(tmp_path)
                reply: httpx2.Response | None = None
                while reply is None or reply.status_code != 200:
                    reply = await rig.ingest([row(1)])
                    await trio.sleep(0.05)
                assert (await anext(events))["seq"] == 1
            assert (await rig.client.get(f"{rig.url}/readyz")).status_code == 200
