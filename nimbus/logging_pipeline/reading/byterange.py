"""Which bytes a request wants of a body whose size is known: Range and If-Range of RFC 9110. Pure.

One range is served; a request for several, or for one that is written wrongly, gets the whole. Called by the download.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.ASCII)


@dataclass(frozen=True)
class ByteRange:
    """From `first`, up to `end` without it."""

    first: int
    end: int


class Unsatisfiable(Exception):
    """No byte of the body is in the range."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The range; None where the whole body is to be sent."""
    found = _RANGE.fullmatch(header or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        last = int(found[2])
        if last == 0 or size == 0:
            raise Unsatisfiable
        return ByteRange(max(size - last, 0), size)
    first, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if first >= end and found[2]:
        return None  # the last before the first: no range at all
    if first >= size:
        raise Unsatisfiable
    return ByteRange(first, min(end, size))


def matches_tag(header: str | None, tag: str) -> bool:
    """Whether If-None-Match names the tag, or any."""
    words = [word.strip().removeprefix("W/") for word in (header or "").split(",")]
    return "*" in words or tag in words
