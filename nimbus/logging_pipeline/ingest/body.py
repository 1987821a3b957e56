"""What a body of rows may look like: decoded and bounded by a compiled library, made ours. Pure.

Org, machine, fence and agent are never read from a body: the token says them. A body in order is decoded and checked
in one call; one that is not is gone through row by row, so that a row that cannot be taken is refused alone, and where
its number is good a note takes its place, so that the numbering keeps no hole. Both ways give the same rows for every
body (a property test). Called by the ingest route.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import attrgetter, lt
from typing import Annotated, Literal, TypeGuard, cast

import msgspec

from nimbus.logging_pipeline.rows import MAX_SEQ, STREAMS, Row
from nimbus.model.errors import Refused

MAX_MESSAGE_CHARS = 64 * 1024
MAX_ROWS = 100_000  # more than 4 MB of the shortest rows hold
MAX_SKEW_MS = 24 * 3600 * 1000
_LEVELS = {"agent": "warning"}  # what a workflow command says comes later, in `steps`
_NUL = b"\\u0000"  # the one way to write it in JSON
_seq_of = attrgetter("seq")


class _SentRow(msgspec.Struct, gc=False):
    """A row as it is sent. A field that is not named here is passed over, whatever it claims."""

    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]
    ts_ms: int
    stream: Literal["stdout", "stderr", "console", "agent", "end"]
    message: Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE_CHARS)]


class _SentBody(msgspec.Struct):
    rows: list[_SentRow]


_decoder = msgspec.json.Decoder(_SentBody)


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that was not taken as it came."""

    seq: int | None
    why: str


@dataclass(frozen=True)
class Batch:
    """The rows of one request, in the order of their numbers, each number once."""

    rows: list[Row]
    refused: tuple[RefusedRow, ...] = ()


def parse_batch(body: bytes, now_ms: int) -> Batch:
    """The rows of an ingest body; Refused where the body as a whole is none."""
    batch = parse_whole(body, now_ms)
    return parse_each(body, now_ms) if batch is None else batch


def parse_whole(body: bytes, now_ms: int) -> Batch | None:
    """The rows of a body in which all is in order; None for any other."""
    try:
        sent = _decoder.decode(body).rows
    except (ValueError, RecursionError):  # all errors of the decoder, and text that is no UTF-8
        return None
    if len(sent) > MAX_ROWS:
        return None
    low, high = now_ms - MAX_SKEW_MS, now_ms + MAX_SKEW_MS
    level_of = _LEVELS.get
    rows = [
        Row(
            each.seq,
            each.ts_ms if low <= each.ts_ms <= high else min(max(each.ts_ms, low), high),
            each.stream,
            level_of(each.stream, "info"),
            each.message,
        )
        for each in sent
    ]
    if _NUL in body:
        for row in rows:
            row.message = clean_text(row.message)
    return Batch(_in_order(rows))


def parse_each(body: bytes, now_ms: int) -> Batch:
    """The rows of any body, one by one."""
    try:
        value = json.loads(body.decode("utf-8", "replace"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refused('the body is no JSON: send {"rows": [...]} in UTF-8') from None
    entries = value.get("rows") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise Refused('the body must be an object with a list: {"rows": [...]}')
    if len(entries) > MAX_ROWS:
        raise Refused(f"at most {MAX_ROWS} rows a request")
    rows: list[Row] = []
    refused: list[RefusedRow] = []
    for entry in entries:
        row, bad = _parse_row(entry, now_ms)
        if bad is not None:
            refused.append(bad)
        if row is not None:
            rows.append(row)
    return Batch(_in_order(rows), tuple(refused))


def _in_order(rows: list[Row]) -> list[Row]:
    """Sorted by number; of rows with the same number the first."""
    seqs = list(map(_seq_of, rows))
    if all(map(lt, seqs, seqs[1:])):
        return rows
    kept: dict[int, Row] = {}
    for row in rows:
        kept.setdefault(row.seq, row)
    return [kept[seq] for seq in sorted(kept)]


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
    ts_ms = min(max(cast("int", fields["ts_ms"]), now_ms - MAX_SKEW_MS), now_ms + MAX_SKEW_MS)
    return Row(seq, ts_ms, stream, _LEVELS.get(stream, "info"), clean_text(cast("str", fields["message"]))), None


def _why_refused(fields: dict[str, object]) -> str:
    message, stream = fields.get("message"), fields.get("stream")
    if not isinstance(message, str):
        return "message must be text"
    if len(message) > MAX_MESSAGE_CHARS:
        return f"message holds more than {MAX_MESSAGE_CHARS} characters"
    if not isinstance(stream, str) or stream not in STREAMS:
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
