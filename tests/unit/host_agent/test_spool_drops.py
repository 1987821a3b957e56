"""A spool at its cap: the oldest unread lines go, are counted, and no number is ever given to two rows."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.host_agent.output.lines import LineSplitter, parse_checkpoint
from nimbus.host_agent.output.shipping import plan_batches
from nimbus.host_agent.output.spool import CHECKPOINT, Spool
from nimbus.host_agent.output.spoolrecord import Kind, Record, Stream

CAP_BYTES = 4000
SEGMENT_BYTES = 300
LINE_BYTES = 37
HEAD_BYTES = 20
TAIL_BYTES = LINE_BYTES - HEAD_BYTES  # what is left of a line whose first record was in a dropped segment
DROPPED = re.compile(r"nimbus: (\d+) lines \((\d+) bytes\) dropped: the log spool had no room")


@dataclass
class Crashing:
    """An agent's spool and shipper, and a pipeline that keeps the first row of each number."""

    folder: Path
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    lines: int = 0
    offset: int = 0
    dropped_newest: int = 0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.spool = Spool(self.folder, CAP_BYTES, SEGMENT_BYTES)
        shipped = parse_checkpoint(self.spool.load(CHECKPOINT))
        self.splitter, self.position = LineSplitter(shipped), shipped.position

    def crash(self) -> None:
        self.spool.close()
        self.start()

    def append(self) -> None:
        """One line, in two records."""
        line = b"%037d\n" % self.lines
        if not self.spool.make_room(len(line) + 100, 1):
            self.dropped_newest += 1
        else:
            stream = Stream.STDERR if self.lines % 5 == 0 else Stream.STDOUT
            self.spool.append(Record(Kind.DATA, stream, 1, self.offset, line[:HEAD_BYTES], edge=1))
            self.spool.append(Record(Kind.DATA, stream, 1, self.offset + HEAD_BYTES, line[HEAD_BYTES:]))
        self.offset += len(line)
        self.lines += 1

    def read(self, max_bytes: int) -> None:
        """Rows arrive; the checkpoint does not stand yet."""
        records, self.position = self.spool.read(self.position, max_bytes)
        rows = [row for record in records for row in self.splitter.feed(record)]
        self.spool.hold_head()
        for batch in plan_batches(rows):
            for row in batch:
                self.rows.setdefault(row.seq, (row.stream, row.message))

    def advance(self, *, discard: bool) -> None:
        checkpoint = self.splitter.checkpoint(self.position)
        self.spool.save(CHECKPOINT, checkpoint.render())
        if discard:
            self.spool.discard_before(checkpoint.position)

    def finish(self) -> None:
        self.spool.append(Record(Kind.END, Stream.AGENT, 1, 0))
        while not self.splitter.ended:
            self.read(1000)
            self.advance(discard=True)
        self.spool.close()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 120)),
        st.tuples(st.just("read"), st.integers(1, 900)),
        st.tuples(st.just("advance"), st.integers(0, 1)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=30,
)


def play(folder: Path, script: list[tuple[str, int]]) -> Crashing:
    agent = Crashing(folder)
    for word, number in script:
        match word:
            case "append":
                for _ in range(number):
                    agent.append()
            case "read":
                agent.read(number)
            case "advance":
                agent.advance(discard=bool(number))
            case _:
                agent.crash()
    agent.finish()
    return agent


@settings(deadline=None, max_examples=40)
@given(steps)
def test_every_line_arrives_once_in_order_or_is_counted_as_dropped(script: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        agent = play(Path(folder) / "spool", script)
    rows = [agent.rows[seq] for seq in range(len(agent.rows))]  # no number is missing
    kept = [int(message) for stream, message in rows if stream in {"stdout", "stderr"} and len(message) == LINE_BYTES]
    counted = sum(int(match[1]) for _, message in rows if (match := DROPPED.fullmatch(message)))
    assert kept == sorted(set(kept))
    tails = sum(stream in {"stdout", "stderr"} and len(message) == TAIL_BYTES for stream, message in rows)
    assert len(kept) + tails + counted + agent.dropped_newest == agent.lines
    assert rows[-1] == ("end", "")


def test_whatever_is_printed_the_spool_stays_below_its_cap_and_keeps_both_ends(tmp_path: Path) -> None:
    agent = play(tmp_path / "spool", [("read", 1), ("append", 3), ("read", 1), ("append", 2000), ("crash", 0)])
    kept = [int(message) for stream, message in agent.rows.values() if stream != "agent" and len(message) == LINE_BYTES]
    (told,) = [message for _, message in agent.rows.values() if DROPPED.fullmatch(message)]
    assert (kept[0], kept[-1]) == (0, 2002)
    assert len(kept) > 20
    assert DROPPED.fullmatch(told)[1] == str(2003 - len(kept))  # type: ignore[index]


def test_a_crash_between_two_words_about_drops_counts_none_twice(tmp_path: Path) -> None:
    agent = Crashing(tmp_path / "spool")
    agent.append()
    agent.read(1000)
    old: dict[Path, bytes] = {}
    while agent.spool.dropped_lines < 30:  # the word about the first drop, as it was before it moved on
        old = {path: path.read_bytes() for path in (tmp_path / "spool").glob("*.seg")}
        agent.append()
    back = [path for path in old if not path.exists()]
    assert len(back) == 1
    back[0].write_bytes(old[back[0]])
    agent.crash()
    agent.finish()
    counted = [int(match[1]) for _, message in agent.rows.values() if (match := DROPPED.fullmatch(message))]
    assert len(counted) == 1
    assert (
        counted[0] + sum(len(message) in {LINE_BYTES, TAIL_BYTES} for _, message in agent.rows.values()) == agent.lines
    )


def test_offsets_outlive_the_segments_that_told_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", CAP_BYTES, SEGMENT_BYTES)
    spool.append(Record(Kind.DATA, Stream.STDOUT, 1, 0, b"x" * SEGMENT_BYTES))
    spool.read(parse_checkpoint(None).position, 1)
    spool.append(Record(Kind.MASKED, Stream.STDERR, 1, 0, b"***", taken=400, edge=0x4005))
    for number in range(200):
        spool.make_room(100, 1)
        spool.append(Record(Kind.DATA, Stream.STDOUT, 1, SEGMENT_BYTES + 100 * number, b"y" * 100))
    spool.close()
    again = Spool(tmp_path / "spool", CAP_BYTES, SEGMENT_BYTES)
    assert again.total.ends == {Stream.STDOUT: SEGMENT_BYTES + 20_000, Stream.STDERR: 400}
    assert again.total.edges[Stream.STDERR] == 0x4005
    assert again.stored_bytes < CAP_BYTES + 200
    again.close()
