"""Writes an initramfs: cpio archives in the `newc` format, of which the kernel unpacks several one after the other.

Never looks at a disk and keeps no time: equal trees give equal bytes. Never compresses: at 2 MiB the boot gains
nothing by it (measured), and a compressor's output changes with its version. Called by `build.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from nimbus.rootfs.modules import Module
from nimbus.rootfs.tree import Entry, Kind, character_device, file, folder, plan_tree

MODULES_FOLDER = "lib/modules"
MODULES_LIST = "modules.list"  # a file name a line, for some a device type too; nimbus-init loads in this order
_ALIGN = 4
_TRAILER = "TRAILER!!!"


def plan_modules(modules: Iterable[Module]) -> tuple[Entry, ...]:
    """The kernel's part: modules in one flat folder and their order."""
    ordered = tuple(modules)
    names = "".join(f"{_render_line(module)}\n" for module in ordered)
    files = (file(f"{MODULES_FOLDER}/{module.file_name}", module.content) for module in ordered)
    return plan_tree((*files, file(MODULES_LIST, names.encode())))


def _render_line(module: Module) -> str:
    return module.file_name if module.device is None else f"{module.file_name} {module.device}"


def plan_init(init: bytes) -> tuple[Entry, ...]:
    """Our part: PID 1, and what must exist before it has mounted anything."""
    return plan_tree(
        (
            file("init", init, 0o755),
            folder("dev"),
            character_device("dev/console", 5, 1),  # or PID 1 starts without standard streams
            folder("proc"),
            folder("sys"),
            folder("newroot"),
        )
    )


def render_cpio(tree: Iterable[Entry]) -> bytes:
    """One whole `newc` archive."""
    out = io.BytesIO()
    for inode, entry in enumerate(tree, start=1):
        _write_member(out, inode, entry.path, entry.st_mode, entry)
    _write_member(out, 0, _TRAILER, 0, None)
    return out.getvalue()


def _write_member(out: io.BytesIO, inode: int, name: str, st_mode: int, entry: Entry | None) -> None:
    content = entry.content if entry else b""
    links = 2 if entry and entry.kind is Kind.FOLDER else 1
    uid, gid, (major, minor) = (entry.uid, entry.gid, entry.device) if entry else (0, 0, (0, 0))
    encoded = name.encode() + b"\0"
    mtime = check = 0
    fields = (inode, st_mode, uid, gid, links, mtime, len(content), 0, 0, major, minor, len(encoded), check)
    out.write(b"070701" + b"".join(b"%08X" % value for value in fields))
    out.write(encoded)
    out.write(bytes(-out.tell() % _ALIGN))
    out.write(content)
    out.write(bytes(-out.tell() % _ALIGN))
