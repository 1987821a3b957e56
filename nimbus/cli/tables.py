"""Aligned tables for people; text that came from a job is made harmless first. Called by the listing commands."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from nimbus.runtime.telemetry import escape_text

MAX_CELL = 60
LEAST_ROOM = 30  # characters; a sentence in a narrower column is worse than one that the terminal breaks


def cell(value: object) -> str:
    """A value as one short, harmless cell: a job's name must not drive the terminal."""
    text = "" if value is None else escape_text(str(value))
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def sentence(value: object) -> str:
    """A value as harmless text that is shown in full."""
    return "" if value is None else escape_text(str(value))


def terminal_width() -> int | None:
    """How many characters fit on a line; None where no terminal shows it, and programs want a line for a line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def render_table(head: Sequence[str], lines: Iterable[Sequence[str]], width: int | None = None) -> str:
    """Aligned columns under their heads; the last is broken into several lines where it would pass the `width`."""
    cells = [tuple(head), *map(tuple, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    left = sum(2 + each for each in widths[:-1])
    if width is not None and width - left >= LEAST_ROOM:
        cells = [part for line in cells for part in _fold(line, width - left)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _fold(line: tuple[str, ...], room: int) -> Iterable[tuple[str, ...]]:
    # a name or an address stays whole, to be copied
    first, *more = textwrap.wrap(line[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
    yield (*line[:-1], first)
    for part in more:
        yield (*("" for _ in line[:-1]), part)


def since(start: str | None, end: str | None) -> str:
    """How long something took, or takes, between two ISO moments."""
    if start is None:
        return ""
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return f"{(until - datetime.fromisoformat(start)).total_seconds():.1f} s"
