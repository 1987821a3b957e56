"""What the base root file system holds: busybox under its many names, one ordinary user, and the files in `base/`.

Decides only; `filesystem.py` writes. Called by `build.py`.
"""

from __future__ import annotations

import os
import posixpath
import subprocess
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from nimbus.model.errors import HostFault
from nimbus.rootfs.tree import Entry, file, folder, link, plan_tree

FILES = Path(__file__).parent / "base"  # copied as they are: what lies in a folder `bin` or `sbin` is executable
RUNNER_UID = 1001  # as on the forge's own runners, so that caches keep their owner
_BUSYBOX = "usr/bin/busybox"
_MERGED = ("bin", "sbin", "lib", "lib64")  # links into /usr, as every current distribution has it
_TOP = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_LEFT_OUT = frozenset({"linuxrc", "busybox"})
_STICKY = 0o1777
# What only one machine may have: each makes its own, after the host has prepared it (docs/guest-link.md).
_OF_ONE_MACHINE = ("etc/ssh/ssh_host_*", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id", "var/lib/urandom/*")
_MACHINE_ID = "etc/machine-id"  # there, and empty: nimbus-init fills it


def plan_base(busybox: bytes, files: Path = FILES) -> tuple[Entry, ...]:
    """The whole tree of the base root file system."""
    return _refuse_identities(plan_tree((*_folders(), *_busybox(busybox), *read_files(files))))


def _refuse_identities(tree: tuple[Entry, ...]) -> tuple[Entry, ...]:
    for entry in tree:
        shared = any(fnmatchcase(entry.path, pattern) for pattern in _OF_ONE_MACHINE)
        if shared or (entry.path == _MACHINE_ID and entry.content):
            raise HostFault(f"{entry.path} belongs to one machine: in an image every VM would have the same")
    return tree


def read_files(root: Path) -> tuple[Entry, ...]:
    """The files below `root` as entries. Modes come from the folder's name, for a wheel or a checkout may lose them."""
    entries = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if "__pycache__" in name:
            continue  # a test run may leave one beside the scripts
        executable = posixpath.basename(posixpath.dirname(name)) in {"bin", "sbin"}
        entries.append(file(merge_usr(name), path.read_bytes(), 0o755 if executable else 0o644))
    return tuple(entries)


def merge_usr(path: str) -> str:
    """`bin/sh` -> `usr/bin/sh`: the top folders are links."""
    top, slash, rest = path.partition("/")
    return f"{_TOP[top]}/{rest}" if slash and top in _TOP else path


def _folders() -> Iterator[Entry]:
    for top in _MERGED:
        yield folder(_TOP[top])
        yield link(top, _TOP[top])
    for path in ("dev", "proc", "sys", "run", "mnt", "opt", "srv", "var/log", "usr/local/bin"):
        yield folder(path)
    for path in ("tmp", "var/tmp"):
        yield folder(path, _STICKY)
    yield link("var/run", "/run")
    yield folder("root", 0o700)
    for path in ("home/runner", "work"):
        yield folder(path, uid=RUNNER_UID, gid=RUNNER_UID)


def _busybox(busybox: bytes) -> Iterator[Entry]:
    yield file(_BUSYBOX, busybox, 0o755)
    for applet in _list_applets(busybox):
        path = merge_usr(applet)
        if posixpath.basename(path) not in _LEFT_OUT:
            yield link(path, posixpath.relpath(_BUSYBOX, posixpath.dirname(path)))


def _list_applets(busybox: bytes) -> tuple[str, ...]:
    """Asked of the program itself: its names differ between versions."""
    with tempfile.TemporaryDirectory(prefix="nimbus-busybox-") as name:
        program = Path(name) / "busybox"
        program.write_bytes(busybox)
        program.chmod(0o755)
        try:
            output = subprocess.run((program, "--list-full"), capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostFault(
                f"the guest's busybox does not run on this host ({error}); is {os.path.dirname(name)} mounted noexec? "
                "Set TMPDIR to a folder that is not"
            ) from None
    return tuple(sorted(output.split()))
