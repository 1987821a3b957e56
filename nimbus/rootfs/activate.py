"""Makes an image of a kernel and a root file system that came from elsewhere, after the checks that a built one passes.

Takes plain files, knows no network. What the list does not bring is made here: the other form of the kernel, and an
initramfs with nimbus-init and no modules. Called by `fetch.py`.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nimbus.model.errors import HostFault, NotFound
from nimbus.rootfs.initramfs import plan_init, plan_modules, render_cpio
from nimbus.rootfs.kernel import extract_vmlinux, read_release
from nimbus.storage.content import Blob, ImageStore, has_blob, put_bytes, put_file
from nimbus.storage.ext4 import run_e2fs
from nimbus.storage.images import Manifest, Provenance, check_image_name, put_manifest, read_manifest

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_EXT_MAGIC_AT, _EXT_MAGIC = 0x438, b"\x53\xef"
_CPIO_MAGIC = b"070701"
_BANNER = re.compile(rb"Linux version ([0-9][A-Za-z0-9._+~-]{0,127}) ")


@dataclass(frozen=True)
class Parts:
    """The files of an image to be, by role, and what goes into its manifest about them."""

    name: str
    files: Mapping[str, Path]
    provenance: Provenance
    init: bytes  # PID 1, for an initramfs of ours


def check_parts(parts: Parts, arch: str) -> str:
    """The kernel's release, where all of it may be published; HostFault names the first file that is not what it should
    be. Changes nothing."""
    release = ""
    for role, path in sorted(parts.files.items()):
        match role:
            case "rootfs":
                _check_rootfs(path)
            case "initramfs":
                _check_start(path, 0, _CPIO_MAGIC, "no uncompressed cpio archive (newc)")
            case "vmlinux":
                check_elf(path, arch)
                release = read_elf_release(path.read_bytes())
            case _:
                image = path.read_bytes()
                extract_vmlinux(image)
                release = release or read_release(image)
    return release


def publish_parts(store: ImageStore, parts: Parts, kernel_release: str) -> bool:
    """Move checked files into the store, the manifest last; False where the image was there already."""
    check_image_name(parts.name)
    blobs = {role: put_file(store, path, replace=True) for role, path in parts.files.items()}
    if "vmlinux" not in blobs:
        packed = store.blob_path(blobs["vmlinuz"].sha256).read_bytes()
        blobs["vmlinux"] = put_bytes(store, extract_vmlinux(packed), replace=True)
    blobs.setdefault("vmlinuz", blobs["vmlinux"])  # a loader that knows bzImage knows ELF, and there is no other
    if "initramfs" not in blobs:
        archives = render_cpio(plan_init(parts.init)) + render_cpio(plan_modules(()))
        blobs["initramfs"] = put_bytes(store, archives, replace=True)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return put_manifest(store, Manifest(parts.name, created, kernel_release, blobs, parts.provenance))


def find_published(store: ImageStore, name: str, source: str) -> Manifest | None:
    """The image of that name where it was made of the same and is whole; None otherwise."""
    try:
        manifest = read_manifest(store, name)
    except (NotFound, HostFault):
        return None
    whole = all(_is_sound(store, blob) for blob in manifest.files.values())
    return manifest if whole and manifest.provenance.source == source else None


def _is_sound(store: ImageStore, blob: Blob) -> bool:
    if not has_blob(store, blob):
        return False
    with store.blob_path(blob.sha256).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256


def check_elf(path: Path, arch: str) -> None:
    """HostFault where the file is no 64-bit ELF of this machine's kind."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:6] != b"\x7fELF\x02\x01":
        raise HostFault(f"{path.name} is no 64-bit ELF file: the release list names the wrong file")
    (machine,) = struct.unpack_from("<H", head, 18)
    if machine != ELF_MACHINES.get(arch):
        raise HostFault(f"{path.name} is for another machine than this one ({arch}): ELF machine {machine}")


def read_elf_release(vmlinux: bytes) -> str:
    """`uname -r` out of the banner that every kernel holds."""
    found = _BANNER.search(vmlinux)
    if found is None:
        raise HostFault("the vmlinux holds no version of Linux: it is no kernel")
    return found[1].decode("ascii")


def _check_rootfs(path: Path) -> None:
    _check_start(path, _EXT_MAGIC_AT, _EXT_MAGIC, "no ext4 file system; the guest mounts nothing else as its root")
    run_e2fs("e2fsck", "-fn", str(path))


def _check_start(path: Path, at: int, magic: bytes, what: str) -> None:
    with path.open("rb") as file:
        file.seek(at)
        if file.read(len(magic)) != magic:
            raise HostFault(f"{path.name} is {what}")
