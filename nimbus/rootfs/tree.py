"""A tree of files as values: what an initramfs or a root file system will hold. Touches no disk.

Made by `initramfs.py` and `base.py`, written out by `initramfs.py` (cpio) and `filesystem.py` (ext4). Owner, mode
and order come from here and never from the build machine, so that equal trees give equal bytes without root.
"""

from __future__ import annotations

import enum
import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from nimbus.model.errors import HostFault

FOLDER_MODE = 0o755


class Kind(enum.Enum):
    """What an entry is; the value is its file type in `st_mode`."""

    FILE = 0o100000
    FOLDER = 0o040000
    LINK = 0o120000
    CHARACTER_DEVICE = 0o020000


@dataclass(frozen=True)
class Entry:
    """One file, folder, link or device. `path` is relative to the tree's root and normalised."""

    path: str
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    content: bytes = b""  # of a file; of a link, its target
    device: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        normal = self.path == posixpath.normpath(self.path)
        if not normal or self.path.startswith("/") or self.path.split("/")[0] in {".", ".."} or _unquotable(self.path):
            raise HostFault(f"{self.path!r} cannot be a path in a guest's tree")
        if self.kind is Kind.LINK and (not self.content or _unquotable(self.content.decode())):
            raise HostFault(f"{self.path} cannot be a link to {self.content!r}")

    @property
    def st_mode(self) -> int:
        return self.kind.value | self.mode


def _unquotable(text: str) -> bool:
    """debugfs reads commands, one a line, in words: a name that is no plain word could be another command."""
    return any(c.isspace() or not c.isprintable() or c in "\"\\'" for c in text)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, Kind.FILE, mode, content=content)


def folder(path: str, mode: int = FOLDER_MODE, *, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path, Kind.FOLDER, mode, uid, gid)


def link(path: str, target: str) -> Entry:
    return Entry(path, Kind.LINK, 0o777, content=target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, Kind.CHARACTER_DEVICE, mode, device=(major, minor))


def plan_tree(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries sorted, parents first and missing parents added; a later entry replaces an earlier of its path."""
    tree: dict[str, Entry] = {}
    for entry in entries:
        tree[entry.path] = entry
    for path in tuple(tree):
        parent = posixpath.dirname(path)
        while parent and parent not in tree:
            tree[parent] = folder(parent)
            parent = posixpath.dirname(parent)
        if parent and tree[parent].kind is not Kind.FOLDER:
            raise HostFault(f"{path} lies below {parent}, which is no folder")
    return tuple(sorted(tree.values(), key=lambda entry: entry.path.split("/")))


def digest_tree(tree: Iterable[Entry]) -> str:
    """One hash over all that a tree is."""
    digest = hashlib.sha256()
    for entry in tree:
        head = (entry.path, entry.st_mode, entry.uid, entry.gid, entry.device, len(entry.content))
        digest.update(repr(head).encode() + b"\n")
        digest.update(entry.content)
    return digest.hexdigest()
