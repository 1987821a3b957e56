"""Reads a JSON body into the fields that a call has, and refuses in the words and at the columns of the real one.

The real Firecracker reads with a streaming reader of typed structures, so what it refuses first depends on the order
of the text: so does this. Only what our calls can meet. Called by bodies.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None}
_MAX = {"u8": 2**8 - 1, "u16": 2**16 - 1, "u32": 2**32 - 1, "u64": 2**64 - 1, "usize": 2**64 - 1}


class BadBody(Exception):
    """The body is not what the call takes; its text is the real one's."""


@dataclass(frozen=True)
class Struct:
    """An object with these fields. `optional` may be missing; `skipped` of the first may be missing in a list, too;
    `lax` takes fields that it does not know.
    """

    name: str
    fields: Mapping[str, Kind]
    optional: frozenset[str] = frozenset()
    skipped: int = 0
    lax: bool = False


@dataclass(frozen=True)
class Variant:
    """One of a few words."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Sequence:
    """A list of one kind."""

    of: Kind


@dataclass(frozen=True)
class Checked:
    """Text that must pass a check; `expected` is what the real one calls it, `wrong` what it says of a bad one. A
    `late` one is found wrong after the object's end, if that follows.
    """

    expected: str
    check: Callable[[str], bool]
    wrong: str
    late: bool = True


Kind = str | Struct | Variant | Sequence | Checked  # str: "a string", "path string", "a boolean", or a number's type


def read_body(text: str, kind: Struct) -> dict[str, Any]:
    """The fields of the body. Raises BadBody."""
    reader = _Reader(text)
    value = reader.value(kind, optional=False)
    reader.skip_space()
    if reader.at < len(text):
        raise reader.bad("trailing characters", reader.at + 1)
    assert isinstance(value, dict)
    return value


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def bad(self, what: str, column: int | None = None) -> BadBody:
        return BadBody(f"{what} at line 1 column {self.at if column is None else column}")

    def skip_space(self) -> None:
        while self.text[self.at : self.at + 1] in {" ", "\n", "\r", "\t"}:
            self.at += 1

    def _peek(self, where: str = "a value") -> str:
        self.skip_space()
        if self.at >= len(self.text):
            raise self.bad(f"EOF while parsing {where}")
        return self.text[self.at]

    def value(self, kind: Kind, *, optional: bool) -> Any:
        first = self._peek()
        if optional and self.text.startswith("null", self.at):
            self.at += 4
            return None
        if isinstance(kind, Struct):
            return self._struct(kind) if first == "{" else self._not_struct(kind)
        if isinstance(kind, Sequence):
            return self._sequence(kind) if first == "[" else self._wrong("a sequence")
        if isinstance(kind, Variant):
            return self._variant(kind)
        return self._scalar(kind)

    def _not_struct(self, kind: Struct) -> None:
        if self._peek() == "[":
            self.at += 1
            count = len(kind.fields)
            if self._peek("a list") == "]":
                self.at += 1
                elements = "1 element" if count == 1 else f"{count} elements"
                raise self.bad(f"invalid length {kind.skipped}, expected struct {kind.name} with {elements}")
        self._wrong(f"struct {kind.name}")

    def _struct(self, kind: Struct) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        if self._peek("an object") == "}":
            self.at += 1
        else:
            while True:
                name = self._key(kind, found)
                if name in kind.fields:
                    found[name] = self.value(kind.fields[name], optional=name in kind.optional)
                else:
                    _, self.at = json.JSONDecoder().raw_decode(self.text, self.text.index(self._peek(), self.at))
                if self._next_is_end("}", "an object"):
                    break
        for name in kind.fields:
            if name not in found and name not in kind.optional:
                raise self.bad(f"missing field `{name}`")
        return found

    def _key(self, kind: Struct, found: Mapping[str, Any]) -> str:
        if self._peek("an object") != '"':
            raise self.bad("key must be a string", self.at + 1)
        name = self._string()
        if name not in kind.fields and not kind.lax:
            raise self.bad(f"unknown field `{name}`, expected {_one_of(tuple(kind.fields))}")
        if name in found:
            raise self.bad(f"duplicate field `{name}`")
        if self._peek("an object") != ":":
            raise self.bad("expected `:`", self.at + 1)
        self.at += 1
        return name

    def _next_is_end(self, end: str, where: str) -> bool:
        found = self._peek(where)
        if found not in {",", end}:
            raise self.bad(f"expected `,` or `{end}`", self.at + 1)
        self.at += 1
        return found == end

    def _sequence(self, kind: Sequence) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        if self._peek("a list") == "]":
            self.at += 1
            return found
        while True:
            found.append(self.value(kind.of, optional=False))
            if self._next_is_end("]", "a list"):
                return found

    def _variant(self, kind: Variant) -> str:
        if self._peek() != '"':
            raise self.bad("expected value", self.at + 1)
        word = self._string()
        if word not in kind.words:
            raise self.bad(f"unknown variant `{word}`, expected {_one_of(kind.words)}")
        return word

    def _string(self) -> str:
        try:
            value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except ValueError:
            raise self.bad("EOF while parsing a string", len(self.text)) from None
        return str(value)

    def _scalar(self, kind: str | Checked) -> Any:
        expected = kind if isinstance(kind, str) else kind.expected
        first = self._peek()
        if first == '"' and not (expected in _MAX or expected == "a boolean"):
            text = self._string()
            if isinstance(kind, Checked) and not kind.check(text):
                ended = kind.late and self._peek() == "}"
                raise self.bad(kind.wrong, self.at + ended)
            return text
        number = _NUMBER.match(self.text, self.at)
        if expected in _MAX and number is not None and number[1] is None:
            self.at = number.end()
            value = int(number[0])
            if not 0 <= value <= _MAX[expected]:
                raise self.bad(f"invalid value: integer `{value}`, expected {expected}")
            return value
        if expected == "a boolean":
            for word in ("true", "false"):
                if self.text.startswith(word, self.at):
                    self.at += len(word)
                    return _WORDS[word]
        return self._wrong(expected)

    def _wrong(self, expected: str) -> None:
        """What is there instead of what was expected."""
        first = self._peek()
        if first in "[{":
            raise self.bad(f"invalid type: {'sequence' if first == '[' else 'map'}, expected {expected}")
        try:
            value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except ValueError:
            raise self.bad("expected value", self.at + 1) from None
        raise self.bad(f"invalid type: {_call(value)}, expected {expected}")


def _call(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, str):
        return f"string {json.dumps(value)}"
    return f"{'integer' if isinstance(value, int) else 'floating point'} `{value}`"


def _one_of(words: tuple[str, ...]) -> str:
    quoted = [f"`{word}`" for word in words]
    if len(quoted) == 1:
        return quoted[0]
    return " or ".join(quoted) if len(quoted) == 2 else "one of " + ", ".join(quoted)
