"""The disk spool of one VM's output: what was acknowledged to the guest is in here before the guest hears of it.

Append-only segments of checksummed records in a folder of its own; a segment goes when all of it was shipped. Where
the cap is reached, whole segments that nobody has read go first, and a record in their place says what they held.
Synchronous, called in threads by `logspool` only; it knows nothing of lines, rows or the network. What was written
survives SIGKILL of the agent (page cache); a record torn by it is cut off when the spool is opened again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from nimbus.host_agent.output.spoolrecord import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Kind,
    Position,
    Record,
    Stream,
    Tally,
    parse_header,
    parse_payload,
    parse_tally,
    render_record,
    render_tally,
)
from nimbus.model.errors import Conflict, HostFault

DEFAULT_CAP_BYTES = 512 * 2**20  # unshipped output of one VM; beyond it the oldest unread output is dropped and told
SEGMENT_BYTES = 8 * 2**20
CHECKPOINT = "shipped.json"
MASKS = "masks.json"
TARGET = "target.json"
_SEGMENTS_LEAST = 8  # below the cap: what is dropped at once is a small part of what is kept
_HEAD = "head"
_LOCK = "lock"


class Spool:
    """The segments of one VM, locked against other processes. Appending and reading may happen in two threads."""

    def __init__(self, folder: Path, cap_bytes: int = DEFAULT_CAP_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._segment_bytes = max(1, min(segment_bytes, cap_bytes // _SEGMENTS_LEAST))
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._tallies: dict[int, Tally] = {}
        self.total = Tally()  # of all that ever was in here, as far as records still tell
        self.finished = False
        self.dropped_lines = 0  # by this process
        self._lock_fd = _lock_folder(folder)
        try:
            self._open()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _open(self) -> None:
        for number in sorted(int(path.stem) for path in self._folder.glob("*.seg")):
            self._sizes[number] = self._recover(number)
        for number, tally in sorted(self._tallies.items()):
            for gone in [old for old in self._sizes if tally.first <= old < number]:
                self._remove(
                    gone
                )  # a crash between a merged word about dropped segments and the removal of the old one
            self.total.add(tally)
        self._head = self._saved_head = int(self.load(_HEAD) or 0)
        self._last = max(self._sizes, default=0)
        self._append_fd = self._open_segment(self._last)

    def close(self) -> None:
        os.close(self._append_fd)
        os.close(self._lock_fd)

    @property
    def stored_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def make_room(self, length: int, ts_ms: int) -> bool:
        """Drop old output until `length` more bytes fit. False where they do not: the caller drops and tells those."""
        with self._lock:
            while sum(self._sizes.values()) + length + HEADER_BYTES > self._cap_bytes:
                if not self._drop_oldest(ts_ms):
                    return False
        return True

    def append(self, *records: Record) -> None:
        """Write records, all of them or none; HostFault where the disk will not take them."""
        whole = b"".join(render_record(record) for record in records)
        with self._lock:
            if self._sizes[self._last] >= self._segment_bytes:
                fresh = self._open_segment(self._last + 1)
                os.close(self._append_fd)
                self._last, self._append_fd = self._last + 1, fresh
            size = self._sizes[self._last]
            _write_all(self._append_fd, whole, size)
            self._sizes[self._last] = size + len(whole)
            for record in records:
                self._note(self._last, record)
                self.total.note(record)

    def read(self, position: Position, max_bytes: int) -> tuple[list[Record], Position]:
        """Records from `position` on, about `max_bytes` of them, and where the next read begins.

        A segment that a read has reached is never dropped.
        """
        records: list[Record] = []
        taken = 0
        while taken < max_bytes and (claimed := self._claim(position)) is not None:
            number, size = claimed
            byte = position.byte if number == position.segment else 0
            for record, after in self._records(number, byte, size):
                records.append(record)
                taken += len(record.data)
                position = Position(number, after)
                if taken >= max_bytes:
                    break
            else:
                position = Position(number, size)  # even where a record of it became unreadable
        return records, position

    def hold_head(self) -> None:
        """Remember how far reading came: called before anything that was read leaves this host.

        Rows are numbered as they are read. A successor must number the same rows, so it must find the same segments.
        """
        if self._head != self._saved_head:
            head = self._head
            self.save(_HEAD, str(head))
            self._saved_head = head

    def discard_before(self, position: Position) -> None:
        """Remove the segments that lie wholly before `position`; absent is success."""
        with self._lock:
            for number in [number for number in self._sizes if number < position.segment and number != self._last]:
                self._remove(number)

    def save(self, name: str, text: str) -> None:
        """Replace a note in the spool's folder; a crash leaves the old one or the new one."""
        save_note(self._folder, name, text)

    def load(self, name: str) -> str | None:
        return load_note(self._folder, name)

    def remove(self) -> None:
        """All of it has arrived: take the folder away."""
        _remove_folder(self._folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.seg"

    def _open_segment(self, number: int) -> int:
        try:
            fd = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _fault(error) from error
        self._sizes.setdefault(number, 0)
        return fd

    def _remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        del self._sizes[number]
        self._tallies.pop(number, None)

    def _note(self, number: int, record: Record) -> None:
        self._tallies.setdefault(number, Tally(first=number)).note(record)
        self.finished = self.finished or record.kind is Kind.END

    def _claim(self, position: Position) -> tuple[int, int] | None:
        """The segment that reading goes on in. From here on it is not dropped."""
        with self._lock:
            for number in sorted(number for number in self._sizes if number >= position.segment):
                if self._sizes[number] > (position.byte if number == position.segment else 0):
                    self._head = max(self._head, number)
                    return number, self._sizes[number]
        return None

    def _drop_oldest(self, ts_ms: int) -> bool:
        """Put a word in the place of the oldest segment that no read has reached. False where there is none.

        Not of one before it: a shipper that was killed may have sent rows of those, whose numbers must stay theirs.
        """
        unread = sorted(number for number in self._sizes if self._head < number < self._last)
        number = next((number for number in unread if not self._tallies[number].is_dropped), None)
        if number is None:
            return False
        dropped = self._tallies[number]
        self.dropped_lines += dropped.lines
        before = next((other for other in reversed(unread) if other < number), None)
        if before is not None:  # the word about earlier ones moves on with this one: there is one, however many go
            merged = self._tallies[before]
            merged.add(dropped)
            dropped = merged
        dropped.is_dropped = True
        record = render_record(Record(Kind.DROPPED, Stream.AGENT, ts_ms, 0, render_tally(dropped)))
        fresh = self._folder / "dropped.new"
        try:
            fresh.write_bytes(record)
            fresh.replace(self._path(number))
        except OSError:
            return False
        self._sizes[number], self._tallies[number] = len(record), dropped
        if before is not None:
            self._remove(before)
        return True

    def _recover(self, number: int) -> int:
        """The size of the whole records of a segment; what a crash tore off behind them is cut away."""
        path, good = self._path(number), 0
        self._tallies[number] = Tally(first=number)
        for record, after in self._records(number, 0, path.stat().st_size):
            if record.kind is Kind.DROPPED:
                self._tallies[number] = parse_tally(record.data)
            self._note(number, record)
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
            while byte + HEADER_BYTES <= size:
                head = file.read(HEADER_BYTES)
                header = parse_header(head)
                if header.length > MAX_PAYLOAD_BYTES or byte + HEADER_BYTES + header.length > size:
                    return
                payload = file.read(header.length)
                if zlib.crc32(payload, zlib.crc32(head[:-4])) != header.crc:
                    return
                byte += HEADER_BYTES + header.length
                yield parse_payload(header, payload), byte


def remove_spool(folder: Path) -> None:
    """Take away a spool as it is, readable or not. Conflict while somebody holds it."""
    lock_fd = _lock_folder(folder)
    try:
        _remove_folder(folder)
    finally:
        os.close(lock_fd)


def save_note(folder: Path, name: str, text: str) -> None:
    """Write a file of the spool's folder, whole or not at all, readable by nobody else."""
    fresh = folder / f"{name}.new"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        fresh.replace(folder / name)
    except OSError as error:
        raise _fault(error) from error


def load_note(folder: Path, name: str) -> str | None:
    """What `save_note` wrote; None where it never did."""
    try:
        return (folder / name).read_text()
    except FileNotFoundError:
        return None


def _lock_folder(folder: Path) -> int:
    """The folder's lock, for as long as the descriptor is open. Conflict while another has it."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _fault(error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"the log spool of {folder.name} is in use") from None
    return fd


def _remove_folder(folder: Path) -> None:
    """What a crash leaves of this has no target, so nobody ships it."""
    (folder / TARGET).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


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
