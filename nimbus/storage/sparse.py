"""Files that are mostly holes: copied without their zeros, and told apart without reading their holes.

A VM's disk may be 100 GiB of which 1 MiB was ever written; its memory is touched to a quarter. Called by overlays.py
and templatefolder.py beside it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK_BYTES = 4096  # one block of the file system, one page of memory
_WINDOW_BYTES = 1 << 16  # part of every digest: never changed without another format of what holds digests


def copy_without_zeros(source: Path, target: Path) -> int:
    """Fill the empty `target` with what is not zero in `source`: holes take no room, and a clone skips them.

    mke2fs zeroes the inode tables, 1.6% of the disk, in extents that a clone would copy for each VM. Returns how many
    bytes are in the target.
    """
    written = 0
    with source.open("rb", buffering=0) as reader, target.open("r+b", buffering=0) as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        for start, end in data_ranges(reader.fileno(), size):
            for offset in range(start, end, _BLOCK_BYTES):
                block = os.pread(reader.fileno(), min(_BLOCK_BYTES, end - offset), offset)
                if is_zero(block):
                    continue
                if os.pwrite(writer.fileno(), block, offset) != len(block):
                    raise OSError(errno.ENOSPC, "only a part of a block could be written")
                written += len(block)
    return written


def digest_sparse(fd: int, on_read: Callable[[int], None] | None = None) -> str:
    """64 hex digits for the file's bytes and size: equal for equal bytes, wherever their holes are.

    A sha256 over the windows that are not zero, each after its offset; no sha256 of the whole file. `on_read` is told
    how far it came, and may raise to stop.
    """
    size = os.fstat(fd).st_size
    hashed = hashlib.sha256(size.to_bytes(8, "big"))
    done = 0
    for start, end in data_ranges(fd, size):
        for offset in range(max(done, start - start % _WINDOW_BYTES), end, _WINDOW_BYTES):
            window = os.pread(fd, _WINDOW_BYTES, offset)
            if not is_zero(window):
                hashed.update(offset.to_bytes(8, "big"))
                hashed.update(window)
            done = offset + _WINDOW_BYTES
            if on_read is not None:
                on_read(min(done, size))
    if on_read is not None and done < size:
        on_read(size)
    return hashed.hexdigest()


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of the file that are no holes."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole until the end
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset


def is_zero(data: bytes) -> bool:
    """Compared whole: to ask each byte takes a hundred times as long, and this may be a guest's memory."""
    return data == bytes(len(data))
