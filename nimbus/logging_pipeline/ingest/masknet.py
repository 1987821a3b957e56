"""The second net: hides in rows what their agent could not know to be secret, before anybody sees or stores them.

Two kinds: what has the shape of a well-known secret, and what the org registered. Masking proper is the agent's, in
its one ordered stream; this net never takes a row away, adds one or changes a number. What the end of one request may
have begun is carried to the next, for each stream. Called by the ingest route (`prepare`) and by `writer` (`hide`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

from nimbus.logging_pipeline.ingest.needles import Found, Needles
from nimbus.logging_pipeline.ingest.shapes import (
    OPEN_MAX,
    PEM_LINES_MAX,
    ROW_ALARM,
    PemBlock,
    Span,
    find_begun,
    find_shapes,
    looks_like_key,
)
from nimbus.logging_pipeline.rows import Row, Source

MASK = b"***"
MAX_SOURCES = 20_000  # whose lines' ends are remembered; a forgotten one begins as after a restart
# an agent cuts longer lines at 64 KiB: up to three bytes earlier, so as not to cut a character, and a \r goes
CUT_BYTES = 64 * 1024 - 4
_CUT_CHARS = CUT_BYTES // 4  # no text of fewer characters is that long
SHAPE, REGISTERED = "shape", "registered"


class Registry(Protocol):
    """What orgs registered."""

    async def ensure(self, org_id: int) -> None:
        """Return once the org's secrets are at hand, or need not be waited for; Unavailable meanwhile."""

    def find(self, org_id: int) -> Needles | None:
        """What is at hand; None for nothing."""


class Tally(Protocol):
    """Counts the rows in which something was hidden, by kind."""

    def __call__(self, kind: str, rows: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Edge:
    """What must be known of a stream's rows so far. `known` False: they were not seen, by this process at least."""

    known: bool = True
    tail: bytes = field(default=b"", repr=False)  # their end, where it may be the beginning of a registered secret
    begun: bytes = field(default=b"", repr=False)  # and where it may be that of a known shape
    key_lines: int = 0  # of a private key that may follow yet
    strange: int = 0


@dataclass(slots=True)
class _Memory:
    """One source between two requests, and before the last one, should that one come again."""

    first_seq: int
    next_seq: int
    before: dict[str, Edge]
    after: dict[str, Edge]
    unseen: Edge  # of a stream that did not appear yet


class MaskNet:
    """All sources' state, on top of the orgs' registered secrets."""

    def __init__(self, registry: Registry, tally: Tally) -> None:
        self._registry = registry
        self._tally = tally
        self._memory: OrderedDict[Source, _Memory] = OrderedDict()

    async def prepare(self, org_id: int) -> None:
        """Have the org's registered secrets at hand; Unavailable where that takes longer."""
        await self._registry.ensure(org_id)

    def hide(self, source: Source, rows: list[Row]) -> list[Row]:
        """The same rows, which are in the order of their numbers, without secrets."""
        if not rows:
            return rows
        memory = self._recall(source, rows)
        needles = self._registry.find(source.org_id)
        for stream, strand in _by_stream(rows).items():
            work = _Strand(strand, needles, memory.before.get(stream, memory.unseen))
            memory.after[stream] = work.hide()
            for kind, hidden in work.hidden.items():
                self._tally(kind, len(hidden))
        return rows

    def _recall(self, source: Source, rows: Sequence[Row]) -> _Memory:
        """The source's memory with these rows noted in it."""
        first, following = rows[0].seq, rows[-1].seq + 1
        old = self._memory.get(source)
        if old is not None and first >= old.next_seq:
            memory = _Memory(first, following, old.after, dict(old.after), old.unseen)
        elif old is not None and first == old.first_seq:  # it was not stored, and comes again
            memory = _Memory(first, following, old.before, dict(old.before), old.unseen)
        else:
            memory = _Memory(first, following, {}, {}, Edge(known=first == 0))
        self._memory[source] = memory
        self._memory.move_to_end(source)
        while len(self._memory) > MAX_SOURCES:
            self._memory.popitem(last=False)
        return memory


def _by_stream(rows: list[Row]) -> dict[str, list[Row]]:
    stream = rows[0].stream
    if all(row.stream == stream for row in rows):
        return {stream: rows}
    strands: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        strands[row.stream].append(row)
    return strands


@dataclass
class _Strand:
    """The rows of one stream in one request."""

    rows: list[Row]
    needles: Needles | None
    edge: Edge
    hidden: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._messages = [row.message for row in self.rows]
        self._joined = _encode("\n".join(self._messages))
        self._spans: dict[int, list[Span]] = defaultdict(list)
        self._ends: list[int] = []  # of the rows, in bytes, without anything between them

    def hide(self) -> Edge:
        """Write `***` over what is secret; the edge behind the last row."""
        edge = self._cover_shapes()
        if self.needles is not None and len(self.needles):
            edge = self._cover_registered(self.needles, edge)
        for index, spans in self._spans.items():
            self.rows[index].message = _cover(_encode(self._messages[index]), spans)
        return edge

    def _note(self, kind: str, index: int, spans: list[Span]) -> None:
        if spans:
            self._spans[index] += spans
            self.hidden.setdefault(kind, set()).add(index)

    # --- known shapes ---------------------------------------------------------------------------------------------

    def _cover_shapes(self) -> Edge:
        """One search through all rows; a row is looked at by itself only where that found something, or must be."""
        edge = self.edge
        key = PemBlock(edge.key_lines, edge.strange)
        if not edge.known and looks_like_key(_encode(self._messages[0])):
            key.left = PEM_LINES_MAX
        begun, last = edge.begun, -1
        todo = self._find_alarmed()
        if (begun or key.left) and todo[-1:] != [0]:
            todo.append(0)
        while todo:
            index = todo.pop()
            if index != last + 1:
                begun = b""
            begun, last = self._cover_row(index, begun, key), index
            follows = index + 1
            if (begun or key.left) and follows < len(self.rows) and todo[-1:] != [follows]:
                todo.append(follows)
        if last != len(self.rows) - 1:
            begun = b""
        return Edge(True, b"", begun, key.left, key.strange)

    def _find_alarmed(self) -> list[int]:
        """The rows to look at, the first of them last."""
        if max(map(len, self._messages)) >= _CUT_CHARS:
            found = {index for index in range(len(self.rows)) if self._is_cut(index)}
        else:
            found = set()
        match = ROW_ALARM.search(self._joined)
        if match is not None:
            starts = [end + index + 1 for index, end in enumerate(self._row_ends())]
        while match is not None:
            index = bisect_right(starts, match.start())
            found.add(index)
            if index == len(self.rows) - 1:
                break
            match = ROW_ALARM.search(self._joined, starts[index])
        return sorted(found, reverse=True)

    def _is_cut(self, index: int) -> bool:
        message = self._messages[index]
        return len(message) >= _CUT_CHARS and len(_encode(message)) >= CUT_BYTES

    def _cover_row(self, index: int, begun: bytes, key: PemBlock) -> bytes:
        """Note what to hide in one row; what of its end must be looked at together with the next one."""
        text = begun + _encode(self._messages[index])
        spans = [*key.cover(text[len(begun) :]), *_shift(find_shapes(text), -len(begun))]
        open_at = find_begun(text)
        if self._is_cut(index):
            spans += _shift([(open_at, len(text))] if open_at < len(text) else [], -len(begun))
            open_at = max(len(text) - OPEN_MAX, 0)
        elif any(end == len(text) - len(begun) for _, end in spans):
            open_at = len(text)  # a whole secret at a line's end: the next line is another word
        self._note(SHAPE, index, spans)
        return text[max(open_at, len(text) - OPEN_MAX) :]

    # --- registered secrets ---------------------------------------------------------------------------------------

    def _cover_registered(self, needles: Needles, edge: Edge) -> Edge:
        """One search through all rows as if nothing stood between them: a secret may be cut in two, or wrapped."""
        tail = self.edge.tail
        text = tail + _encode("".join(self._messages))
        found = needles.find(text)
        spans = found.spans
        if not self.edge.known and (length := needles.measure_end(text)):
            spans = [(0, length), *spans]
        rest = text[found.tail :]
        if rest and found.blind is None and (self._is_cut(len(self.rows) - 1) or needles.half_told(rest)):
            spans = [*spans, (found.tail, len(text))]
        for span in spans:
            self._note_span(span, len(tail))
        return self._go_blind(found, edge) if found.blind is not None else replace(edge, tail=rest)

    def _go_blind(self, found: Found, edge: Edge) -> Edge:
        """Hide whole rows from where the search was given up: none of them is honest."""
        begin = bisect_right(self._row_ends(), (found.blind or 0) - len(self.edge.tail))
        for index in range(begin, len(self.rows)):
            self._note(REGISTERED, index, [(0, len(_encode(self._messages[index])))])
        return replace(edge, known=False)

    def _note_span(self, span: Span, before: int) -> None:
        """Note a span of the whole text in each row that it touches."""
        begin, end = max(span[0] - before, 0), span[1] - before
        ends = self._row_ends()
        index = bisect_right(ends, begin)
        while index < len(ends) and begin < end:
            start = ends[index - 1] if index else 0
            piece = (begin - start, min(end, ends[index]) - start)
            if piece[0] < piece[1]:
                self._note(REGISTERED, index, [piece])
            begin = ends[index]
            index += 1

    def _row_ends(self) -> list[int]:
        if not self._ends:
            is_ascii = len(self._joined) == sum(map(len, self._messages)) + len(self.rows) - 1
            sizes = map(len, self._messages) if is_ascii else (len(_encode(text)) for text in self._messages)
            self._ends = list(accumulate(sizes))
        return self._ends


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _shift(spans: list[Span], by: int) -> list[Span]:
    """The spans as they stand in a row, without what was before it."""
    return [(max(begin + by, 0), end + by) for begin, end in spans if end + by > 0]


def _cover(text: bytes, spans: list[Span]) -> str:
    parts: list[bytes] = []
    at = 0
    for begin, end in sorted(spans):
        if end <= at:
            continue
        if begin > at or not parts:
            parts += [text[at:begin], MASK]
        at = end
    parts.append(text[at:])
    return b"".join(parts).decode("utf-8", "replace")
