"""Slots: the host-wide places for VMs, whatever their state root. A slot's index gives addresses, uid and CID.

One file per slot under `<runtime>/slots`, linked from a nameless one: it appears at once with its owner's name in it,
and only one process can win. A claim never goes stale by age: the reaper of its owner releases it.
Called by host_agent/claims.py, host_agent/admission.py and host/inventory.py.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nimbus.host.quarantine import list_quarantined
from nimbus.model.errors import HostFault
from nimbus.model.vm import Slot

UID_BASE = 200_000  # above the users and below the sub-uid ranges that Debian hands out from 100000 * 65536 on
FIRST_CID = 3  # 0 to 2 are the hypervisor's, loopback's and the host's


class NoSlot(HostFault):
    """Every slot is held, in quarantine or haunted: one that waits for a job may be given up for it."""


@dataclass(frozen=True)
class HeldSlot:
    """A slot and the object name of the VM that holds it."""

    index: int
    owner: str


def claim_slot(
    runtime_dir: Path, owner: str, limit: int, *, uid_base: int = UID_BASE, gid_base: int | None = None
) -> Slot:
    """The lowest free slot below `limit`, now held by `owner`; the one it holds already where there is one.

    A slot whose uid still has a live process is passed over: two tenants must never share a uid. So is one that is in
    quarantine, but never the one that the owner holds already.
    """
    folder = _ensure_folder(runtime_dir)
    held = {slot.index: slot.owner for slot in list_slots(runtime_dir)}
    for index, holder in held.items():
        if holder == owner:
            return _slot(index, uid_base, gid_base)
    apart = {slot.index for slot in list_quarantined(runtime_dir)}
    busy = _live_uids()
    unheld = [index for index in range(limit) if index not in held and index not in apart]
    free = [index for index in unheld if uid_base + index not in busy]
    try:
        taken = _take_first(folder, owner, free)
    except OSError as error:
        raise HostFault(f"no slot could be claimed in {folder} ({error.strerror})") from error
    if taken is not None:
        return _slot(taken, uid_base, gid_base)
    kept = f", {len(apart)} of them in quarantine" if apart else ""
    if clashing := len(unheld) - len(free):
        kept += f", {clashing} of them by processes that nobody's VM should have: their uid is a slot's"
    raise NoSlot(f"all {limit} slots of this host are taken{kept}: wait for a VM to end, or raise NIMBUS_VM_SLOTS")


def release_slot(runtime_dir: Path, index: int, owner: str) -> None:
    """Give a slot back. Another owner's slot is left alone; absent is success."""
    path = runtime_dir / "slots" / str(index)
    try:
        if path.read_text() == owner:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostFault(f"slot {index} could not be released ({error.strerror})") from error


def release_slots_of(runtime_dir: Path, owner: str) -> None:
    """Give back whatever `owner` holds, also when no record knows the index yet."""
    for slot in list_slots(runtime_dir):
        if slot.owner == owner:
            release_slot(runtime_dir, slot.index, owner)


def list_slots(runtime_dir: Path) -> tuple[HeldSlot, ...]:
    """Every slot held on this host, by index."""
    folder = runtime_dir / "slots"
    held = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return ()
    for name in sorted((n for n in names if n.isdecimal()), key=int):
        with suppress(FileNotFoundError):  # released meanwhile
            held.append(HeldSlot(int(name), (folder / name).read_text()))
    return tuple(held)


def count_slots(runtime_dir: Path) -> int:
    """How many slots are held, by whomever."""
    return len(list_slots(runtime_dir))


def _slot(index: int, uid_base: int, gid_base: int | None) -> Slot:
    gid = (uid_base if gid_base is None else gid_base) + index
    return Slot(index, uid_base + index, gid, FIRST_CID + index)


def _ensure_folder(runtime_dir: Path) -> Path:
    folder = runtime_dir / "slots"
    try:
        runtime_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostFault(f"{folder} could not be made ({error.strerror}): Nimbus needs root") from error
    return folder


def _take_first(folder: Path, owner: str, indexes: list[int]) -> int | None:
    """Link a nameless file that holds the owner's name to the first index that nobody else takes first."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ticket = os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            os.write(ticket, owner.encode())
            for index in indexes:
                with suppress(FileExistsError):
                    os.link(f"/proc/self/fd/{ticket}", str(index), src_dir_fd=at, dst_dir_fd=at, follow_symlinks=True)
                    return index
            return None
        finally:
            os.close(ticket)
    finally:
        os.close(at)


def _live_uids() -> set[int]:
    uids = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                uids.add(os.stat(f"/proc/{name}").st_uid)
    return uids
