"""The disk spool of one VM's output: what was acknowledged to the guest is in here before the guest hears of it.

Append-only segments of checksummed records in the VM's own folder; a segment goes when all of it was shipped.
Synchronous, called in threads by `logs` only; it knows nothing of lines, rows or the network. What was written
survives SIGKILL of the agent (page cache); a record torn by it is cut off when the spool is opened again.
"""

from __future__ import annotations

import enum
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nimbus.model.errors import HostFault

DEFAULT_CAP_BYTES = 512 * 2**20  # unshipped output of one VM; beyond it output is dropped and the drop is told
SEGMENT_BYTES = 8 * 2**20
MAX_PAYLOAD_BYTES = 2**20
_HEADER = struct.Struct("<BBHIQQI")  # kind, stream, 0, length, ts_ms, offset, crc32 of all before it and the payload
_CHECKPOINT = "shipped.json"


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


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the spool."""

    kind: Kind
    stream: Stream
    ts_ms: int
    offset: int
    data: bytes = b""


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A place between two records."""

    segment: int
    byte: int


class Spool:
    """The segments of one VM. Appending and reading may happen in two threads at once."""

    def __init__(self, folder: Path, cap_bytes: int = DEFAULT_CAP_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _fault(error) from error
        self._sizes: dict[int, int] = {}
        self.ends: dict[Stream, int] = {}  # the offset after the last byte told of, for each stream
        self.finished = False
        for number in sorted(int(path.stem) for path in folder.glob("*.seg")):
            self._sizes[number] = self._recover(number)
        self._last = max(self._sizes, default=0)
        self._append_fd = self._open_segment(self._last)

    def close(self) -> None:
        os.close(self._append_fd)

    @property
    def stored_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def has_room(self, length: int) -> bool:
        """False once the cap is reached: the caller drops and says so."""
        return self.stored_bytes + length + _HEADER.size <= self._cap_bytes

    def append(self, *records: Record) -> None:
        """Write records, all of them or none; HostFault where the disk will not take them."""
        whole = b"".join(_render(record) for record in records)
        with self._lock:
            if self._sizes[self._last] >= self._segment_bytes:
                fresh = self._open_segment(self._last + 1)
                os.close(self._append_fd)
                self._last, self._append_fd = self._last + 1, fresh
            size = self._sizes[self._last]
            _write_all(self._append_fd, whole, size)
            self._sizes[self._last] = size + len(whole)
            for record in records:
                self._note(record)

    def read(self, position: Position, max_bytes: int) -> tuple[list[Record], Position]:
        """Records from `position` on, about `max_bytes` of them, and where the next read begins."""
        with self._lock:
            segments = sorted(number for number in self._sizes if number >= position.segment)
            sizes = dict(self._sizes)
        records: list[Record] = []
        taken = 0
        for number in segments:
            byte = position.byte if number == position.segment else 0
            for record, after in self._records(number, byte, sizes[number]):
                records.append(record)
                taken += len(record.data)
                position = Position(number, after)
                if taken >= max_bytes:
                    return records, position
        return records, position

    def discard_before(self, position: Position) -> None:
        """Remove the segments that lie wholly before `position`; absent is success."""
        with self._lock:
            gone = [number for number in self._sizes if number < position.segment and number != self._last]
            for number in gone:
                self._path(number).unlink(missing_ok=True)
                del self._sizes[number]

    def save_checkpoint(self, text: str) -> None:
        """Replace the shipper's note on how far it came; a crash leaves the old one or the new one."""
        fresh = self._folder / f"{_CHECKPOINT}.new"
        try:
            fresh.write_text(text)
            fresh.replace(self._folder / _CHECKPOINT)
        except OSError as error:
            raise _fault(error) from error

    def load_checkpoint(self) -> str | None:
        try:
            return (self._folder / _CHECKPOINT).read_text()
        except FileNotFoundError:
            return None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.seg"

    def _open_segment(self, number: int) -> int:
        try:
            fd = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _fault(error) from error
        self._sizes.setdefault(number, 0)
        return fd

    def _note(self, record: Record) -> None:
        if record.kind is Kind.END:
            self.finished = True
        elif record.kind is not Kind.CUT and record.stream is not Stream.AGENT:
            length = len(record.data) if record.kind is Kind.DATA else 0
            self.ends[record.stream] = max(self.ends.get(record.stream, 0), record.offset + length)

    def _recover(self, number: int) -> int:
        """The size of the whole records of a segment; what a crash tore off behind them is cut away."""
        path, good = self._path(number), 0
        for record, after in self._records(number, 0, path.stat().st_size):
            self._note(record)
            good = after
        os.truncate(path, good)
        return good

    def _records(self, number: int, byte: int, size: int) -> Iterator[tuple[Record, int]]:
        try:
            file = self._path(number).open("rb")
        except FileNotFoundError:  # shipped and discarded meanwhile
            return
        with file:
            file.seek(byte)
            while byte + _HEADER.size <= size:
                head = file.read(_HEADER.size)
                kind, stream, _, length, ts_ms, offset, crc = _HEADER.unpack(head)
                if length > MAX_PAYLOAD_BYTES or byte + _HEADER.size + length > size:
                    return
                data = file.read(length)
                if zlib.crc32(data, zlib.crc32(head[:-4])) != crc:
                    return
                byte += _HEADER.size + length
                yield Record(Kind(kind), Stream(stream), ts_ms, offset, data), byte


def _write_all(fd: int, data: bytes, position: int) -> None:
    """All of `data` at `position`, or nothing of it."""
    view, place = memoryview(data), position
    try:
        while view:
            written = os.pwrite(fd, view, place)
            view, place = view[written:], place + written
    except OSError as error:
        os.ftruncate(fd, position)  # whole records among the leftovers would come back to life after a crash
        raise _fault(error) from error


def _fault(error: OSError) -> HostFault:
    return HostFault(f"the log spool cannot be written ({error.strerror}): free space on the state folder")


def _render(record: Record) -> bytes:
    head = _HEADER.pack(record.kind, record.stream, 0, len(record.data), record.ts_ms, record.offset, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(record.data, zlib.crc32(head))) + record.data
