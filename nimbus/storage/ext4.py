"""Makes empty ext4 file systems in plain files, the same bytes for the same size. Never mounts; needs no root.

Called by `overlays.py` for the writable disk of a VM and by `rootfs/filesystem.py` for the shared read-only root.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from nimbus.model.errors import HostFault

BLOCK_BYTES = 4096
INODE_BYTES = 256
_BYTES_PER_INODE = 16384  # mke2fs' own usual ratio, without its configuration file
# Every clock, seed and id that would differ between two builds is pinned; the moment itself means nothing.
EPOCH_S = 1_700_000_000
FIXED_ENVIRONMENT = {
    "E2FSPROGS_FAKE_TIME": str(EPOCH_S),
    "SOURCE_DATE_EPOCH": str(EPOCH_S),
    "MKE2FS_CONFIG": os.devnull,  # the host's own defaults stay outside
    "TZ": "UTC",
    "LC_ALL": "C",
}
_HASH_SEED = "6e696d62-7573-4000-8000-000000000001"
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # a plain user's PATH lacks the folders that e2fsprogs lives in
# No journal: these disks die with their VM. No metadata checksums: the guest would compute them under emulation.
_FEATURES = "none,ext_attr,dir_index,filetype,extent,flex_bg,large_file,huge_file,dir_nlink,extra_isize,sparse_super2"
# Zeroed tables now (as unwritten extents, they take no data) or the guest's kernel writes zeros behind the job's back.
_EXTENDED = f"root_owner=0:0,lazy_itable_init=0,nodiscard,hash_seed={_HASH_SEED}"


def make_ext4(path: Path, size_bytes: int, *, uuid: str, label: str, inodes: int | None = None) -> None:
    """Make `path` (an existing empty file) an empty file system of `size_bytes`."""
    os.truncate(path, size_bytes)
    count = ("-i", str(_BYTES_PER_INODE)) if inodes is None else ("-N", str(inodes))
    run_e2fs(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-I", str(INODE_BYTES), "-m", "0", *count),
        *("-L", label, "-U", uuid, "-O", _FEATURES, "-E", _EXTENDED, str(path)),
    )


def run_e2fs(*argv: str, stdin: str = "") -> str:
    """Run one tool of e2fsprogs under the pinned clock; what it wrote to stderr. HostFault says what to install."""
    environment = FIXED_ENVIRONMENT | {"PATH": os.environ.get("PATH", os.defpath) + ":" + _SBIN}
    try:
        done = subprocess.run(  # noqa: PLW1510 - the status is looked at below, with the tool's own words
            argv, input=stdin, capture_output=True, text=True, env=environment
        )
    except FileNotFoundError:
        raise HostFault(f"{argv[0]} is not installed: install the Debian package e2fsprogs") from None
    if done.returncode != 0:
        raise HostFault(f"{argv[0]} failed with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stderr
