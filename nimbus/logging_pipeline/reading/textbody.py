"""The body of a download: a scope's output as text or as JSON lines, read stretch by stretch.

Its memory is that of one stretch, however long the output. What it sends is exactly what was promised: if the output
changes meanwhile, the connection breaks instead, and a client that resumes is told by the changed tag. Called by the
download routes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from quart.wrappers.response import ResponseBody

from nimbus.logging_pipeline.reading.byterange import ByteRange
from nimbus.logging_pipeline.reading.cursor import render_row
from nimbus.logging_pipeline.reading.turns import Turns
from nimbus.logging_pipeline.rows import ReadRow
from nimbus.logging_pipeline.store.extents import Extent, plan_stretch
from nimbus.logging_pipeline.store.table import LogTable
from nimbus.model.errors import Unavailable
from nimbus.runtime.retry import Backoff, retry_unavailable
from nimbus.runtime.threads import ThreadLane
from nimbus.wire.joboutput import render_moment
from nimbus.wire.terminaltext import plain_text

CONSOLE = "[console] "
_CHUNK_BYTES = 2**20
_TRIES = 8  # a stretch is read again while the engine is started anew
_PACKING = ThreadLane("pack", 2)
_GZIP_BITS = 31  # the largest window, in a gzip wrapping
_GZIP_LEVEL = 6


@dataclass(frozen=True)
class TextForm:
    """How a line is written."""

    timestamps: bool = False
    plain: bool = False
    as_json: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether the store can tell how long a line will be."""
        return not (self.plain or self.as_json)

    @property
    def line_bytes(self) -> int:
        """What is written about each line."""
        return 1 + (len(render_moment(0)) + 1 if self.timestamps else 0)

    def render(self, read: ReadRow) -> bytes:
        """One line."""
        if self.as_json:
            return json.dumps(render_row(read), separators=(",", ":")).encode() + b"\n"
        row = read.row
        moment = f"{render_moment(row.ts_ms)} " if self.timestamps else ""
        text = plain_text(row.message) if self.plain else row.message
        return f"{moment}{CONSOLE if row.stream == 'console' else ''}{text}\n".encode(errors="surrogatepass")


@dataclass(frozen=True)
class TextSource:
    """What is downloaded: stretches of one scope's output in their order, in one form."""

    table: LogTable
    turns: Turns
    org_id: int
    form: TextForm
    extents: Sequence[Extent]

    @property
    def size(self) -> int:
        """In bytes, where the form is measured."""
        return sum(extent.bytes for extent in self.extents)

    @property
    def tag(self) -> str:
        """Changes when anything is added: what was stored of each machine and fence, and the form."""
        ends: dict[tuple[int, int], tuple[int, int, int]] = {}
        for each in self.extents:
            lines, size, _ = ends.get((each.machine_id, each.fence), (0, 0, 0))
            ends[each.machine_id, each.fence] = lines + each.lines, size + each.bytes, each.last
        return hashlib.blake2b(repr((self.org_id, self.form, ends)).encode(), digest_size=16).hexdigest()

    async def read(self, extents: Sequence[Extent]) -> bytes:
        """The text of some stretches of one machine and fence. Read again while the engine is started anew."""
        plan = plan_stretch(self.table.name, self.org_id, extents[0], extents[-1])
        rows = await retry_unavailable(partial(self.table.rows, plan), Backoff(0.5, 5.0), _TRIES)
        text = b"".join(map(self.form.render, rows))
        if self.form.is_measured and len(text) != sum(extent.bytes for extent in extents):
            raise Unavailable("the output changed while it was sent: download it again")
        return text


class TextStream(ResponseBody):
    """The bytes of a source, all or a range of them, on their way."""

    def __init__(self, source: TextSource, wanted: ByteRange | None = None) -> None:
        self._source = source
        extents, self._skip = _find_extents(source.extents, wanted)
        self._left = None if wanted is None else wanted.end - wanted.first
        self._groups = iter(_group(extents))

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open between two reads."""

    def __aiter__(self) -> TextStream:
        return self

    async def __anext__(self) -> bytes:
        """The next stretch."""
        group = None if self._left == 0 else next(self._groups, None)
        if group is None:
            raise StopAsyncIteration
        async with self._source.turns.queue(self._source.org_id):
            text = await self._source.read(group)
        piece = text[self._skip :] if self._left is None else text[self._skip : self._skip + self._left]
        self._skip = 0
        if self._left is not None:
            self._left -= len(piece)
        return piece


class PackedStream(ResponseBody):
    """A stream as gzip."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_BITS)
        self._ended = False

    async def __aenter__(self) -> PackedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open between two reads."""

    def __aiter__(self) -> PackedStream:
        return self

    async def __anext__(self) -> bytes:
        """Some packed bytes; none at all now and then."""
        if self._ended:
            raise StopAsyncIteration
        try:
            return await _PACKING.run(self._packer.compress, await anext(self._stream))
        except StopAsyncIteration:
            self._ended = True
            return self._packer.flush()


def _find_extents(extents: Sequence[Extent], wanted: ByteRange | None) -> tuple[Sequence[Extent], int]:
    """The stretches that hold the range, and how many bytes of the first one come before it."""
    if wanted is None:
        return extents, 0
    position, found, skip = 0, list[Extent](), 0
    for extent in extents:
        if position < wanted.end and position + extent.bytes > wanted.first:
            skip = skip if found else wanted.first - position
            found.append(extent)
        position += extent.bytes
    return found, skip


def _group(extents: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Stretches that are read at once."""
    group: list[Extent] = []
    size = 0
    for extent in extents:
        other = group and (group[0].machine_id, group[0].fence) != (extent.machine_id, extent.fence)
        if other or (group and size + extent.bytes > _CHUNK_BYTES):
            yield group
            group, size = [], 0
        group.append(extent)
        size += extent.bytes
    if group:
        yield group
