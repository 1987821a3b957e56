"""Strict reading of JSON objects: right type, right range, a message that names the field; else Refused.

Never coerces ("3" is not 3, true is not 1, NaN is not a number). Used by the wire modules and by the
services' own routes; the caller decides whether unknown fields are an error (`refuse_unknown`).
"""

from __future__ import annotations

import enum
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from nimbus.model.errors import Refused

Choice = TypeVar("Choice", bound=enum.StrEnum)

MAX_BIGINT = 2**63 - 1  # what a Postgres bigint holds; every id of ours is one
MAX_TEXT = 4096


def parse_object(body: bytes | str, what: str) -> Fields:
    """The one JSON object in `body`. Deep nesting, bad UTF-8 and lone surrogates are refused too."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is no JSON: send one JSON object in UTF-8") from error
    return Fields(value, what)


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class Fields:
    """A JSON object being read, field by field."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise Refused(f"{what} must be a JSON object")
        self._value = cast("Mapping[str, object]", value)
        self._what = what

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Refused where a field is not among the known ones: a typo must not be a silent default."""
        names = set(known)
        for name in self._value:
            if name not in names:
                raise Refused(f"{self._what}: {name[:64]!r} is no field of it; known: {', '.join(sorted(names))}")

    def has(self, name: str) -> bool:
        """True where the field is there and not null."""
        return self._value.get(name) is not None

    def mentions(self, name: str) -> bool:
        """True where the field is there, be it null: in a change, null takes a value away."""
        return name in self._value

    def integer(self, name: str, low: int = 0, high: int = MAX_BIGINT) -> int:
        value = self._value.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float = 0.0, high: float = 1e15) -> float:
        value = self._value.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _within(value, low, high):
            raise self._wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def text(self, name: str, max_chars: int = MAX_TEXT, *, empty: bool = False) -> str:
        value = self._value.get(name)
        if not isinstance(value, str) or not is_storable(value, max_chars) or not (value or empty):
            raise self._wrong(name, f"text of {0 if empty else 1} to {max_chars} characters without NUL")
        return value

    def boolean(self, name: str) -> bool:
        value = self._value.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def choice(self, name: str, words: type[Choice]) -> Choice:
        value = self._value.get(name)
        for word in words:
            if value == word.value:
                return word
        raise self._wrong(name, f"one of {', '.join(sorted(words))}")

    def uuid(self, name: str) -> str:
        value = self._value.get(name)
        try:
            if isinstance(value, str):
                return str(uuid.UUID(value))
        except ValueError:
            pass
        raise self._wrong(name, "a UUID")

    def texts(self, name: str, max_items: int = 256, max_chars: int = MAX_TEXT) -> tuple[str, ...]:
        value = self._value.get(name)
        if not isinstance(value, list) or len(value) > max_items:
            raise self._wrong(name, f"a list of at most {max_items} texts")
        for item in value:
            if not isinstance(item, str) or not is_storable(item, max_chars):
                raise self._wrong(name, f"a list of texts of at most {max_chars} characters without NUL")
        return tuple(value)

    def text_map(self, name: str, max_items: int = 1024, max_chars: int = 131072) -> dict[str, str]:
        value = self._value.get(name)
        if not isinstance(value, dict) or len(value) > max_items:
            raise self._wrong(name, f"an object of at most {max_items} texts")
        for key, item in value.items():
            if not isinstance(item, str) or not is_storable(item, max_chars) or not is_storable(key, MAX_TEXT):
                raise self._wrong(name, f"an object of texts of at most {max_chars} characters without NUL")
        return dict(value)

    def number_map(self, name: str, max_items: int = 64) -> dict[str, float]:
        value = self._value.get(name)
        if not isinstance(value, dict) or len(value) > max_items:
            raise self._wrong(name, f"an object of at most {max_items} numbers")
        inner = Fields(value, f"{self._what}: {name}")
        return {key: inner.number(key) for key in value if is_storable(key, 64)}

    def child(self, name: str) -> Fields:
        return Fields(self._value.get(name), f"{self._what}: {name}")

    def children(self, name: str, max_items: int) -> list[Fields]:
        value = self._value.get(name)
        if not isinstance(value, list) or len(value) > max_items:
            raise self._wrong(name, f"a list of at most {max_items} objects")
        return [Fields(item, f"{self._what}: {name}") for item in value]

    def _wrong(self, name: str, wanted: str) -> Refused:
        return Refused(f"{self._what}: {name} must be {wanted}")


def _within(value: float, low: float, high: float) -> bool:
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # an integer too large for a float
        return False


def is_storable(text: str, max_chars: int) -> bool:
    """True where Postgres takes the text: bounded, no NUL, no lone surrogate."""
    if len(text) > max_chars or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
