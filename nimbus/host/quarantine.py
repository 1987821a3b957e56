"""Slots that failed again and again: kept apart for a while, so that no further VM is lost to them.

Counts, for each slot and act ("acquire network"), how often it failed in a row, in a file beside the slot's own, so
that a restart forgets nothing; one success of the same act ends the count, and the quarantine that it caused. Never
takes or gives back a slot: whoever holds one in quarantine goes on holding it. The files lie on a filesystem that a
reboot empties. Called by host/slots.py, host_agent (claims, admission) and `nimbus doctor`.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAILURES = 3  # once is chance and twice is load; a third time it is the slot
QUARANTINE_S = 3600.0  # then it is tried again, and its very next failure puts it back


@dataclass(frozen=True)
class Quarantined:
    """A slot that nobody is given, and why."""

    index: int
    since: float  # Unix seconds
    act: str
    reason: str


def note_failure(runtime_dir: Path, index: int, act: str, reason: str) -> bool:
    """Count it. True when this very failure put the slot into quarantine."""
    counts = _read(_failures(runtime_dir, index))
    found = counts.get(act)
    counts[act] = (found if isinstance(found, int) else 0) + 1
    _write(_failures(runtime_dir, index), counts)
    if counts[act] < FAILURES or _read_quarantine(runtime_dir, index) is not None:
        return False
    _write(_quarantine(runtime_dir, index), {"since": time.time(), "act": act, "reason": reason})
    return True


def note_success(runtime_dir: Path, index: int, act: str) -> None:
    """The act works again: its failures are forgotten, and a quarantine that came of them is over."""
    counts = _read(_failures(runtime_dir, index))
    if act not in counts:
        return
    del counts[act]
    if counts:
        _write(_failures(runtime_dir, index), counts)
    else:
        _failures(runtime_dir, index).unlink(missing_ok=True)
    held = _read_quarantine(runtime_dir, index)
    if held is not None and held.act == act:
        _quarantine(runtime_dir, index).unlink(missing_ok=True)


def list_quarantined(runtime_dir: Path) -> tuple[Quarantined, ...]:
    """Every slot in quarantine now, by index."""
    try:
        names = os.listdir(runtime_dir / "slots")
    except FileNotFoundError:
        return ()
    indexes = sorted(int(name.removesuffix(".quarantine")) for name in names if _is_quarantine(name))
    found = (_read_quarantine(runtime_dir, index) for index in indexes)
    return tuple(slot for slot in found if slot is not None)


def lift_quarantine(runtime_dir: Path, index: int) -> bool:
    """Forget the slot's failures: an operator has mended its cause. False where it was in no quarantine."""
    held = _read_quarantine(runtime_dir, index) is not None
    _quarantine(runtime_dir, index).unlink(missing_ok=True)
    _failures(runtime_dir, index).unlink(missing_ok=True)
    return held


def _read_quarantine(runtime_dir: Path, index: int) -> Quarantined | None:
    """None where there is none, or its time is over; a clock that was set back ends it too."""
    body = _read(_quarantine(runtime_dir, index))
    since = body.get("since")
    if not isinstance(since, float) or not 0 <= time.time() - since < QUARANTINE_S:
        return None
    return Quarantined(index, since, str(body.get("act", "")), str(body.get("reason", "")))


def _is_quarantine(name: str) -> bool:
    return name.endswith(".quarantine") and name.removesuffix(".quarantine").isdecimal()


def _failures(runtime_dir: Path, index: int) -> Path:
    return runtime_dir / "slots" / f"{index}.failures"


def _quarantine(runtime_dir: Path, index: int) -> Path:
    return runtime_dir / "slots" / f"{index}.quarantine"


def _read(path: Path) -> dict[str, Any]:
    """What the file says; nothing where there is none, or a writer that was killed left half a sentence."""
    with suppress(FileNotFoundError, ValueError):
        body = json.loads(path.read_text())
        if isinstance(body, dict):
            return body
    return {}


def _write(path: Path, body: dict[str, Any]) -> None:
    """A reader sees the old or the new. One name for what is half-written: a writer that is killed leaves one file."""
    half = path.with_name(f".{path.name}")
    half.write_text(json.dumps(body))
    os.replace(half, path)
