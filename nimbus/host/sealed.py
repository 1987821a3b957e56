"""Memory that nobody can change any more: a file's copy behind a descriptor, sealed by the kernel.

Whoever holds the descriptor may map it privately (copy on write) and read it, whatever path or mode it was opened by;
writing, growing and shrinking are refused for good (memfd_create(2), fcntl(2) F_ADD_SEALS). Holes stay holes.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from nimbus.host.disk import data_ranges

_CHUNK_BYTES = 1 << 20
_F_ADD_SEALS = 1033  # Python names it from 3.13 on
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE


class Sealed:
    """A sealed copy, open for as long as anybody holds this.

    Who boots from it knows it by its number alone. Closed under somebody's hands the number would soon be another
    file's, and a VMM would inherit that: so no owner closes it, the last holder's end does.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.fd = seal_file(path, name)
        weakref.finalize(self, os.close, self.fd)


def seal_file(path: Path, name: str) -> int:
    """A sealed copy of the file; the descriptor (CLOEXEC) is the caller's. `name` is for people, in /proc alone."""
    reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        sealed = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            size = os.fstat(reading).st_size
            os.ftruncate(sealed, size)
            for start, end in data_ranges(reading, size):
                _copy(reading, sealed, start, end)
            fcntl.fcntl(sealed, _F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(sealed)
            raise
        return sealed
    finally:
        os.close(reading)


def _copy(reading: int, writing: int, start: int, end: int) -> None:
    while start < end:
        chunk = os.pread(reading, min(_CHUNK_BYTES, end - start), start)
        if not chunk:
            raise OSError("the file became shorter while it was copied")
        start += os.pwrite(writing, chunk, start)
