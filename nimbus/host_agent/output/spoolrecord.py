"""What stands in a log spool: its records as values and as bytes, and the sums that outlive them.

Pure, bytes to values and back. Knows no files. Called by `spool`, which keeps them, and by all who read a spool.
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from dataclasses import dataclass, field

MAX_PAYLOAD_BYTES = 2**20
_HEADER = struct.Struct("<BBHIQQI")  # kind, stream, edge, length, ts_ms, offset, crc32 of all before it and the payload
HEADER_BYTES = _HEADER.size
_TAKEN = struct.Struct("<I")  # before the text of a MASKED record: how many bytes of the guest it stands for


class Stream(enum.IntEnum):
    """Where output came from; the numbers are those on disk."""

    STDOUT = 1
    STDERR = 2
    CONSOLE = 3
    AGENT = 4


class Kind(enum.IntEnum):
    """What a record says."""

    DATA = 1  # bytes of a stream from `offset` on
    CUT = 2  # the stream was quiet: its last, unfinished line is told as it stands
    LOST = 3  # bytes up to `offset` are not here; the payload says why
    END = 4  # no more output
    MASKED = 5  # text in the place of `taken` bytes of a stream, which held secrets
    DROPPED = 6  # a whole segment was here; the payload is its tally


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the spool."""

    kind: Kind
    stream: Stream
    ts_ms: int
    offset: int
    data: bytes = b""
    taken: int = 0  # of MASKED alone
    edge: int = 0  # what the stream's masker must know to go on behind this record

    @property
    def end(self) -> int:
        """The stream's offset behind this record."""
        match self.kind:
            case Kind.DATA:
                return self.offset + len(self.data)
            case Kind.MASKED:
                return self.offset + self.taken
            case _:
                return self.offset


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A place between two records."""

    segment: int
    byte: int


@dataclass
class Tally:
    """What some records hold, and how far their streams have come with them."""

    first: int = 0  # the oldest segment that this is the sum of
    lines: int = 0
    bytes: int = 0
    ends: dict[Stream, int] = field(default_factory=dict)
    edges: dict[Stream, int] = field(default_factory=dict)
    is_dropped: bool = False

    def note(self, record: Record) -> None:
        """Add one record."""
        if record.kind not in {Kind.DATA, Kind.MASKED, Kind.LOST} or record.stream is Stream.AGENT:
            return
        if record.kind is not Kind.LOST:
            self.lines += record.data.count(b"\n")
            self.bytes += record.end - record.offset
        if record.end >= self.ends.get(record.stream, 0):
            self.ends[record.stream], self.edges[record.stream] = record.end, record.edge

    def add(self, later: Tally) -> None:
        """Add what came after."""
        self.lines += later.lines
        self.bytes += later.bytes
        self.ends |= later.ends
        self.edges |= later.edges


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a record on disk."""

    kind: int
    stream: int
    edge: int
    length: int
    ts_ms: int
    offset: int
    crc: int


def render_record(record: Record) -> bytes:
    """The record as it stands on disk."""
    payload = _TAKEN.pack(record.taken) + record.data if record.kind is Kind.MASKED else record.data
    words = (record.kind, record.stream, record.edge, len(payload), record.ts_ms, record.offset, 0)
    head = _HEADER.pack(*words)[:-4]
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def parse_header(head: bytes) -> Header:
    return Header(*_HEADER.unpack(head))


def parse_payload(header: Header, payload: bytes) -> Record:
    """The record of a header and a payload that belong together."""
    kind, taken = Kind(header.kind), 0
    if kind is Kind.MASKED:
        (taken,) = _TAKEN.unpack_from(payload)
        payload = payload[_TAKEN.size :]
    return Record(kind, Stream(header.stream), header.ts_ms, header.offset, payload, taken, header.edge)


def render_tally(tally: Tally) -> bytes:
    """The payload of a DROPPED record."""
    streams = {str(int(s)): [end, tally.edges.get(s, 0)] for s, end in tally.ends.items()}
    value = {"first": tally.first, "lines": tally.lines, "bytes": tally.bytes, "streams": streams}
    return json.dumps(value).encode()


def parse_tally(payload: bytes) -> Tally:
    value = json.loads(payload)
    streams = {Stream(int(key)): (end, edge) for key, (end, edge) in value["streams"].items()}
    ends = {stream: end for stream, (end, _) in streams.items()}
    edges = {stream: edge for stream, (_, edge) in streams.items()}
    return Tally(value["first"], value["lines"], value["bytes"], ends, edges, is_dropped=True)
