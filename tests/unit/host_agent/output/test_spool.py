"""The disk spool and the numbering of lines: the same rows again after any crash, anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.host_agent.output.lines import MAX_LINE_BYTES, Checkpoint, LineSplitter, LogRow, parse_checkpoint
from nimbus.host_agent.output.spool import Spool
from nimbus.host_agent.output.spoolrecord import Kind, Position, Record, Stream

BEGINNING = Position(0, 0)
records = st.lists(
    st.one_of(
        st.builds(
            Record,
            st.just(Kind.DATA),
            st.sampled_from([Stream.STDOUT, Stream.STDERR]),
            st.just(5),
            st.just(0),
            st.binary(max_size=20).map(lambda data: data.replace(b"a", b"\n")),
        ),
        st.builds(Record, st.just(Kind.CUT), st.sampled_from([Stream.STDOUT, Stream.STDERR]), st.just(6), st.just(0)),
        st.builds(Record, st.just(Kind.LOST), st.just(Stream.STDOUT), st.just(7), st.just(9), st.just(b"why")),
    ),
    max_size=20,
)


def rows_of(splitter: LineSplitter, fed: list[Record]) -> list[LogRow]:
    return [row for record in fed for row in splitter.feed(record)]


def data(text: bytes, offset: int = 0, stream: Stream = Stream.STDOUT) -> Record:
    return Record(Kind.DATA, stream, 1, offset, text)


@given(records, st.integers(min_value=0, max_value=20))
def test_a_splitter_started_anew_at_any_checkpoint_gives_the_same_rows(fed: list[Record], cut: int) -> None:
    whole = rows_of(LineSplitter(parse_checkpoint(None)), fed)
    first = LineSplitter(parse_checkpoint(None))
    before = rows_of(first, fed[:cut])
    kept = parse_checkpoint(first.checkpoint(Position(3, 4)).render())
    assert before + rows_of(LineSplitter(kept), fed[cut:]) == whole
    assert [row.seq for row in whole] == list(range(len(whole)))


@given(st.binary(max_size=60), st.lists(st.integers(min_value=0, max_value=60), max_size=5))
def test_how_a_line_was_cut_into_records_changes_no_row(text: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [data(text[low:high]) for low, high in pairwise(edges)]
    end = Record(Kind.END, Stream.AGENT, 1, 0)
    assert rows_of(LineSplitter(parse_checkpoint(None)), [*pieces, end]) == rows_of(
        LineSplitter(parse_checkpoint(None)), [data(text), end]
    )


def test_long_lines_are_split_between_characters_and_bad_bytes_are_shown() -> None:
    text = ("ü" * MAX_LINE_BYTES).encode() + b"\nbad \xff\x00 byte\r\n"
    messages = [row.message for row in rows_of(LineSplitter(parse_checkpoint(None)), [data(text)])]
    assert "".join(messages[:-1]) == "ü" * MAX_LINE_BYTES
    assert all(len(message.encode()) <= MAX_LINE_BYTES for message in messages[:-1])
    assert messages[-1] == "bad \ufffd\ufffd byte"


def test_records_come_back_in_order_across_segments_and_shipped_ones_free_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", segment_bytes=1000)
    for number in range(100):
        spool.append(data(b"%050d" % number, offset=50 * number))
    read, middle = spool.read(BEGINNING, 2500)
    rest, end = spool.read(middle, 10**9)
    assert [record.data for record in read + rest] == [b"%050d" % number for number in range(100)]
    stored = spool.stored_bytes
    spool.discard_before(end)
    assert spool.stored_bytes <= 1100 < stored
    assert spool.read(end, 10**9) == ([], end)
    spool.close()


@pytest.mark.parametrize("torn_bytes", range(1, 40, 3))
def test_a_torn_last_record_is_cut_away_and_written_anew(tmp_path: Path, torn_bytes: int) -> None:
    spool = Spool(tmp_path / "s")
    spool.append(data(b"first"))
    spool.append(data(b"second-record", offset=5))
    spool.close()
    segment = next((tmp_path / "s").glob("*.seg"))
    os.truncate(segment, segment.stat().st_size - torn_bytes)
    again = Spool(tmp_path / "s")
    assert again.total.ends == {Stream.STDOUT: 5}
    again.append(data(b"second again", offset=5))
    read, _ = again.read(BEGINNING, 10**9)
    assert [record.data for record in read] == [b"first", b"second again"]
    again.close()


def test_garbage_behind_the_last_record_is_never_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool.append(data(b"first"))
    spool.close()
    segment = next((tmp_path / "s").glob("*.seg"))
    segment.write_bytes(segment.read_bytes() + os.urandom(500))
    again = Spool(tmp_path / "s")
    assert [record.data for record in again.read(BEGINNING, 10**9)[0]] == [b"first"]
    again.close()


def test_what_was_written_before_sigkill_is_there(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from nimbus.host_agent.output.spool import Spool\n"
        "from nimbus.host_agent.output.spoolrecord import Kind, Record, Stream\n"
        "spool = Spool(pathlib.Path(sys.argv[1]), segment_bytes=50_000)\n"
        "offset = 0\n"
        "while True:\n"
        "    spool.append(Record(Kind.DATA, Stream.STDOUT, 1, offset, b'%08d\\n' % offset * 10))\n"
        "    offset += 90\n"
        "    print(offset, flush=True)\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "s")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(2000)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split(b"\n")[:-1]]
    spool = Spool(tmp_path / "s")
    read, _ = spool.read(BEGINNING, 10**9)
    assert spool.total.ends[Stream.STDOUT] >= told[-1]
    assert b"".join(record.data for record in read)[: told[-1]] == b"".join(
        b"%08d\n" % offset * 10 for offset in range(0, told[-1], 90)
    )
    spool.close()


def test_a_checkpoint_survives_its_own_rendering() -> None:
    checkpoint = Checkpoint(Position(2, 77), 12, {Stream.STDERR: (5, b"\xff open")}, {Stream.STDOUT: 99})
    assert parse_checkpoint(checkpoint.render()) == checkpoint
