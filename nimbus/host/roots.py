"""Which state root has which three-digit name on this host: the prefix of its kernel objects, and of nobody else's.

There are 4096 such names. Two state roots that shared one would sweep up each other's living VMs as leftovers, so the
second is refused while the first has anything to lose: a record in its ledger, or a live agent. One file a name
under `<runtime>/roots`. Called by host_agent/settings.py and host_agent/doctor.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from nimbus.model.errors import Refused


def claim_root(runtime_dir: Path, root_id: str, state_root: Path) -> None:
    """Take `root_id` for `state_root`; Refused where another root that is in use has it.

    Without the right to write there nothing is claimed: who may not do that may not touch a VM either.
    """
    try:
        runtime_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        (runtime_dir / "roots").mkdir(mode=0o700, exist_ok=True)
        folder = os.open(runtime_dir / "roots", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # for the moment of one read and one write
        _claim(runtime_dir / "roots" / root_id, str(state_root))
    finally:
        os.close(folder)


def find_rival(runtime_dir: Path, root_id: str, state_root: Path) -> Path | None:
    """Another state root that is in use under the same name; None where there is none. Takes nothing."""
    try:
        holder = (runtime_dir / "roots" / root_id).read_text()
    except OSError:
        return None
    return Path(holder) if holder not in {"", str(state_root)} and _is_in_use(Path(holder)) else None


def _claim(ticket: Path, wanted: str) -> None:
    holder = ticket.read_text() if ticket.exists() else ""
    if holder == wanted:
        return
    if holder and _is_in_use(Path(holder)):
        raise Refused(
            f"the state folder {wanted} would share its short name nb{ticket.name} with {holder}, and each would take"
            " the other's VMs for leftovers: choose another NIMBUS_STATE_DIR"
        )
    ticket.write_text(wanted)


def _is_in_use(state_root: Path) -> bool:
    """A VM of its own is in its ledger (or was, before a crash), or an agent holds its lock."""
    if any((state_root / "ledger").glob("*.json")):
        return True
    try:
        lock = os.open(state_root / "agent.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
