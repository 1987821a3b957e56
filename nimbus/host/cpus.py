"""CPUs that are one VM's own, host-wide: agents and local runs of any state root never give out the same core.

One file per VM under `<runtime>/cpus`, named by its owner, holding the kernel's list of its CPUs. Choosing and writing
happen under one lock, so that two never choose the same. Like a slot, what is taken never goes stale by age: the reaper
of its owner gives it back. Called by host_agent/{placing,claims,admission}.py and host/inventory.py.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nimbus.model.errors import HostFault
from nimbus.model.placement import Placement, parse_cpus, render_cpus

Choose = Callable[[frozenset[int]], Placement | None]  # given the CPUs that are taken


@dataclass(frozen=True)
class HeldCpus:
    """The CPUs of the VM with this object name."""

    owner: str
    cpus: frozenset[int]


def take_cpus(runtime_dir: Path, owner: str, choose: Choose) -> Placement | None:
    """What `choose` makes of the CPUs that nobody else has, now the owner's; None where it finds none."""
    folder = runtime_dir / "cpus"
    try:
        runtime_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with _alone(folder) as at:
            held = (ticket for ticket in list_cpus(runtime_dir) if ticket.owner != owner)
            chosen = choose(frozenset().union(*(ticket.cpus for ticket in held)))
            if chosen is not None:
                _write(at, owner, render_cpus(chosen.cpus))
            return chosen
    except OSError as error:
        raise HostFault(f"no CPUs could be taken in {folder} ({error.strerror}): Nimbus needs root") from error


def release_cpus(runtime_dir: Path, owner: str) -> None:
    """Give back whatever `owner` has; absent is success."""
    try:
        (runtime_dir / "cpus" / owner).unlink(missing_ok=True)
    except OSError as error:
        raise HostFault(f"the CPUs of {owner} could not be released ({error.strerror})") from error


def list_cpus(runtime_dir: Path) -> tuple[HeldCpus, ...]:
    """Everybody's, by owner. Raises HostFault for a ticket that cannot be read: whose CPUs those are is not known."""
    folder = runtime_dir / "cpus"
    held = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return ()
    for name in sorted(names):
        with suppress(FileNotFoundError):  # released meanwhile
            held.append(HeldCpus(name, _read(folder / name)))
    return tuple(held)


def _read(ticket: Path) -> frozenset[int]:
    try:
        return parse_cpus(ticket.read_text())
    except ValueError as error:
        raise HostFault(f"{ticket} is no list of CPUs: {error}") from None


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """The folder, locked for the moment of one choice. The kernel lets go of the lock with its holder."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(at, fcntl.LOCK_EX)
        yield at
    finally:
        os.close(at)


def _write(at: int, owner: str, text: str) -> None:
    """The ticket appears with its text in it, or not at all."""
    with suppress(FileNotFoundError):
        os.unlink(owner, dir_fd=at)
    ticket = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        os.write(ticket, text.encode())
        os.link(f"/proc/self/fd/{ticket}", owner, dst_dir_fd=at, follow_symlinks=True)
    finally:
        os.close(ticket)
