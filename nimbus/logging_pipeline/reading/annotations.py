"""What a job says of its own work: errors, warnings and notices with the file and line they are about. Pure.

Rows have their level from ingest; which of them are commands, and what those say, is the wire format's. Called by the
read routes.
"""

from __future__ import annotations

from nimbus.logging_pipeline.reading.cursor import render_cursor
from nimbus.logging_pipeline.rows import ReadRow
from nimbus.logging_pipeline.store.filters import RowFilter
from nimbus.wire.joboutput import parse_annotation

ANNOTATED = RowFilter(levels=("error", "warning", "notice"), streams=("stdout", "stderr"))


def render_annotation(read: ReadRow) -> dict[str, object] | None:
    """The annotation that a row is; None for a row of such a level that is no command."""
    told = parse_annotation(read.row.message)
    if told is None:
        return None
    return {
        "level": told.level,
        "message": told.message,
        "title": told.title,
        "file": told.file,
        "line": told.line,
        "end_line": told.end_line,
        "col": told.col,
        "end_col": told.end_col,
        "machine_id": read.machine_id,
        "fence": read.fence,
        "seq": read.row.seq,
        "step": read.row.step,
        "ts_ms": read.row.ts_ms,
        "cursor": render_cursor([read.place]),
    }
