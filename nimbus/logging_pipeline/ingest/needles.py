"""An org's registered secrets, ready to be found: every form in which output may show one, and where one stands.

Pure. A search's time grows with the text alone: an automaton finds the beginnings (STEM_BYTES of each form), and a
text with more of them than any honest one has is hidden from there on. Called by `masknet`; made by `registered`.
"""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from urllib.parse import quote, quote_plus

import re2

from nimbus.logging_pipeline.ingest.shapes import Span, compile_pattern

MIN_BYTES = 8  # of a form: a shorter one would be found by chance
NEEDLE_BYTES = 1024  # longer forms are hidden in pieces, so that little is carried from one request to the next
STEM_BYTES = 16
_MEMORY = 192 * 2**20  # the automaton of the largest registry, visited in full; an ordinary one takes a thousandth
_CHECKS_MIN = 64  # beginnings that may be looked at closely in one text, and one more for each so many bytes
_CHECKS_BYTES = 16
_LINE = re.compile(rb"[\r\n]+")


def list_forms(value: str) -> set[bytes]:
    """How output may show this value: as it is, line by line, and encoded as programs do."""
    whole = value.strip().encode()
    lines = [line.strip() for line in _LINE.split(whole)]
    forms = {form for line in lines if len(line) >= MIN_BYTES for form in (line, *_escaped(line))}
    forms |= {*_escaped(whole), *_in_base64(whole), whole.hex().encode(), whole.hex().upper().encode()}
    return {piece for form in forms if b"\n" not in form and b"\r" not in form for piece in _pieces(form)}


def _escaped(value: bytes) -> Iterator[bytes]:
    text = value.decode()
    for safe in ("", "!~*'()", "/"):
        coded = quote(text, safe=safe)
        yield coded.encode()
        yield re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), coded).encode()
    yield quote_plus(text).encode()
    for ascii_only in (True, False):
        told = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield told.encode()
        yield told.replace("/", "\\/").encode()
        yield told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def _in_base64(value: bytes) -> Iterator[bytes]:
    """As it shows wherever it begins within what is encoded: only the characters that depend on nothing else."""
    for before, skipped in ((0, 0), (1, 2), (2, 3)):
        coded = base64.b64encode(b"\0" * before + value)
        whole = (before + len(value)) * 8 // 6
        yield coded[skipped:whole]
        yield coded[skipped:whole].replace(b"+", b"-").replace(b"/", b"_")


def _pieces(form: bytes) -> Iterator[bytes]:
    if len(form) < MIN_BYTES:
        return
    yield from (form[at : at + NEEDLE_BYTES] for at in range(0, len(form) - NEEDLE_BYTES, NEEDLE_BYTES))
    yield form[-NEEDLE_BYTES:]  # reaches back where the length is odd


@dataclass(slots=True)
class Found:
    """What a text shows."""

    spans: list[Span] = field(default_factory=list)  # in order, none overlaps another
    tail: int = 0  # from here to its end it may be the beginning of a secret
    blind: int | None = None  # from here on it was not looked at
    checks: int = 0


class Needles:
    """The forms of an org's secrets."""

    def __init__(self, values: Iterable[str]) -> None:
        self._sorted = sorted(set().union(*map(list_forms, values)))
        self._inner = list(_link_inner(self._sorted))
        self._longest = max(map(len, self._sorted), default=0)
        self._blob = b"\n".join(self._sorted)
        stems = dict.fromkeys(needle[:STEM_BYTES] for needle in self._sorted)
        self.stem_bytes = sum(map(len, stems))  # what the automaton's size grows with
        self._begun = {stem[:length] for stem in stems for length in range(1, len(stem))}
        self._stems = compile_pattern(b"|".join(map(re2.escape, stems)), _MEMORY) if stems else None

    def __len__(self) -> int:
        return len(self._sorted)

    def find(self, text: bytes) -> Found:
        """Every secret in a text."""
        found = Found(tail=len(text))
        if self._stems is None:
            return found
        at, allowed = 0, _CHECKS_MIN + len(text) // _CHECKS_BYTES
        while (match := self._stems.search(text, at)) is not None:
            begin = match.start()
            if found.checks >= allowed:
                found.blind = found.tail = begin
                return found
            length = self._measure(text, begin, found)
            if length:
                _add_span(found.spans, begin, begin + length)
            if found.tail == len(text) and len(text) - begin < self._longest and self._may_grow(text[begin:]):
                found.tail = begin
            at = begin + 1
        last = min(STEM_BYTES - 1, len(text))
        begun = next((len(text) - size for size in range(last, 0, -1) if text[-size:] in self._begun), len(text))
        found.tail = min(found.tail, begun)
        return found

    def _measure(self, text: bytes, begin: int, found: Found) -> int:
        """The length of the longest needle at this place."""
        window = text[begin : begin + self._longest]
        index = bisect_right(self._sorted, window) - 1
        found.checks += 1
        while index >= 0 and not window.startswith(self._sorted[index]):
            index = self._inner[index]
            found.checks += 1
        return len(self._sorted[index]) if index >= 0 else 0

    def _may_grow(self, rest: bytes) -> bool:
        """Whether some needle is longer than this and begins with it."""
        index = bisect_right(self._sorted, rest)
        return index < len(self._sorted) and self._sorted[index].startswith(rest)

    def half_told(self, rest: bytes) -> bool:
        """Whether what may be a secret's beginning is half of one already."""
        index = bisect_right(self._sorted, rest)
        alike = takewhile(lambda needle: needle.startswith(rest), self._sorted[index : index + _CHECKS_MIN])
        return any(2 * len(rest) >= len(needle) for needle in alike)

    def measure_end(self, text: bytes) -> int:
        """How much of a text's beginning is the end of some needle, for whoever did not see what came before."""
        at = self._blob.find(text[:MIN_BYTES]) if len(text) >= MIN_BYTES else -1
        longest = 0
        for _ in range(_CHECKS_MIN):
            if at < 0:
                break
            end = self._blob.find(b"\n", at)
            rest = self._blob[at : len(self._blob) if end < 0 else end]
            if text.startswith(rest):
                longest = max(longest, len(rest))
            at = self._blob.find(text[:MIN_BYTES], at + 1)
        return longest


def _link_inner(needles: list[bytes]) -> Iterator[int]:
    """For each of the sorted needles the place of the longest other one that it begins with; -1 for none."""
    around: list[int] = []
    for index, needle in enumerate(needles):
        while around and not needle.startswith(needles[around[-1]]):
            around.pop()
        yield around[-1] if around else -1
        around.append(index)


def _add_span(spans: list[Span], begin: int, end: int) -> None:
    if spans and begin < spans[-1][1]:
        spans[-1] = (spans[-1][0], max(spans[-1][1], end))
    else:
        spans.append((begin, end))
