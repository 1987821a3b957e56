"""One file under a second name in somebody's folder: shared where nobody but root may write it, else copied.

The file that was opened is the one that gets the name, whatever its path leads to meanwhile; nothing shared ever
changes its owner or mode, since these belong to the file and not to the name. Errors stay OSError: the caller knows
which VM they are of. Called by host_agent/jail.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nimbus.host.disk import clone_open_file

_READ_ONLY = 0o444
_OTHERS_READ, _OTHERS_WRITE = 0o004, 0o022
# Another filesystem, a filesystem or a policy without hard links, or a file that has all the names it may have.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})


def share_file(source: Path, folder: int, name: str) -> bool:
    """Make `name` in the folder the same file as `source`, for reading by all. False where it had to be copied.

    OSError with ESTALE where `source` was replaced meanwhile: what was named is then not what was checked before.
    """
    with _holding(source, follow=True) as fd:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{source} is no regular file")
        linked = _may_be_shared(found) and _link(fd, folder, name)
        if not linked:
            _copy(fd, folder, name, _READ_ONLY)
        _check_same(source, found, os.stat(name, dir_fd=folder, follow_symlinks=False) if linked else None)
        return linked


def lend_file(source: Path, folder: int, name: str) -> bool:
    """The same for a file that is its VM's own and written to: owner and mode stay. False where it had to be copied."""
    with _holding(source, follow=False) as fd:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.EINVAL, f"{source} is no file of one name")
        if _link(fd, folder, name):
            return True
        _copy(fd, folder, name, stat.S_IMODE(found.st_mode))
        os.chown(name, found.st_uid, found.st_gid, dir_fd=folder, follow_symlinks=False)
        return False


@contextmanager
def _holding(path: Path, *, follow: bool) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        yield fd
    finally:
        os.close(fd)


def _may_be_shared(found: os.stat_result) -> bool:
    """A tenant reads it under a uid of its own; one that could write it would write it for all the others."""
    mode = stat.S_IMODE(found.st_mode)
    return found.st_uid == 0 and not mode & _OTHERS_WRITE and bool(mode & _OTHERS_READ)


def _link(fd: int, folder: int, name: str) -> bool:
    try:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
    except FileNotFoundError as error:  # the file has lost its last name since it was opened
        raise OSError(errno.ESTALE, f"what should be {name} was replaced while it was given to a VM") from error
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _copy(fd: int, folder: int, name: str, mode: int) -> None:
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            clone_open_file(reading, writing)
            os.fchmod(writing, mode)
        except BaseException:
            os.unlink(name, dir_fd=folder)
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _check_same(source: Path, opened: os.stat_result, linked: os.stat_result | None) -> None:
    """What is at the path now, and what got the new name, must still be the file that was opened."""
    now = os.stat(source)
    for other in (now, linked):
        if other is not None and (other.st_dev, other.st_ino) != (opened.st_dev, opened.st_ino):
            raise OSError(errno.ESTALE, f"{source} was replaced while it was given to a VM")
