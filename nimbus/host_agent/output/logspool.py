"""The disk spool of one VM's output as Trio sees it: an OutputSink whose `write` tells how far the bytes are safe.

Hides secrets before anything is stored, drops beyond the cap and says so, passes over what it took before, tells what
never came. Knows nothing of the network. Called by `logs` and `stragglers`, which open it and ship from it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from nimbus.host_agent.lane import Hung, file_limit_s, in_thread
from nimbus.host_agent.output.lines import Checkpoint, parse_checkpoint
from nimbus.host_agent.output.masking import Edge, Masker, MaskSet, Part, parse_edge, parse_masks
from nimbus.host_agent.output.spool import CHECKPOINT, DEFAULT_CAP_BYTES, MASKS, Spool
from nimbus.host_agent.output.spoolrecord import Kind, Position, Record, Stream
from nimbus.host_agent.page import Page, open_page
from nimbus.model.errors import HostFault

T = TypeVar("T")
log = structlog.get_logger()
PIECE_BYTES = 64 * 1024  # one record; even of two-byte lines it makes only some MiB of rows
_LOST_END = "nimbus: the end of this output was lost with its agent"
_WITHHELD = "nimbus: the job asked for more masks than can be kept: the rest of its output is withheld"


class LogSpool:
    """The spool of one VM as Trio sees it. An OutputSink."""

    def __init__(self, spool: Spool, lane: trio.CapacityLimiter, shipped: Checkpoint, masks: MaskSet) -> None:
        self._spool = spool
        self._lane = lane
        self._appending = trio.Lock()
        self._dropped: dict[Stream, tuple[int, int]] = {}  # lines and bytes since the last that were taken
        self._shipped = shipped
        self._masks, self._saved_masks = masks, masks.revision
        self._is_withheld = masks.overflowed
        # segments that were shipped are gone: the checkpoint still knows how far they went
        reached = {stream: (end, shipped.edges.get(stream, 0)) for stream, end in shipped.ends.items()}
        for stream, end in spool.total.ends.items():
            if end >= reached.get(stream, (0, 0))[0]:
                reached[stream] = end, spool.total.edges[stream]
        self._ends = {stream: end for stream, (end, _) in reached.items()}
        edges = {stream: edge for stream, (_, edge) in reached.items()}
        self._maskers = {stream: Masker(masks, parse_edge(edges.get(stream, 0))) for stream in Stream}
        self._abandoned = False
        self._fault_told = False
        self._is_hung = False  # one of its threads sits in the kernel with the spool in its hands: nothing more is done
        self.dropped_lines = 0  # by this process
        self.grown = trio.Event()

    @property
    def offsets(self) -> tuple[int, int]:
        """Where stdout and stderr go on: what a resumed guest session is told."""
        return self._ends.get(Stream.STDOUT, 0), self._ends.get(Stream.STDERR, 0)

    @property
    def finished(self) -> bool:
        """No more output comes."""
        return self._spool.finished

    async def write(self, stream: str, offset: int, data: bytes) -> int:
        """Take bytes of a stream; what was taken before is passed over, what is missing is told.

        Returns up to where the stream is safe: what may begin a secret is not, until more comes or `flush`. On a disk
        that hangs the job goes on without its log.
        """
        source = Stream[stream.upper()]
        with self._telling_hang():
            async with self._appending:
                for begin in range(0, len(data), PIECE_BYTES):
                    await self._run(partial(self._take, source, offset + begin, data[begin : begin + PIECE_BYTES]))
        self._tell()
        return offset + len(data) if self._is_hung else self._ends.get(source, 0)

    async def flush(self) -> None:
        """Store what was held back too: nothing follows it."""
        with self._telling_hang():
            async with self._appending:
                await self._run(self._release)
        self._tell()

    async def mask(self, secrets: Iterable[str]) -> None:
        """Hide these from here on. HostFault where the disk does not take them."""
        async with self._appending:
            await self._run(partial(self._mask, list(secrets)))
        self._tell()

    async def cut(self, streams: Iterable[Stream]) -> None:
        """Make the unfinished lines of these streams lines."""
        async with self._appending:
            for stream in streams:
                await self._run(partial(self._put, Record(Kind.CUT, stream, _now_ms(), 0)))
        self._tell()

    async def finish(self, message: str = "") -> bool:
        """Say that no more output comes; a second time is a no-op. False where the disk does not take even that."""
        said = False
        with self._telling_hang():
            async with self._appending:
                said = await self._run(partial(self._end, message))
        self._tell()
        return said

    async def finish_orphan(self) -> bool:
        """End a spool whose agent died before its VM did: a row says that more may have been printed."""
        async with self._appending:
            await self._run(self._end_orphan)
        self._tell()
        return self._spool.finished

    async def read(self, position: Position) -> tuple[list[Record], Position]:
        return await self._run(partial(self._spool.read, position, PIECE_BYTES))

    @property
    def shipped(self) -> Checkpoint:
        """How far the rows have arrived."""
        return self._shipped

    @property
    def stored_bytes(self) -> int:
        return self._spool.stored_bytes

    async def hold_head(self) -> None:
        """What was read may leave this host from here on."""
        try:
            await self._run(self._spool.hold_head)
        except HostFault as error:  # shipping is what frees a full disk: it goes on
            self._tell_fault(error)

    async def advance(self, checkpoint: Checkpoint) -> None:
        """All rows before the checkpoint arrived: remember it, then free the disk."""
        try:
            await self._run(partial(self._spool.save, CHECKPOINT, checkpoint.render()))
        except HostFault as error:  # nothing may go before its checkpoint stands; the next one tries again
            self._tell_fault(error)
            return
        await self._run(partial(self._spool.discard_before, checkpoint.position))
        self._shipped = checkpoint

    def abandon(self) -> None:
        """Nobody will read on: store nothing more."""
        self._abandoned = True

    async def remove(self) -> None:
        """Take the folder away, once nobody needs it."""
        self.abandon()
        async with self._appending:
            await self._run(self._spool.remove)

    async def _run(self, act: Callable[[], T]) -> T:
        """Its result; Hung where it sits in the kernel, and at once from then on: it has the spool in its hands."""
        if self._is_hung:
            raise Hung(file_limit_s())
        try:
            return await in_thread(act, self._lane)
        except Hung:
            self._is_hung = True
            raise

    @contextmanager
    def _telling_hang(self) -> Iterator[None]:
        try:
            yield
        except Hung as error:
            self._tell_fault(error)

    def _tell(self) -> None:
        self.grown.set()
        self.grown = trio.Event()

    def _take(self, stream: Stream, offset: int, data: bytes) -> None:
        masker = self._maskers[stream]
        known = self._ends.get(stream, 0) + len(masker.held)
        if offset + len(data) <= known:
            return
        if self._abandoned or self._is_withheld:
            masker.held, self._ends[stream] = b"", offset + len(data)
            return
        if offset < known:
            data = data[known - offset :]
        elif offset > known:
            self._store(stream, masker.feed(b"", final=True))
            why = f"nimbus: {offset - known} bytes of {stream.name.lower()} never reached the host"
            self._put(Record(Kind.LOST, stream, _now_ms(), offset, why.encode()))
            self._ends[stream], masker.edge = offset, Edge()
        if not self._store(stream, masker.feed(data)):
            self._ends[stream] = max(known, offset) + len(data)

    def _store(self, stream: Stream, parts: Iterable[Part]) -> bool:
        """One record for all parts; those before a new mask go first, then the mask, then what follows it.

        False where the masks became too many, so that the rest was passed over.
        """
        texts: list[bytes] = []
        taken, edge = 0, Edge()
        for part in parts:
            if self._masks.revision != self._saved_masks:
                self._keep(stream, b"".join(texts), taken, edge)
                texts, taken = [], 0
                self._save_masks()
            texts.append(part.text)
            taken, edge = taken + part.taken, part.edge
        self._keep(stream, b"".join(texts), taken, edge)
        if self._masks.overflowed and not self._is_withheld:
            self._withhold()
        return not self._is_withheld

    def _keep(self, stream: Stream, text: bytes, taken: int, edge: Edge) -> None:
        """Store it, or count it where the cap or the disk has no room: the job goes on without its log then."""
        if not taken:
            return
        offset = self._ends.get(stream, 0)
        self._ends[stream] = offset + taken
        kind = Kind.DATA if len(text) == taken else Kind.MASKED
        masked = taken if kind is Kind.MASKED else 0
        record = Record(kind, stream, _now_ms(), offset, text, masked, edge.word)
        # a mask that is not on the disk would be unknown to the next agent, so what follows it must not be there either
        has_room = self._save_masks() and self._spool.make_room(len(text), record.ts_ms)
        self.dropped_lines = max(self.dropped_lines, self._spool.dropped_lines)
        # the word about what was dropped goes in with the first bytes that fit again, or every try would leave one
        if has_room and self._put(*self._told_dropped(stream, offset), record):
            self._dropped.pop(stream, None)
            return
        lines, count = self._dropped.get(stream, (0, 0))
        self._dropped[stream] = lines + text.count(b"\n"), count + taken

    def _told_dropped(self, stream: Stream, offset: int) -> list[Record]:
        """The record that says what was dropped before `offset`, if anything was."""
        lines, count = self._dropped.get(stream, (0, 0))
        why = f"nimbus: {lines} lines ({count} bytes) of {stream.name.lower()} dropped: the log spool had no room"
        return [Record(Kind.LOST, stream, _now_ms(), offset, why.encode())] if count else []

    def _release(self) -> None:
        for stream, masker in self._maskers.items():
            if masker.held and not self._abandoned:
                self._store(stream, masker.feed(b"", final=True))

    def _mask(self, secrets: list[str]) -> None:
        for secret in secrets:
            self._masks.add(secret.encode())
        if self._masks.revision != self._saved_masks:
            self._spool.save(MASKS, self._masks.render())
            self._saved_masks = self._masks.revision
        if self._masks.overflowed and not self._is_withheld:
            self._withhold()

    def _save_masks(self) -> bool:
        """False where the disk does not take them."""
        if self._masks.revision == self._saved_masks:
            return True
        try:
            self._spool.save(MASKS, self._masks.render())
        except HostFault as error:
            self._tell_fault(error)
            return False
        self._saved_masks = self._masks.revision
        return True

    def _withhold(self) -> None:
        """Secrecy that cannot be had by masks is kept by telling nothing more."""
        self._is_withheld = True
        log.warning("logs.withheld", why="too many masks")
        self._put(Record(Kind.LOST, Stream.AGENT, _now_ms(), 0, _WITHHELD.encode()))
        self._save_masks()

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
        self._release()
        told = [record for stream in self._dropped for record in self._told_dropped(stream, self._ends[stream])]
        self._dropped.clear()
        return self._put(*told, Record(Kind.END, Stream.AGENT, _now_ms(), 0, message.encode()))

    def _end_orphan(self) -> None:
        if not self._spool.finished:
            cuts = [Record(Kind.CUT, stream, _now_ms(), 0) for stream in (Stream.STDOUT, Stream.STDERR)]
            lost = Record(Kind.LOST, Stream.AGENT, _now_ms(), 0, _LOST_END.encode())
            self._put(*cuts, lost, Record(Kind.END, Stream.AGENT, _now_ms(), 0))


@asynccontextmanager
async def open_spool(folder: Path, cap_bytes: int = DEFAULT_CAP_BYTES) -> AsyncIterator[LogSpool]:
    """The spool in `folder`, new or as an earlier agent left it. Conflict while somebody else has it."""
    lane = trio.CapacityLimiter(2)  # one thread appends, one reads
    async with open_page(Page(_opened(folder, cap_bytes)), file_limit_s()) as (spool, checkpoint, masks):
        yield LogSpool(spool, lane, checkpoint, masks)


@contextmanager
def _opened(folder: Path, cap_bytes: int) -> Iterator[tuple[Spool, Checkpoint, MaskSet]]:
    try:
        spool = Spool(folder, cap_bytes)
        try:
            found = spool, parse_checkpoint(spool.load(CHECKPOINT)), parse_masks(spool.load(MASKS))
        except BaseException:
            spool.close()
            raise
    except (OSError, LookupError, TypeError, ValueError) as error:  # a host that lost its power, or a newer agent
        raise HostFault(f"the log spool of {folder.name} cannot be read ({type(error).__name__})") from error
    try:
        yield found
    finally:
        spool.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
