"""What a body of rows may look like: parsed, bounded and made ours, one row at a time. Pure.

Org, machine, fence and agent are never read from a body: the token says them. A row that cannot be taken is
refused alone, and where its number is good a note takes its place, so that the numbering keeps no hole.
Called by the ingest route.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeGuard, cast

from nimbus.logging_pipeline.rows import MAX_SEQ, STREAMS, Row
from nimbus.model.errors import Refused

MAX_MESSAGE_CHARS = 64 * 1024
MAX_ROWS = 100_000  # more than 4 MB of the shortest rows hold
MAX_SKEW_MS = 24 * 3600 * 1000
_LEVELS = {"stderr": "error", "agent": "warning"}


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that was not taken as it came."""

    seq: int | None
    why: str


@dataclass(frozen=True)
class Batch:
    """The rows of one request, in the order of their numbers."""

    rows: tuple[Row, ...]
    refused: tuple[RefusedRow, ...]


def parse_batch(body: bytes, now_ms: int) -> Batch:
    """The rows of an ingest body; Refused where the body as a whole is none."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refused('the body is no JSON: send {"rows": [...]} in UTF-8') from None
    entries = value.get("rows") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise Refused('the body must be an object with a list: {"rows": [...]}')
    if len(entries) > MAX_ROWS:
        raise Refused(f"at most {MAX_ROWS} rows a request")
    rows: dict[int, Row] = {}
    refused: list[RefusedRow] = []
    for entry in entries:
        row, bad = _parse_row(entry, now_ms)
        if bad is not None:
            refused.append(bad)
        if row is not None:
            rows.setdefault(row.seq, row)
    return Batch(tuple(rows[seq] for seq in sorted(rows)), tuple(refused))


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _parse_row(entry: object, now_ms: int) -> tuple[Row | None, RefusedRow | None]:
    if not isinstance(entry, dict):
        return None, RefusedRow(None, "a row must be an object")
    fields = cast("dict[str, object]", entry)
    seq = fields.get("seq")
    if not _is_whole(seq) or not 0 <= seq <= MAX_SEQ:
        return None, RefusedRow(None, f"seq must be a whole number from 0 to {MAX_SEQ}")
    why = _why_refused(fields)
    if why:
        return Row(seq, now_ms, "agent", "warning", f"nimbus: a row was refused: {why}"), RefusedRow(seq, why)
    stream = cast("str", fields["stream"])
    told_ms = cast("int", fields["ts_ms"])
    ts_ms = min(max(told_ms, now_ms - MAX_SKEW_MS), now_ms + MAX_SKEW_MS)
    return Row(seq, ts_ms, stream, _LEVELS.get(stream, "info"), clean_text(cast("str", fields["message"]))), None


def _why_refused(fields: dict[str, object]) -> str:
    message = fields.get("message")
    if not isinstance(message, str):
        return "message must be text"
    if len(message) > MAX_MESSAGE_CHARS:
        return f"message holds more than {MAX_MESSAGE_CHARS} characters"
    if fields.get("stream") not in STREAMS:
        return f"stream must be one of {', '.join(sorted(STREAMS))}"
    if not _is_whole(fields.get("ts_ms")):
        return "ts_ms must be a whole number of milliseconds"
    return ""


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def clean_text(text: str) -> str:
    """The text without NUL and lone surrogates, which no store takes: both become U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
