"""Frames of the guest link: bytes of any origin in, whole checked frames out, and back. docs/guest-link.md.

A reader may join the stream anywhere (QEMU throws bytes away while nobody is connected), so it hunts for
the next magic with a right checksum and counts what it skipped. It never raises, whatever it is fed, keeps at most one
frame, and spends time in proportion to the bytes fed. Knows no message: that is guestlink.py, its only caller.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MAGIC = b"NBL1"
MAX_PAYLOAD_BYTES = 65536 + 64  # 64 KiB of output and its own head
_HEADER = struct.Struct("<4sBBHII")  # magic, type, flags, 0, length, crc32 of the eight bytes before and the payload
HEADER_BYTES = _HEADER.size
_CHECKED = slice(4, 12)
# A false magic in hostile bytes makes the reader checksum up to 64 KiB for nothing. It may do so for this many
# times the bytes fed; then it skips what it checked, so that a guest cannot buy much of the agent's time.
_HUNT_FACTOR = 8
_HUNT_START_BYTES = 4 * MAX_PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame whose checksum was right. What it says is for guestlink.py to find out."""

    kind: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """What a reader met so far."""

    frames: int = 0
    bad_checksums: int = 0
    skipped_bytes: int = 0


def render_frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """The bytes of one frame."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame holds {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
    head = _HEADER.pack(MAGIC, kind, flags, 0, len(payload), 0)
    return head[:12] + zlib.crc32(payload, zlib.crc32(head[_CHECKED])).to_bytes(4, "little") + payload


class FrameSplitter:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames = self._bad_checksums = self._skipped_bytes = 0
        self._hunt_bytes = _HUNT_START_BYTES

    @property
    def counts(self) -> FrameCounts:
        return FrameCounts(self._frames, self._bad_checksums, self._skipped_bytes)

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._buffer)

    def reset(self) -> None:
        """Forget a frame that has not come whole: what follows comes from another connection or attach."""
        self._skipped_bytes += len(self._buffer)
        self._buffer.clear()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that end within `data`."""
        self._buffer += data
        self._hunt_bytes = min(_HUNT_START_BYTES, self._hunt_bytes + _HUNT_FACTOR * len(data))
        frames: list[Frame] = []
        start, size = 0, len(self._buffer)
        with memoryview(self._buffer) as view:
            while start < size:
                step = self._next(view, start, frames)
                if step == 0:
                    break
                start += step
        del self._buffer[:start]
        return frames

    def _next(self, view: memoryview, start: int, frames: list[Frame]) -> int:
        """How many bytes at `start` are done with; 0 when more must come."""
        left = len(view) - start
        if left < HEADER_BYTES or view[start : start + 4] != MAGIC:
            return self._hunt(start)
        _, kind, flags, zero, length, crc = _HEADER.unpack_from(view, start)
        assert isinstance(length, int)  # noqa: S101 - says what the struct's format says
        if zero != 0 or length > MAX_PAYLOAD_BYTES:
            return self._skip(1)
        whole = HEADER_BYTES + length
        if left < whole:
            return 0
        payload = view[start + HEADER_BYTES : start + whole]
        if zlib.crc32(payload, zlib.crc32(view[start + 4 : start + 12])) != crc:
            self._bad_checksums += 1
            self._hunt_bytes -= whole
            return self._skip(1 if self._hunt_bytes > 0 else whole)
        self._frames += 1
        frames.append(Frame(kind, flags, bytes(payload)))
        return whole

    def _hunt(self, start: int) -> int:
        """Bytes before the next magic, or before what may be its beginning at the very end."""
        found = self._buffer.find(MAGIC, start)
        if found >= 0:
            return self._skip(found - start)
        size = len(self._buffer)
        tail = next((n for n in (3, 2, 1) if n <= size - start and self._buffer.endswith(MAGIC[:n])), 0)
        return self._skip(size - start - tail)

    def _skip(self, count: int) -> int:
        self._skipped_bytes += count
        return count
