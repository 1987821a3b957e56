"""Files by content: immutable blobs named by their sha256, published whole or not at all. Knows no image.

Called by `images.py` and `overlays.py` beside it, and by `rootfs/`, which fills the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BLOB_MODE = 0o444  # the VMM of every tenant reads them under its own uid; nobody writes them


@dataclass(frozen=True)
class ImageStore:
    """`<state root>/images`: blobs, manifests, and (for the builder) a cache."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    def blob_path(self, sha256: str) -> Path:
        return self.blobs / sha256


@dataclass(frozen=True)
class Blob:
    sha256: str
    bytes: int


def put_bytes(store: ImageStore, content: bytes, *, replace: bool = False) -> Blob:
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    if not replace and has_blob(store, blob):
        return blob
    with staged_file(store) as path:
        path.write_bytes(content)
        publish(path, store.blob_path(blob.sha256))
    return blob


def put_file(store: ImageStore, source: Path, *, replace: bool = False) -> Blob:
    """Move a file of the staging folder in as a blob."""
    blob = hash_file(source)
    if replace or not has_blob(store, blob):
        publish(source, store.blob_path(blob.sha256))
    return blob


def has_blob(store: ImageStore, blob: Blob) -> bool:
    try:
        return store.blob_path(blob.sha256).stat().st_size == blob.bytes
    except FileNotFoundError:
        return False


def hash_file(path: Path) -> Blob:
    with path.open("rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


@contextmanager
def staged_file(store: ImageStore) -> Iterator[Path]:
    """An empty file below the store that vanishes unless published; locked, so that a sweep spares it."""
    store.staging.mkdir(parents=True, exist_ok=True)
    while True:
        path = store.staging / secrets.token_hex(8)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if path.exists():
            break
        os.close(fd)  # a sweep was between our open and our flock
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def sweep_staging(store: ImageStore) -> int:
    """Remove what killed writers left; returns how many. A living writer holds the lock of its file."""
    removed = 0
    for path in sorted(store.staging.glob("*")) if store.staging.is_dir() else ():
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue
        removed += 1
    return removed


def publish(staged: Path, target: Path) -> None:
    """fsync, then rename: after a crash the target is whole or absent. Readers of an older one keep theirs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.chmod(_BLOB_MODE)
    fsync_path(staged, os.O_RDONLY)
    staged.rename(target)
    fsync_path(target.parent, os.O_RDONLY | os.O_DIRECTORY)


def fsync_path(path: Path, flags: int) -> None:
    """Make what was written there outlive the host's crash; `flags` say how to open it."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
