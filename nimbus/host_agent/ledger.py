"""The ledger: one local file per VM that lists what the VM may own on this host. It is the undo stack.

A record is written and fsynced before the first claim is acquired; strikes are renamed into place
without fsync, because the page cache survives SIGKILL and after a host crash only files are left.
Each record has a lock file held by its supervisor: whoever can take it may tear the VM down.
Never touches a host resource itself. Called by lifecycle.py, teardown.py and reaper.py, in threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nimbus.host.disk import write_atomically
from nimbus.model.errors import Conflict, HostFault, Refused
from nimbus.model.ids import VmId, is_vm_id
from nimbus.model.lease import LeaseKey
from nimbus.model.record import READABLE_VERSIONS, ProcessId, Record
from nimbus.model.vm import Claim, ExitReason, GuestExit, Slot
from nimbus.wire.fields import Fields
from nimbus.wire.vmjson import parse_attestation

EARLIER_WRITE_S = 2.0  # a teardown writes once for each claim: on a disk that hangs it must not wait long for each


class TornRecord(HostFault):
    """A record that no release ever wrote: a host crash can tear one, since strikes are not fsynced."""


@dataclass
class OpenRecord:
    """A record whose lock this process holds. `write` keeps the file and the value in step."""

    ledger: Ledger
    value: Record
    detached: bool = False  # this agent leaves the VM to the next one: nothing of it is undone
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def change(self, **fields: Any) -> None:
        """Replace these fields, whatever another thread changes meanwhile. Raises HostFault where the disk refuses."""
        if not self._changing.acquire(timeout=EARLIER_WRITE_S):
            raise HostFault(f"an earlier write of the ledger record of VM {self.value.vm} still hangs in the kernel")
        try:
            self.write(replace(self.value, **fields))
        finally:
            self._changing.release()

    def forget_report(self) -> None:
        """The end was told, or nobody wants to hear it any more: with nothing left to release the record goes."""
        if self.value.claims:
            self.change(report=None, exit=None)
        else:
            self.ledger.remove(self.value.vm)

    def write(self, value: Record, *, fsync: bool = False) -> None:
        """Replace the record's file. Raises HostFault where the disk refuses."""
        self.ledger.write(value, fsync=fsync)
        self.value = value


@dataclass(frozen=True)
class Ledger:
    """The folder of records below one state root."""

    folder: Path

    @contextmanager
    def create(self, value: Record) -> Iterator[OpenRecord]:
        """A new locked record, on disk before this yields. The lock ends with the block or the process."""
        self._ensure_folder()
        with self._locked(value.vm) as held:
            if not held:
                raise Conflict(f"VM {value.vm} has a supervisor already")
            record = OpenRecord(self, value)
            try:
                record.write(value, fsync=True)
            except HostFault:
                self._lock_path(value.vm).unlink(missing_ok=True)
                raise
            yield record

    @contextmanager
    def take(self, vm: VmId) -> Iterator[OpenRecord | None]:
        """The record of `vm` with its lock, or None while another supervisor lives or the record is gone."""
        with self._locked(vm) as held:
            value = self.read(vm) if held else None
            if held and value is None:
                self._remove_torn_writes(vm)
                self._lock_path(vm).unlink(missing_ok=True)
            yield OpenRecord(self, value) if value is not None else None

    def forget_torn(self, vm: VmId) -> bool:
        """Remove a torn record that nobody supervises; what its VM owned is found by name. False: somebody does."""
        with self._locked(vm) as held:
            if held:
                self._path(vm).unlink(missing_ok=True)
            return held

    def vms(self) -> list[VmId]:
        """Every VM with a record or a lock file, oldest id order not promised."""
        names = {path.stem for path in self.folder.glob("*.json")} | {path.stem for path in self.folder.glob("*.lock")}
        return sorted(VmId(name) for name in names if is_vm_id(name))

    def read(self, vm: VmId) -> Record | None:
        """The record as it stands on disk; None when there is none. Raises HostFault for a torn or newer one."""
        try:
            text = self._path(vm).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostFault(f"cannot read the ledger record of VM {vm}: {error.strerror}") from error
        value = parse_record(text)
        if value.vm != vm:
            raise TornRecord(f"the ledger record of VM {vm} is one of VM {value.vm}")
        return value

    def holds(self, vm: VmId) -> bool:
        """Whether there is a record, readable or not."""
        return self._path(vm).exists()

    def names(self, name: str) -> bool:
        """Whether that is the name of a VM with a record."""
        return is_vm_id(name) and self.holds(VmId(name))

    def write(self, value: Record, *, fsync: bool) -> None:
        """Put `value` in the place of the file. Raises HostFault where the disk refuses."""
        try:
            write_atomically(self._path(value.vm), render_record(value).encode(), fsync=fsync)
        except OSError as error:
            raise HostFault(f"cannot write the ledger record of VM {value.vm}: {error.strerror}") from error

    def remove(self, vm: VmId) -> None:
        """Forget `vm`: the last act of a complete teardown. Absent is success."""
        self._path(vm).unlink(missing_ok=True)
        self._remove_torn_writes(vm)
        self._lock_path(vm).unlink(missing_ok=True)

    def _remove_torn_writes(self, vm: VmId) -> None:
        """What a writer that was killed between its file and the rename left."""
        for stray in self.folder.glob(f".{vm}.json.*"):
            stray.unlink(missing_ok=True)

    def _ensure_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HostFault(f"cannot make the ledger folder {self.folder}: {error.strerror}") from error

    def _path(self, vm: VmId) -> Path:
        return self.folder / f"{vm}.json"

    def _lock_path(self, vm: VmId) -> Path:
        return self.folder / f"{vm}.lock"

    @contextmanager
    def _locked(self, vm: VmId) -> Iterator[bool]:
        """True when the lock was free. A lock whose file was unlinked meanwhile does not count."""
        try:
            fd = os.open(self._lock_path(vm), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            yield False  # no ledger yet: nobody has a record
            return
        except OSError as error:
            raise HostFault(f"cannot open the lock of VM {vm}: {error.strerror}") from error
        try:
            held = False
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = self._is_current(fd, vm)
            yield held
        finally:
            os.close(fd)

    def _is_current(self, fd: int, vm: VmId) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), os.stat(self._lock_path(vm)))
        return False


def render_record(value: Record) -> str:
    """JSON text of a record, stable in its field order."""
    body = asdict(value)
    body["vm"] = str(value.vm)
    return json.dumps(body, separators=(",", ":"))


def parse_record(text: str | bytes) -> Record:
    """The record in `text`. Raises HostFault for a version or a shape that this release does not know."""
    try:
        body: dict[str, Any] = json.loads(text)
        if body["version"] not in READABLE_VERSIONS:
            raise HostFault(f"ledger record of version {body['version']}: this release reads {READABLE_VERSIONS}")
        attested = body.get("attestation")
        return Record(
            vm=VmId(body["vm"]),
            created_at=body["created_at"],
            boot_id=body["boot_id"],
            backend=body["backend"],
            plan=body["plan"],
            claims=tuple(Claim(c) for c in body["claims"]),
            slot=Slot(**body["slot"]) if body["slot"] else None,
            keeper=ProcessId(**body["keeper"]) if body["keeper"] else None,
            lease=LeaseKey(**body["lease"]) if body["lease"] else None,
            deadline_ns=body["deadline_ns"],
            exit=_parse_exit(body["exit"]),
            session=body.get("session"),
            latest_ns=body.get("latest_ns"),
            report=body.get("report"),
            attestation=parse_attestation(Fields(attested, "attestation")) if attested else None,
            failures=tuple(body["failures"]),
            version=body["version"],
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, Refused) as error:
        raise TornRecord(f"a ledger record cannot be read: {error!r}") from error


def _parse_exit(body: dict[str, Any] | None) -> GuestExit | None:
    if body is None:
        return None
    told = GuestExit(body["code"], body["signal"], ExitReason(body["reason"]), body["message"])
    return replace(told, oom_kills=body.get("oom_kills", 0))
