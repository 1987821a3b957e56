"""Keys and files of templates for tests: small memories with a hole, as a VMM leaves them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from nimbus.model.template import Cpu, TemplateKey
from nimbus.model.vm import Shape
from nimbus.storage.templates import Template, TemplateFiles, TemplateStore

MIB = 1 << 20
MEMORY_MIB = 16
CPU = Cpu("GenuineIntel", "A CPU @ 2.00GHz", "6", "106", "6", "0x1", "c" * 64)
KEY = TemplateKey(
    image="base",
    manifest_sha256="1" * 64,
    kernel_sha256="2" * 64,
    initramfs_sha256="3" * 64,
    rootfs_sha256="4" * 64,
    backend="qemu",
    accel="tcg",
    vmm_version="7.2.0",
    vmm_sha256="5" * 64,
    cpu=CPU,
    host_kernel="6.1.0",
    shape=Shape(),
    recipe_sha256="6" * 64,
)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_files(folder: Path) -> TemplateFiles:
    """What a VM would have left: a memory of which two blocks were touched and one block is zeros on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TemplateFiles(folder / "ram", folder / "state", folder / "overlay.img")
    with files.memory.open("wb") as memory:
        memory.truncate(MEMORY_MIB * MIB)
        memory.write(b"kernel".ljust(4096, b"k"))
        memory.write(bytes(4096))
        memory.seek(8 * MIB)
        memory.write(b"init".ljust(4096, b"i"))
    files.state.write_bytes(b"registers")
    with files.overlay.open("wb") as overlay:
        overlay.truncate(4 * MIB)
        overlay.write(b"ext4")
    return files


def publish(store: TemplateStore, tmp_path: Path, key: TemplateKey = KEY, **changes: object) -> Template:
    """A template of the key with those changes."""
    wanted = replace(key, **changes)  # type: ignore[arg-type]
    return store.publish(wanted, make_files(tmp_path / "vm"))


def damage(path: Path, offset: int, data: bytes) -> None:
    """Write into a published file, as a failing disk or a wrong program would."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)
