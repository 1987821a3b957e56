"""Aligned tables for people; text that came from a job is made harmless first. Called by the listing commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from nimbus.runtime.telemetry import escape_text

MAX_CELL = 60


def cell(value: object) -> str:
    """A value as one short, harmless cell: a job's name must not drive the terminal."""
    text = "" if value is None else escape_text(str(value))
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def render_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Aligned columns under their heads."""
    cells = [tuple(head), *map(tuple, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def since(start: str | None, end: str | None) -> str:
    """How long something took, or takes, between two ISO moments."""
    if start is None:
        return ""
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return f"{(until - datetime.fromisoformat(start)).total_seconds():.1f} s"
