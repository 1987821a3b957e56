"""Whether an agent runs on this state root, and which process it is. Never signals anybody, never keeps the lock.

The agent holds `<state>/agent.lock` and writes its pid into it; a pid alone proves nothing, so the process must have
that very file open too. Called by `nimbus agent` and `nimbus doctor`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from nimbus.host import process
from nimbus.model.errors import Conflict
from nimbus.model.record import ProcessId

LOCK_NAME = "agent.lock"


def find_agent(state: Path) -> ProcessId | None:
    """The agent of this state root; None where none runs. Conflict where its lock is held and its holder unclear."""
    try:
        fd = os.open(state / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if not _is_held(fd):
            return None
        holder = _read_holder(fd)
        if holder is None and _is_held(fd):
            raise Conflict(f"an agent holds {state / LOCK_NAME} and does not say which process it is: look again")
        return holder
    finally:
        os.close(fd)


def _is_held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not take each other for an agent
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _read_holder(fd: int) -> ProcessId | None:
    """Who the file names, where that process really has the file open."""
    text = os.pread(fd, 32, 0).strip()
    if not text.isdigit():
        return None
    with suppress(ProcessLookupError):
        found = process.identify(int(text))
        if _has_open(found.pid, os.fstat(fd)):
            return found
    return None


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:  # it ended, or is not ours to look into
        return False
    for number in numbers:
        with suppress(OSError):
            if os.path.samestat(os.stat(f"{folder}/{number}"), wanted):
                return True
    return False


def find_unit(pid: int) -> str | None:
    """The systemd service that this process belongs to; None where it was started by hand."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return None
    for line in groups.splitlines():
        for part in reversed(line.rpartition(":")[2].split("/")):
            if part.endswith(".service"):
                return part
    return None
