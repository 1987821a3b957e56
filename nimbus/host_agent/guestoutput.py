"""A guest's output between its link and the sink: in order, joined where it can be, bounded whatever the guest does.

Its bytes are bounded by the credit that guesttalk.py, the only caller, gives; its objects are bounded here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nimbus.wire.guestlink import Stream

WRITE_BYTES = 256 * 1024  # small outputs that wait together go to the sink together
PIECES_MAX = 256  # that wait in the order in which they came; after that, dripped bytes join the last of their stream


@dataclass(slots=True)
class Piece:
    """Bytes of one stream that follow each other."""

    stream: Stream
    offset: int
    data: bytearray

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class PendingOutput:
    """Pieces in line for the sink. Within a stream, each put must begin where the one before it ended."""

    def __init__(self) -> None:
        self._line: deque[Piece] = deque()
        self._latest: dict[Stream, Piece] = {}  # of the line, the last of each stream

    def __bool__(self) -> bool:
        return bool(self._line)

    def put(self, stream: Stream, offset: int, data: bytes | memoryview) -> None:
        """Put output in line. What follows in its stream joins it, so that dripped bytes do not each cost an object."""
        latest = self._latest.get(stream)
        is_last = latest is not None and latest is self._line[-1] and len(latest.data) < WRITE_BYTES
        if latest is not None and (is_last or len(self._line) >= PIECES_MAX):
            latest.data += data
        else:
            piece = Piece(stream, offset, bytearray(data))
            self._line.append(piece)
            self._latest[stream] = piece

    def take(self) -> Piece:
        """The next piece for the sink; nothing joins it any more."""
        piece = self._line.popleft()
        if self._latest[piece.stream] is piece:
            del self._latest[piece.stream]
        return piece
