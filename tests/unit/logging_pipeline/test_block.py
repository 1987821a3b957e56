"""Blocks of rows: what goes in comes out, one partition each, and a block that comes again is dropped."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.logging_pipeline.engine.child import Endpoint
from nimbus.logging_pipeline.rows import Chunk, JobLink, Row, Source
from nimbus.logging_pipeline.store.block import COLUMNS, name_block, partition_of, render_block, split_partitions
from nimbus.logging_pipeline.store.recall import AT_ONCE
from tests.unit.logging_pipeline.rig import Rig, open_rig

NOW_MS = 1_800_000_000_000
numbers = st.integers(0, 2**63 - 1)
made_rows = st.builds(
    Row,
    seq=numbers,
    ts_ms=st.integers(NOW_MS - 10**9, NOW_MS + 10**9),
    stream=st.sampled_from(["stdout", "end"]),
    level=st.sampled_from(["info", "error"]),
    message=st.text(max_size=20),
    step=st.integers(0, 70_000),
)
made_chunks = st.builds(
    Chunk,
    source=st.builds(Source, numbers, numbers, numbers),
    agent_id=st.sampled_from(["a", "b", "ü"]),
    rows=st.lists(made_rows, max_size=5),
    link=st.builds(JobLink, numbers, numbers, st.integers(0, 65535)),
)


@settings(deadline=None)  # the library's first call loads more of it
@given(st.lists(made_chunks, max_size=6))
def test_a_block_holds_every_column_of_every_row(chunks: list[Chunk]) -> None:
    read = pa.ipc.open_stream(render_block(chunks)).read_next_batch().to_pydict()
    expected = [
        (c.source.org_id, c.source.machine_id, c.source.fence, c.link.repo_id, c.link.job_id, c.agent_id,
         c.link.attempt, r.seq, min(r.step, 65535), r.stream, r.level, r.message,
         datetime.fromtimestamp(r.ts_ms // 1000, UTC).replace(microsecond=r.ts_ms % 1000 * 1000))
        for c in chunks for r in c.rows
    ]  # fmt: skip
    assert list(zip(*(read[name] for name in COLUMNS), strict=True)) == expected


@given(st.lists(made_chunks, max_size=6))
def test_partitions_share_no_row_and_lose_none(chunks: list[Chunk]) -> None:
    parts = split_partitions(chunks)
    for part in parts:
        assert len({partition_of(row.ts_ms) for chunk in part for row in chunk.rows}) <= 1
    told = [(chunk.source, row.seq) for part in parts for chunk in part for row in chunk.rows]
    assert sorted(told, key=repr) == sorted(((c.source, r.seq) for c in chunks for r in c.rows), key=repr)


def test_a_block_is_named_by_whose_rows_it_holds_and_their_numbers() -> None:
    block = [Chunk(Source(1, 2, 3), "a", [Row(0, 1, "stdout", "info", "x"), Row(1, 1, "stdout", "info", "y")])]
    masked = [Chunk(Source(1, 2, 3), "a", [Row(0, 1, "stdout", "info", "***"), Row(1, 1, "stdout", "info", "y")])]
    halves = [Chunk(Source(1, 2, 3), "a", [row]) for row in block[0].rows]
    others = [Chunk(Source(1, 2, 4), "a", block[0].rows)]
    assert name_block(block) == name_block(masked)
    assert len({name_block(block), name_block(halves), name_block(others), name_block([])}) == 4


async def count(rig: Rig) -> int:
    counted = await rig.services.table.rows_of(f"SELECT count() AS n FROM {rig.services.table.name}")  # noqa: S608 - our own name
    return int(counted[0]["n"])


async def test_a_block_that_arrives_twice_is_stored_once(tmp_path: Path, engine: Endpoint) -> None:
    now_ms = int(time.time() * 1000)
    months = [now_ms, now_ms - 20 * 86_400_000]
    rows = [Row(seq, months[seq % 2], "stdout", "info", f"line {seq}") for seq in range(10)]
    block = [Chunk(Source(1, 7, 1), "agent", rows)]
    with trio.fail_after(60):
        async with open_rig(tmp_path, engine) as rig:
            await rig.services.table.insert(block)
            await rig.services.table.insert(block)
            assert await count(rig) == 10


async def test_a_thousand_machines_are_asked_about_at_once(tmp_path: Path, engine: Endpoint) -> None:
    now_ms = int(time.time() * 1000)
    seqs = {machine: ([0, 1, 2] if machine % 2 else [0, 2, 3, 9]) for machine in range(1, 2 * AT_ONCE)}
    chunks = [
        Chunk(Source(1, machine, 1), "a", [Row(seq, now_ms, "stdout", "info", "", seq) for seq in mine])
        for machine, mine in seqs.items()
    ]
    with trio.fail_after(120):
        async with open_rig(tmp_path, engine) as rig:
            await rig.services.table.insert(chunks)
            found = await rig.services.table.recall({(1, machine) for machine in seqs} | {(2, 1)})
            assert {source.machine_id: list(kept.islands) for source, kept in found.items()} == {
                machine: ([(0, 2)] if machine % 2 else [(0, 0), (2, 3), (9, 9)]) for machine in seqs
            }
            assert all(abs(kept.since_ms - now_ms) < 120_000 for kept in found.values())
            steps = await rig.services.table.recall_steps({Source(1, machine, 1): 3 for machine in (1, 2)})
            assert steps == {Source(1, 1, 1): 2, Source(1, 2, 1): 2}
