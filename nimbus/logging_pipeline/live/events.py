"""What goes over the wire of a stream: server-sent events as bytes. Pure; called by `follow`."""

from __future__ import annotations

import json
from collections.abc import Mapping

OPENING = b"retry: 2000\n\n"  # sent at once, so that a client knows it is in; two seconds until it comes again
HEARTBEAT = b": alive\n\n"


def render_event(kind: str | None, data: Mapping[str, object], event_id: str | None = None) -> bytes:
    """One server-sent event. JSON has no newline of its own, so one data line holds it."""
    lines = [] if kind is None else [f"event: {kind}"]
    if event_id is not None:
        lines.append(f"id: {event_id}")
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()
