"""Rows as the block that a server stores: Arrow, column by column, at a third of what text costs both sides. Pure.

A block lies in one partition, because only such a one is stored whole or not at all, and dropped whole where it comes
again under the same token. Called by `table`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from operator import attrgetter

import pyarrow as pa

from nimbus.logging_pipeline.rows import Chunk, Row

FORMAT = "ArrowStream"
_OF_CHUNK = ("org_id", "machine_id", "fence", "repo_id", "job_id", "agent_id", "attempt")
_OF_ROW = ("seq", "step", "stream", "level", "message", "ts")
COLUMNS = (*_OF_CHUNK, *_OF_ROW)
_LAST_STEP = 2**16 - 1  # what its column holds
_seq_of, _ts_of, _step_of = attrgetter("seq"), attrgetter("ts_ms"), attrgetter("step")
_stream_of, _level_of, _message_of = attrgetter("stream"), attrgetter("level"), attrgetter("message")


def partition_of(ts_ms: int) -> tuple[int, int]:
    """What the table's PARTITION BY makes of a time: year and month in UTC."""
    moment = datetime.fromtimestamp(ts_ms / 1000, UTC)
    return moment.year, moment.month


def split_partitions(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The same rows, those of one partition together; nearly always that is all of them."""
    times = [row.ts_ms for chunk in chunks for row in chunk.rows]
    if not times or partition_of(min(times)) == partition_of(max(times)):
        return [list(chunks)]
    parts: dict[tuple[int, int], list[Chunk]] = {}
    for chunk in chunks:
        rows: dict[tuple[int, int], list[Row]] = {}
        for row in chunk.rows:
            rows.setdefault(partition_of(row.ts_ms), []).append(row)
        for partition, mine in rows.items():
            parts.setdefault(partition, []).append(replace(chunk, rows=mine))
    return list(parts.values())


def name_block(chunks: Iterable[Chunk]) -> str:
    """A token for these rows: by whose they are and their numbers, since under one number stands one row."""
    digest = hashlib.sha256()
    for chunk in chunks:
        source = chunk.source
        digest.update(f"{source.org_id}.{source.machine_id}.{source.fence}.{len(chunk.rows)}:".encode())
        digest.update(array("Q", map(_seq_of, chunk.rows)))
    return digest.hexdigest()


def render_block(chunks: Sequence[Chunk]) -> bytes:
    """One record batch with COLUMNS of all rows."""
    counts = [len(chunk.rows) for chunk in chunks]
    rows = list(chain.from_iterable(chunk.rows for chunk in chunks))
    sources, links = [chunk.source for chunk in chunks], [chunk.link for chunk in chunks]
    columns = [
        _repeat([source.org_id for source in sources], counts),
        _repeat([source.machine_id for source in sources], counts),
        _repeat([source.fence for source in sources], counts),
        _repeat([link.repo_id for link in links], counts),
        _repeat([link.job_id for link in links], counts),
        _repeat_text([chunk.agent_id for chunk in chunks], counts),
        _repeat([link.attempt for link in links], counts),
        _numbers(array("Q", map(_seq_of, rows)), pa.uint64()),
        _numbers(array("Q", (min(step, _LAST_STEP) for step in map(_step_of, rows))), pa.uint64()),
        pa.array(list(map(_stream_of, rows)), pa.string()),
        pa.array(list(map(_level_of, rows)), pa.string()),
        pa.array(list(map(_message_of, rows)), pa.string()),
        _numbers(array("q", map(_ts_of, rows)), pa.timestamp("ms", "UTC")),
    ]
    batch = pa.record_batch(columns, names=list(COLUMNS))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _repeat(values: Sequence[int], counts: Sequence[int]) -> pa.Array:
    numbers = array("Q")
    for value, count in zip(values, counts, strict=True):
        numbers.extend(array("Q", (value,)) * count)
    return _numbers(numbers, pa.uint64())


def _repeat_text(values: Sequence[str], counts: Sequence[int]) -> pa.Array:
    known: dict[str, int] = {}  # a server refuses a dictionary that says a thing twice
    places = array("i")
    for value, count in zip(values, counts, strict=True):
        places.extend(array("i", (known.setdefault(value, len(known)),)) * count)
    return pa.DictionaryArray.from_arrays(_numbers(places, pa.int32()), pa.array(list(known), pa.string()))


def _numbers(values: array[int], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
