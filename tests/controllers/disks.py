"""Disks of the controllers' guest: a folder as a read-only ext4 image, and the files of a results disk read back.

Never mounts anything. Called by root.py and run.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from nimbus.storage.ext4 import BLOCK_BYTES, INODE_BYTES, run_e2fs

_FEATURES = "none,ext_attr,dir_index,filetype,extent,flex_bg,large_file,huge_file,dir_nlink,extra_isize,sparse_super2"
_SPARE = 1.1
SPARE_BYTES = 64 << 20  # the guest writes into a throw-away copy of its disks, and has this much room


def write_disk(path: Path, tree: Path, label: str) -> None:
    """Make `path` an ext4 image of the folder `tree`, with its owners and modes."""
    blocks, entries = measure(tree)
    inodes = entries + 4096
    size = int(blocks * _SPARE) + inodes * INODE_BYTES + SPARE_BYTES
    with path.open("wb") as file:
        file.truncate(-(-size // BLOCK_BYTES) * BLOCK_BYTES)
    shape = ("-b", str(BLOCK_BYTES), "-I", str(INODE_BYTES), "-N", str(inodes), "-m", "0")
    run_e2fs("mke2fs", "-q", "-F", "-t", "ext4", *shape, "-O", _FEATURES, "-L", label, "-d", str(tree), str(path))


def measure(tree: Path) -> tuple[int, int]:
    """Bytes in whole blocks, and how many files and folders."""
    blocks = entries = 0
    for folder, names, files in os.walk(tree):
        entries += len(names) + len(files)
        blocks += sum(_in_blocks(os.lstat(os.path.join(folder, name)).st_size) for name in (*names, *files))
    return blocks, entries


def _in_blocks(size: int) -> int:
    return max(1, -(-size // BLOCK_BYTES)) * BLOCK_BYTES


def read_disk(path: Path, folder: Path) -> None:
    """Copy everything on an ext4 image, which nobody has mounted, into `folder`."""
    run_e2fs("e2fsck", "-fp", str(path))
    run_e2fs("debugfs", "-R", f"rdump / {folder}", str(path))
