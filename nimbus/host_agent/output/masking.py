"""Hiding secrets in a VM's output before anything of it is stored: bytes in, bytes with `***` in their place out.

Pure: no I/O, no clock. Secrets are known from the job's environment or told by the job itself (`::add-mask::VALUE` at
the beginning of a line). What comes out does not depend on how the output was cut into pieces. Called by `logspool`.

A value is hidden line by line, and a long line in chunks of CHUNK_BYTES, so that little has to be held back and no
guest can make a byte of its output cost more than ALIKE_MAX short comparisons. A job that asks for more than the limits
below asks for a secrecy that cannot be given: it overflows, and its caller stores no more of its output.
"""

from __future__ import annotations

import base64
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

MASK = b"***"
COMMAND = b"::add-mask::"
MIN_BYTES = 4  # a shorter one would hide half of every log
CHUNK_BYTES = 4096
VALUE_BYTES_MAX = 64 * 1024  # of one command's line
MASKS_MAX = 1000
MASKS_BYTES_MAX = 2**20
ALIKE_MAX = 64  # masks that begin with the same MIN_BYTES: what one byte of output may cost
_BLANK = b" \t"
_COVERED_BITS = 14  # CHUNK_BYTES fits
_LINE = re.compile(rb"[\r\n]+")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|JIT_?CONFIG|KEY(_|S?$)", re.IGNORECASE)
_NO_SECRETS = frozenset({"true", "false", "null", "none"})  # switches have such names too


class Line(enum.IntEnum):
    """Where a stream stands in its line; the numbers are those on disk."""

    BEGINS = 0  # nothing of it came but blanks: a command may follow
    INSIDE = 1


@dataclass(frozen=True, slots=True)
class Edge:
    """What a masker must know of the bytes before it."""

    line: Line = Line.BEGINS
    covered: int = 0  # this many of the bytes that follow belong to a secret whose `***` was told

    @property
    def word(self) -> int:
        """As 16 bits, for the spool."""
        return self.line << _COVERED_BITS | self.covered


def parse_edge(word: int) -> Edge:
    return Edge(Line(word >> _COVERED_BITS & 1), word & (1 << _COVERED_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Part:
    """What is stored for some bytes of a stream."""

    taken: int  # bytes of the guest that it stands for
    text: bytes
    edge: Edge  # behind it


def find_secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    """The values of an environment that its names call secret."""
    named = (value for name, value in env.items() if _SECRET_NAME.search(name))
    return tuple(value for value in named if value.lower() not in _NO_SECRETS)


def unescape_value(value: bytes) -> bytes:
    """A command's value as its job meant it: GitHub's escapes for characters that a line cannot hold."""
    return value.replace(b"%0D", b"\r").replace(b"%0A", b"\n").replace(b"%25", b"%")


def split_value(value: bytes) -> list[bytes]:
    """The masks that hide every occurrence of a value."""
    masks = []
    for line in _LINE.split(value):
        whole = line.strip(_BLANK)
        if len(whole) >= MIN_BYTES:
            masks += [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole) - CHUNK_BYTES, CHUNK_BYTES)]
            masks.append(whole[-CHUNK_BYTES:])  # reaches back where the length is odd: no crumb below MIN_BYTES
    return masks


class MaskSet:
    """All that must be hidden in one VM's output, whichever stream told of it."""

    def __init__(self, masks: Iterable[bytes] = (), *, overflowed: bool = False) -> None:
        self.overflowed = overflowed  # more was asked for than can be hidden
        self.revision = 0
        self._masks: dict[bytes, None] = {}  # in the order in which they came
        self._bytes = 0
        self._alike: dict[bytes, list[bytes]] = {}  # by their first bytes, longest first
        self._stems: set[bytes] = set()  # what the end of a piece may hold of a mask's first bytes
        self._keys: re.Pattern[bytes] | None = None
        for mask in masks:
            self._add(mask)
        self.revision = 0

    @property
    def known(self) -> tuple[bytes, ...]:
        """What is hidden, in the order in which it came."""
        return tuple(self._masks)

    def add(self, value: bytes) -> None:
        """Hide this value from here on."""
        if len(value) > VALUE_BYTES_MAX:
            self.overflow()
        for mask in split_value(value[:VALUE_BYTES_MAX]):
            self._add(mask)

    def overflow(self) -> None:
        if not self.overflowed:
            self.overflowed = True
            self.revision += 1

    def _add(self, mask: bytes) -> None:
        if mask in self._masks:
            return
        key = mask[:MIN_BYTES]
        alike = self._alike.get(key, [])
        is_full = len(self._masks) >= MASKS_MAX or self._bytes + len(mask) > MASKS_BYTES_MAX
        if is_full or len(alike) >= ALIKE_MAX:
            self.overflow()
            return
        self.revision += 1
        self._masks[mask] = None
        self._bytes += len(mask)
        self._alike[key] = sorted([*alike, mask], key=len, reverse=True)
        if not alike:
            self._stems |= {key[:length] for length in range(1, MIN_BYTES)}
            self._keys = None

    def cover(self, text: bytes, covered: int, *, final: bool) -> tuple[list[tuple[int, int]], int]:
        """The spans to hide, and where begins what must be held back because it may become a secret.

        Secrets that overlap are one span; the first may begin with the `covered` bytes that were hidden before.
        """
        spans = [(0, covered)] if covered else []
        at, held = 0, len(text)
        keys = self._search_keys()
        while keys is not None and (match := keys.search(text, at)) is not None:
            begin = match.start()
            length = self._match(text, begin, final=final)
            if length < 0:
                return spans, begin
            if length and spans and begin < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], begin + length))
            elif length:
                spans.append((begin, begin + length))
            at = begin + 1
        if not final:
            ends = range(max(0, len(text) - MIN_BYTES + 1), len(text))
            held = next((begin for begin in ends if text[begin:] in self._stems), held)
        return spans, held

    def _match(self, text: bytes, begin: int, *, final: bool) -> int:
        """The length of the longest mask at `begin`; -1 where more bytes may make it a longer one."""
        left = len(text) - begin
        for mask in self._alike[text[begin : begin + MIN_BYTES]]:
            if len(mask) > left:
                if not final and mask.startswith(text[begin:]):
                    return -1
            elif text.startswith(mask, begin):
                return len(mask)
        return 0

    def _search_keys(self) -> re.Pattern[bytes] | None:
        if self._keys is None and self._alike:
            self._keys = re.compile(_render_pattern(self._alike))
        return self._keys

    def render(self) -> str:
        """For the spool's folder: an adopting agent hides what this one did."""
        masks = [base64.b64encode(mask).decode() for mask in self._masks]
        return json.dumps({"version": 1, "masks": masks, "overflowed": self.overflowed})


def _render_pattern(keys: Iterable[bytes]) -> bytes:
    """One alternative for each first byte: tried one by one, a thousand keys would cost ten times as much."""
    tails: dict[bytes, list[bytes]] = {}
    for key in keys:
        tails.setdefault(key[:1], []).append(re.escape(key[1:]))
    return b"|".join(re.escape(first) + b"(?:" + b"|".join(rest) + b")" for first, rest in tails.items())


def parse_masks(text: str | None) -> MaskSet:
    """The masks of a spool; none where it has no note of any."""
    if text is None:
        return MaskSet()
    value = json.loads(text)
    return MaskSet(map(base64.b64decode, value["masks"]), overflowed=bool(value["overflowed"]))


class Masker:
    """One stream on its way through the masks."""

    def __init__(self, masks: MaskSet, edge: Edge = Edge()) -> None:
        self._masks = masks
        self.edge = edge
        self.held = b""  # came, but is not given out: it may be the beginning of a secret or of a command

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[Part]:
        """What can be stored now. Store each part before asking for the next one; `final` holds nothing back.

        A command's masks are in the set before its own part is given out. Nothing comes after an overflow.
        """
        text, self.held = self.held + data, b""
        at = 0
        while at < len(text) and not self._masks.overflowed:
            begin = self._find_command(text, at, final=final)
            if begin > at:
                yield from self._hide(text[at:begin], final=final or begin < len(text))
            at = begin
            if at == len(text):
                return
            end = text.find(b"\n", at)
            if end < 0 and not final:
                if len(text) - at > len(COMMAND) + VALUE_BYTES_MAX:
                    self._masks.overflow()
                else:
                    self.held = text[at:]
                return
            line = text[at : end + 1] if end >= 0 else text[at:]
            yield self._obey(line)
            at += len(line)

    def _obey(self, line: bytes) -> Part:
        """Take a command's value. What is stored of its line does not show it."""
        value = line.rstrip(b"\r\n")
        self._masks.add(unescape_value(value[len(COMMAND) :]))
        self.edge = Edge(Line.BEGINS if line.endswith(b"\n") else Line.INSIDE)
        return Part(len(line), COMMAND + MASK + line[len(value) :], self.edge)

    def _hide(self, text: bytes, *, final: bool) -> Iterator[Part]:
        """Text without commands."""
        spans, held = self._masks.cover(text, self.edge.covered, final=final)
        self.held = text[held:]
        if held == 0:
            return
        stored, at = [], 0
        for number, (begin, end) in enumerate(spans):
            is_told = number == 0 and begin < self.edge.covered
            stored += [text[at:begin], b"" if is_told else MASK]
            at = min(end, held)
        stored.append(text[at:held])
        covered = max(0, spans[-1][1] - held) if spans else 0
        self.edge = Edge(self._line_after(text[:held]), covered)
        yield Part(held, b"".join(stored), self.edge)

    def _line_after(self, text: bytes) -> Line:
        newline = text.rfind(b"\n")
        if text[newline + 1 :].strip(_BLANK):
            return Line.INSIDE
        return Line.BEGINS if newline >= 0 else self.edge.line

    def _find_command(self, text: bytes, at: int, *, final: bool) -> int:
        """Where the next command begins, or at the text's end what may become one; the text's length for none."""
        place = at
        while (found := text.find(COMMAND, place)) >= 0:
            if self._begins_line(text, at, found):
                return found
            place = text.find(b"\n", found)
            if place < 0:
                return len(text)
        if final:
            return len(text)
        begin = max(text.rfind(b"\n", at) + 1, at)
        last = text[begin:].lstrip(_BLANK)
        found = len(text) - len(last)
        if last and COMMAND.startswith(last) and self._begins_line(text, at, found):
            return found
        return len(text)

    def _begins_line(self, text: bytes, at: int, found: int) -> bool:
        newline = text.rfind(b"\n", at, found)
        if newline < 0 and at == 0 and self.edge.line is not Line.BEGINS:
            return False
        return not text[max(newline + 1, at) : found].strip(_BLANK)
