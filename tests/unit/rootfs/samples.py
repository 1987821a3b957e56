"""Small kernels, modules and packages made by hand, so that a build can be tested without a distribution's archive."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import lz4.block

RELEASE = "6.1.0-1-cloud-amd64"
VMLINUX = b"\x7fELF" + bytes(range(256)) * 64


def lz4_legacy(content: bytes) -> bytes:
    """Two blocks, as a kernel larger than 8 MiB has."""
    half = len(content) // 2
    blocks = [lz4.block.compress(part, store_size=False) for part in (content[:half], content[half:])]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


PACKERS: dict[str, Callable[[bytes], bytes]] = {"lz4": lz4_legacy, "xz": lzma.compress}


def payload_of(content: bytes, packer: str) -> bytes:
    """Packed as the kernel's build does: the size follows every format but gzip."""
    if packer == "gzip":
        return gzip.compress(content)
    return PACKERS[packer](content) + struct.pack("<I", len(content))


def bzimage(payload: bytes, *, version: int = 0x020F, sectors: int = 3, release: str = RELEASE) -> bytes:
    """A setup header with all that is read of it, a gap, then the payload."""
    image = bytearray((sectors + 1) * 512)
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<H", image, 0x20E, 0x400 - 0x200)
    image[0x400 : 0x400 + len(release) + 5] = f"{release} (me)".encode()[: len(release) + 5]
    gap = 96
    struct.pack_into("<II", image, 0x248, gap, len(payload))
    return bytes(image) + bytes(gap) + payload + b"after"


def module(depends: str = "", *, name: str = "") -> bytes:
    """An ELF object with a `.modinfo` and nothing else."""
    info = b"license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    sections_at = names_at + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, sections_at, 0, 64, 0, 0, 64, 3, 2
    )
    rows = (
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, info_at, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0),
    )
    return header + info + names + b"".join(rows)


def module_files(names: Iterable[str]) -> dict[str, bytes]:
    """Path in a kernel package -> module, none of which depends on another."""
    return {f"lib/modules/{RELEASE}/kernel/{name}.ko": module(name=name) for name in names}


def make_deb(folder: Path, package: str, version: str, files: Mapping[str, bytes], *, depends: str = "") -> Path:
    """A real package, by dpkg-deb."""
    tree = folder / f"{package}.tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name, content in files.items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "Package": package,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "nobody <nobody@invalid>",
        "Description": "made by a test",
    } | ({"Depends": depends} if depends else {})
    control.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    path = folder / f"{package}_{version}_amd64.deb"
    subprocess.run(("dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, path), check=True, capture_output=True)
    shutil.rmtree(tree)
    return path


def write_index(folder: Path) -> None:
    """`Packages` of a flat archive."""
    entries = []
    for path in sorted(folder.glob("*.deb")):
        fields = subprocess.run(("dpkg-deb", "-f", path), check=True, capture_output=True, text=True).stdout.strip()
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries.append(f"{fields}\nFilename: ./{path.name}\nSize: {len(content)}\nSHA256: {digest}\n")
    (folder / "Packages").write_text("\n".join(entries))
