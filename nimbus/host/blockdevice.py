"""Which disk a folder lies on, as cgroup v2's io controller wants it named: the whole disk, never a partition of it.

Reads only. Called by host_agent/settings.py, where a VM's input and output is to be limited.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nimbus.host.mountinfo import parse_mountinfo

_SYS = Path("/sys")
_MOUNTINFO = Path("/proc/self/mountinfo")


def find_disk(folder: Path, sysfs: Path = _SYS) -> str | None:
    """`major:minor` of the disk below `folder`, or below where it will be; None where no block device is."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    device = existing.stat().st_dev
    if os.major(device) == 0:  # nameless: btrfs gives one to each subvolume, tmpfs and overlay lie on nothing
        device = _find_source(existing.resolve())
    return None if device == 0 else whole_disk(f"{os.major(device)}:{os.minor(device)}", sysfs)


def whole_disk(device: str, sysfs: Path = _SYS) -> str | None:
    """The disk that a partition is a part of; a disk is itself. None where sysfs knows no such device."""
    try:
        folder = (sysfs / "dev" / "block" / device).resolve(strict=True)
        if (folder / "partition").exists():
            folder = folder.parent
        return (folder / "dev").read_text().strip()
    except OSError:
        return None


def _find_source(folder: Path) -> int:
    """The device that is mounted where `folder` is; 0 for none."""
    mounts = parse_mountinfo(_MOUNTINFO.read_text())
    above = [mount for mount in mounts if folder.is_relative_to(mount.point)]
    source = Path(sorted(above, key=lambda mount: len(mount.point))[-1].source)  # of two on one place the later one
    try:
        found = source.stat() if source.is_absolute() else None
    except OSError:
        return 0
    return found.st_rdev if found is not None and stat.S_ISBLK(found.st_mode) else 0
