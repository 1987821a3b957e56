"""Files of a VM: cheap clones, atomic writes, and removal of trees that a hostile VMM may have filled.

Errors stay OSError: the caller knows which VM they belong to and says so. `remove_tree` works on folder
descriptors, so no name that changes under it can lead it outside. Called by host_agent and storage.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_FICLONE = 0x40049409
_CHUNK_BYTES = 1 << 20
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
_NO_KERNEL_COPY = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
# One descriptor a level: a tree deeper than this is moved up and emptied there.
_MAX_DEPTH = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def clone_file(source: Path, target: Path) -> None:
    """A copy that shares blocks where the filesystem can, and keeps holes where it cannot.

    `target` must not exist; a copy that fails half-way (disk full) is removed again.
    """
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            clone_open_file(reading, writing)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def write_atomically(path: Path, data: bytes, *, fsync: bool) -> None:
    """Replace the file: a reader sees the old bytes or the new ones. With `fsync` they survive a host crash."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if fsync:
        _sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, or the file or symlink of that name. Absent is success.

    Symlinks are removed, never followed; a mount point inside is refused (EBUSY), never entered.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _unlink_file(parent, path.name):
            _remove_folder(parent, path.name)
    finally:
        os.close(parent)


def chown_nofollow(path: Path, uid: int, gid: int) -> None:
    """Change the owner of the name itself, never of what a symlink points at."""
    os.chown(path, uid, gid, follow_symlinks=False)


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write on the filesystem of `path`."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def clone_open_file(reading: int, writing: int) -> None:
    """The same between open files: the empty one becomes a copy of the other."""
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        size = os.fstat(reading).st_size
        os.ftruncate(writing, size)
        for start, end in data_ranges(reading, size):
            _copy_range(reading, writing, start, end)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of the file that hold data, as (start, end)."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    offset = start
    while offset < end:
        try:
            copied = os.copy_file_range(reading, writing, end - offset, offset, offset)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            chunk = os.pread(reading, min(_CHUNK_BYTES, end - offset), offset)
            copied = os.pwrite(writing, chunk, offset)
        if copied == 0:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        offset += copied


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, _FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink_file(parent: int, name: str) -> bool:
    """True when the name is gone; False when it is a folder."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return False
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    return True


def _remove_folder(parent: int, name: str) -> None:
    try:
        top = os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        if os.fstat(top).st_dev != os.fstat(parent).st_dev:
            raise OSError(errno.EBUSY, f"{name} is a mount point: unmount it first")
        while not _empty(top, top, 1):
            pass
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _empty(folder: int, top: int, depth: int) -> bool:
    """Empty one folder. False when a part was too deep, lies at the top now and needs another round."""
    complete = True
    device = os.fstat(folder).st_dev
    for name in os.listdir(folder):
        if _unlink_file(folder, name):
            continue
        if depth >= _MAX_DEPTH:
            os.rename(name, f".deep-{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=top)
            complete = False
            continue
        child = os.open(name, _FOLDER, dir_fd=folder)
        try:
            if os.fstat(child).st_dev != device:
                raise OSError(errno.EBUSY, f"{name} is a mount point: unmount it first")
            complete = _empty(child, top, depth + 1) and complete
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=folder)
    return complete
