"""The folders that a jailer makes its chroots of: `<base>/<name of the VMM's binary>/<object name of the VM>/root`.

A jailer cleans nothing and fails on what an earlier one of the same name left, so a folder is removed before it is
made, whatever binary it was for. Once its jailer ran, `root` is the VM's: no link in it is ever followed. Called by
host_agent (jail, jailer, reaper) and host/inventory.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nimbus.host.disk import remove_tree
from nimbus.model.errors import HostFault
from nimbus.model.ids import parse_object_name

_OTHERS_WRITE = 0o022
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def chroot_path(base: Path, binary: str, name: str) -> Path:
    """Pure: the root of the VM `name`, as a jailer for that binary makes it."""
    return base / binary / _checked(name) / "root"


@contextmanager
def new_chroot(base: Path, binary: str, name: str) -> Iterator[int]:
    """An empty root of root's own, as a folder's descriptor; what bore its name before is removed.

    HostFault where somebody else could write on the way to it: a jailer trusts all its inputs.
    """
    remove_chroots(base, name)
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require_roots(folder, base)
        with suppress(FileExistsError):
            os.mkdir(binary, 0o755, dir_fd=folder)
        folder = _step(folder, binary)
        _require_roots(folder, base / binary)
        for part in (_checked(name), "root"):
            os.mkdir(part, 0o700, dir_fd=folder)
            folder = _step(folder, part)
        yield folder
    finally:
        os.close(folder)


def remove_chroots(base: Path, name: str) -> None:
    """Remove whatever a jailer made for the VM, for whatever binary. Absent is success."""
    _checked(name)
    for binary in _binaries(base):
        remove_tree(base / binary / name)


def find_chroot(base: Path, name: str) -> Path | None:
    """The root of a VM that was jailed before, by whatever binary; None where there is none."""
    _checked(name)
    found = (base / binary / name / "root" for binary in _binaries(base))
    return next((root for root in found if root.is_dir()), None)


def list_chroots(base: Path, prefix: str) -> tuple[str, ...]:
    """Names of VMs that have a folder here and begin with `prefix`."""
    names = set()
    for binary in _binaries(base):
        with suppress(FileNotFoundError):
            names |= {name for name in os.listdir(base / binary) if name.startswith(prefix) and parse_object_name(name)}
    return tuple(sorted(names))


def _binaries(base: Path) -> tuple[str, ...]:
    try:
        with os.scandir(base) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False)))
    except FileNotFoundError:
        return ()


def _checked(name: str) -> str:
    if parse_object_name(name) is None:
        raise HostFault(f"{name!r} is no object name of Nimbus")
    return name


def _step(folder: int, name: str) -> int:
    """Into the folder `name`, which must be no link. Takes over `folder`, unless it fails."""
    inner = os.open(name, _FOLDER, dir_fd=folder)
    os.close(folder)
    return inner


def _require_roots(folder: int, path: Path) -> None:
    found = os.fstat(folder)
    if found.st_uid != 0 or stat.S_IMODE(found.st_mode) & _OTHERS_WRITE:
        raise HostFault(f"{path} must be root's and writable by nobody else: chown root {path} && chmod go-w {path}")
