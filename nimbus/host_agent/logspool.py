"""The disk spool of one VM's output as Trio sees it: an OutputSink whose `write` returns once the bytes are safe.

Drops beyond the cap and says so, passes over what it took before, tells what never came. Knows nothing of the
network. Called by `logs`, which opens it and ships from it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from nimbus.host_agent.lines import Checkpoint, parse_checkpoint
from nimbus.host_agent.spool import DEFAULT_CAP_BYTES, Kind, Position, Record, Spool, Stream
from nimbus.model.errors import HostFault
from nimbus.runtime.threads import ThreadLane

log = structlog.get_logger()
_PIECE_BYTES = 64 * 1024  # one record; even of two-byte lines it makes only some MiB of rows


class LogSpool:
    """The spool of one VM as Trio sees it. An OutputSink."""

    def __init__(self, spool: Spool, lane: ThreadLane, shipped: Checkpoint) -> None:
        self._spool = spool
        self._lane = lane
        self._appending = trio.Lock()
        self._dropped: dict[Stream, int] = {}  # bytes since the last that were taken
        self._shipped = shipped
        # segments that were shipped are gone: the checkpoint still knows how far they went
        streams = spool.ends | shipped.ends
        self._ends = {stream: max(spool.ends.get(stream, 0), shipped.ends.get(stream, 0)) for stream in streams}
        self._abandoned = False
        self._fault_told = False
        self.grown = trio.Event()

    @property
    def offsets(self) -> dict[str, int]:
        """Where each stream goes on: what a resumed guest session is told."""
        return {stream.name.lower(): end for stream, end in self._ends.items()}

    async def write(self, stream: str, offset: int, data: bytes) -> None:
        """Take bytes of a stream; what was taken before is passed over, what is missing is told."""
        async with self._appending:
            await self._lane.run(self._take, Stream[stream.upper()], offset, data)
        self._tell()

    async def cut(self, streams: Iterable[Stream]) -> None:
        """Make the unfinished lines of these streams lines."""
        async with self._appending:
            for stream in streams:
                await self._lane.run(self._put, Record(Kind.CUT, stream, _now_ms(), 0))
        self._tell()

    async def finish(self, message: str = "") -> bool:
        """Say that no more output comes; a second time is a no-op. False where the disk does not take even that."""
        async with self._appending:
            said = await self._lane.run(self._end, message)
        self._tell()
        return said

    async def read(self, position: Position) -> tuple[list[Record], Position]:
        return await self._lane.run(self._spool.read, position, _PIECE_BYTES)

    @property
    def shipped(self) -> Checkpoint:
        """How far the rows have arrived."""
        return self._shipped

    @property
    def stored_bytes(self) -> int:
        return self._spool.stored_bytes

    async def advance(self, checkpoint: Checkpoint) -> None:
        """All rows before the checkpoint arrived: remember it, then free the disk."""
        try:
            await self._lane.run(self._spool.save_checkpoint, checkpoint.render())
        except HostFault as error:  # nothing may go before its checkpoint stands; the next one tries again
            self._tell_fault(error)
            return
        await self._lane.run(self._spool.discard_before, checkpoint.position)
        self._shipped = checkpoint

    def abandon(self) -> None:
        """Nobody will read on: store nothing more."""
        self._abandoned = True

    def _tell(self) -> None:
        self.grown.set()
        self.grown = trio.Event()

    def _take(self, stream: Stream, offset: int, data: bytes) -> None:
        end = self._ends.get(stream, 0)
        if self._abandoned or offset + len(data) <= end:
            return
        if offset < end:
            offset, data = end, data[end - offset :]
        elif offset > end:
            why = f"nimbus: {offset - end} bytes of {stream.name.lower()} never reached the host"
            self._put(Record(Kind.LOST, stream, _now_ms(), offset, why.encode()))
        for begin in range(0, len(data), _PIECE_BYTES):
            piece = data[begin : begin + _PIECE_BYTES]
            if not self._keep(stream, offset + begin, piece):
                self._dropped[stream] = self._dropped.get(stream, 0) + len(piece)
        self._ends[stream] = offset + len(data)

    def _keep(self, stream: Stream, offset: int, piece: bytes) -> bool:
        """False where the cap or the disk has no room: the job goes on without its log rather than not at all."""
        if not self._spool.has_room(len(piece)):
            return False
        # the word about what was dropped goes in with the first bytes that fit again, or every try would leave one
        told = self._told_dropped(stream, offset)
        if not self._put(*told, Record(Kind.DATA, stream, _now_ms(), offset, piece)):
            return False
        self._dropped.pop(stream, None)
        return True

    def _told_dropped(self, stream: Stream, offset: int) -> list[Record]:
        """The record that says what was dropped before `offset`, if anything was."""
        count = self._dropped.get(stream, 0)
        why = f"nimbus: {count} bytes of {stream.name.lower()} dropped: the log spool had no room"
        return [Record(Kind.LOST, stream, _now_ms(), offset, why.encode())] if count else []

    def _put(self, *records: Record) -> bool:
        """False where the disk does not take them; the operator is told once."""
        try:
            self._spool.append(*records)
        except HostFault as error:
            self._tell_fault(error)
            return False
        return True

    def _tell_fault(self, error: HostFault) -> None:
        if not self._fault_told:
            log.error("logs.spool_failed", why=str(error))
            self._fault_told = True

    def _end(self, message: str) -> bool:
        if self._abandoned or self._spool.finished:
            return not self._abandoned
        told = [record for stream in self._dropped for record in self._told_dropped(stream, self._ends[stream])]
        self._dropped.clear()
        return self._put(*told, Record(Kind.END, Stream.AGENT, _now_ms(), 0, message.encode()))


@asynccontextmanager
async def open_spool(folder: Path, cap_bytes: int = DEFAULT_CAP_BYTES) -> AsyncIterator[LogSpool]:
    """The spool in `folder`, new or as an earlier agent left it."""
    lane = ThreadLane("log-spool", 2)  # one thread appends, one reads
    spool = await lane.run(Spool, folder, cap_bytes)
    try:
        yield LogSpool(spool, lane, parse_checkpoint(await lane.run(spool.load_checkpoint)))
    finally:
        spool.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
