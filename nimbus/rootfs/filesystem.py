"""Writes a tree into an ext4 image, with owners, modes and devices as the tree says. Needs no root and no mount.

`mke2fs -d` would copy owner, times and order from the build machine; so the image is made empty and filled by
debugfs, whose script is rendered here from the sorted tree. Called by `build.py`.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nimbus.model.errors import HostFault
from nimbus.rootfs.tree import Entry, Kind
from nimbus.storage.ext4 import BLOCK_BYTES, INODE_BYTES, make_ext4, run_e2fs

_UUID = "6e696d62-7573-4000-8000-00000000000b"
_RESERVED_INODES = 16  # ext4's own eleven, and lost+found
_SPARE = 1.03  # extent trees, bitmaps and descriptors beside the data
_FIXED_BYTES = 256 << 10
_ROUND_BYTES = 64 << 10


def write_filesystem(path: Path, tree: Sequence[Entry]) -> None:
    """Make `path` (an existing empty file) an ext4 image that holds the tree, just large enough: it is read-only."""
    inodes = len(tree) + _RESERVED_INODES
    make_ext4(path, plan_size_bytes(tree, inodes), uuid=_UUID, label="nimbus-root", inodes=inodes)
    with tempfile.TemporaryDirectory(prefix="nimbus-rootfs-") as folder:
        staged: dict[str, Path] = {}
        for number, entry in enumerate(tree):
            if entry.kind is Kind.FILE:
                staged[entry.path] = Path(folder) / str(number)
                staged[entry.path].write_bytes(entry.content)
        script = Path(folder) / "script"
        script.write_text("\n".join(render_script(tree, staged)) + "\n")
        said = run_e2fs("debugfs", "-w", "-f", str(script), str(path))
    # debugfs reports a failed command on stderr and still exits 0. Its banner is the one line that is no complaint.
    complaints = [line for line in said.splitlines() if line.strip() and not line.startswith("debugfs ")]
    if complaints:
        raise HostFault(f"debugfs could not fill the root file system: {' '.join(complaints)[:400]}")
    run_e2fs("e2fsck", "-fn", str(path))


def plan_size_bytes(tree: Iterable[Entry], inodes: int) -> int:
    """Pure: the size that holds the tree with little to spare."""
    data = sum(-(-max(len(entry.content), 1) // BLOCK_BYTES) * BLOCK_BYTES for entry in tree if _takes_blocks(entry))
    size = int((data + inodes * INODE_BYTES) * _SPARE) + _FIXED_BYTES
    return -(-size // _ROUND_BYTES) * _ROUND_BYTES


def render_script(tree: Iterable[Entry], staged: dict[str, Path]) -> Iterator[str]:
    """Pure: the debugfs commands that make the tree. Parents come first in a planned tree."""
    for entry in tree:
        folder, name = posixpath.split(f"/{entry.path}")
        yield f"cd {folder}"  # and bare names: debugfs takes the parent of `/name` for the current folder
        match entry.kind:
            case Kind.FOLDER:
                yield f"mkdir {name}"
            case Kind.FILE:
                yield f"write {staged[entry.path]} {name}"
            case Kind.LINK:
                yield f"symlink {name} {entry.content.decode()}"
            case Kind.CHARACTER_DEVICE:
                yield f"mknod {name} c {entry.device[0]} {entry.device[1]}"
        if entry.kind is not Kind.LINK:
            yield f"set_inode_field {name} mode 0{entry.st_mode:o}"
        for owner, value in (("uid", entry.uid), ("gid", entry.gid)):
            if value:
                yield f"set_inode_field {name} {owner} {value}"


def _takes_blocks(entry: Entry) -> bool:
    return entry.kind in {Kind.FILE, Kind.FOLDER}
