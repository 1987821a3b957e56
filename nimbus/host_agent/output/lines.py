"""From a VM's spooled bytes to numbered rows: a pure function of the spool's records, so that an agent started
anew gives each line the number it had before.

No I/O and no clock. Called by `logs`. A line longer than MAX_LINE_BYTES becomes several rows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from nimbus.host_agent.output.spoolrecord import Kind, Position, Record, Stream, parse_tally

MAX_LINE_BYTES = 64 * 1024  # what the pipeline takes as one message
END_STREAM = "end"  # the row that says that nothing follows


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row as the logging pipeline takes it."""

    seq: int
    ts_ms: int
    stream: str
    message: str


@dataclass(frozen=True)
class Checkpoint:
    """Everything before `position` was shipped; `open_lines` are unfinished lines from before it."""

    position: Position
    seq: int
    open_lines: dict[Stream, tuple[int, bytes]]
    ends: dict[Stream, int]
    edges: dict[Stream, int] = field(default_factory=dict)  # at those ends

    def render(self) -> str:
        lines = {str(int(s)): [ts, base64.b64encode(data).decode()] for s, (ts, data) in self.open_lines.items()}
        ends = {str(int(stream)): end for stream, end in self.ends.items()}
        edges = {str(int(stream)): edge for stream, edge in self.edges.items()}
        place = [self.position.segment, self.position.byte]
        told = {"version": 1, "position": place, "seq": self.seq, "lines": lines, "ends": ends, "edges": edges}
        return json.dumps(told)


def parse_checkpoint(text: str | None) -> Checkpoint:
    """The checkpoint of a spool; the very beginning where there is none."""
    if text is None:
        return Checkpoint(Position(0, 0), 0, {}, {})
    value = json.loads(text)
    lines = {Stream(int(key)): (ts, base64.b64decode(data)) for key, (ts, data) in value["lines"].items()}
    ends = {Stream(int(key)): end for key, end in value["ends"].items()}
    edges = {Stream(int(key)): edge for key, edge in value.get("edges", {}).items()}
    return Checkpoint(Position(*value["position"]), value["seq"], lines, ends, edges)


class LineSplitter:
    """Numbers lines across all streams in the order of their ends."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.seq = checkpoint.seq
        self.open_lines = dict(checkpoint.open_lines)  # bytes without their newline yet, and when they began
        self.ends = dict(checkpoint.ends)
        self.edges = dict(checkpoint.edges)
        self.ended = False

    def checkpoint(self, position: Position) -> Checkpoint:
        return Checkpoint(position, self.seq, dict(self.open_lines), dict(self.ends), dict(self.edges))

    def feed(self, record: Record) -> Iterator[LogRow]:
        """The rows that this record completes."""
        match record.kind:
            case Kind.DATA | Kind.MASKED:
                self._move(record)
                yield from self._data(record)
            case Kind.CUT:
                yield from self._cut(record.stream)
            case Kind.LOST:
                self._move(record)
                yield from self._cut(record.stream)
                yield self._row(record.ts_ms, Stream.AGENT.name.lower(), record.data)
            case Kind.DROPPED:
                dropped = parse_tally(record.data)
                self.ends |= dropped.ends
                self.edges |= dropped.edges
                for stream in Stream:
                    yield from self._cut(stream)
                why = f"nimbus: {dropped.lines} lines ({dropped.bytes} bytes) dropped: the log spool had no room"
                yield self._row(record.ts_ms, Stream.AGENT.name.lower(), why.encode())
            case Kind.END:
                for stream in Stream:
                    yield from self._cut(stream)
                self.ended = True
                yield self._row(record.ts_ms, END_STREAM, record.data)

    def _move(self, record: Record) -> None:
        self.ends[record.stream], self.edges[record.stream] = record.end, record.edge

    def _data(self, record: Record) -> Iterator[LogRow]:
        began, held = self.open_lines.pop(record.stream, (record.ts_ms, b""))
        name = record.stream.name.lower()
        *lines, rest = (held + record.data).split(b"\n")
        for line in lines:
            for piece in _pieces(line):
                yield self._row(began, name, piece)
            began = record.ts_ms
        while len(rest) > MAX_LINE_BYTES:
            piece, rest = _split(rest)
            yield self._row(began, name, piece)
        if rest:
            self.open_lines[record.stream] = (began, rest)

    def _cut(self, stream: Stream) -> Iterator[LogRow]:
        began, held = self.open_lines.pop(stream, (0, b""))
        for piece in _pieces(held) if held else ():
            yield self._row(began, stream.name.lower(), piece)

    def _row(self, ts_ms: int, stream: str, line: bytes) -> LogRow:
        seq, self.seq = self.seq, self.seq + 1
        # NUL is no text anywhere down the line; invalid UTF-8 is shown, not hidden
        message = line.removesuffix(b"\r").decode("utf-8", "replace").replace("\0", "\ufffd")
        return LogRow(seq, ts_ms, stream, message)


def _pieces(line: bytes) -> Iterator[bytes]:
    while len(line) > MAX_LINE_BYTES:
        piece, line = _split(line)
        yield piece
    yield line


def _split(line: bytes) -> tuple[bytes, bytes]:
    """The first MAX_LINE_BYTES, or up to three fewer so that no UTF-8 character is cut in two."""
    end = MAX_LINE_BYTES
    while end > MAX_LINE_BYTES - 3 and line[end] & 0xC0 == 0x80:
        end -= 1
    return line[:end], line[end:]
