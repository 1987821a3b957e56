"""Takes the ELF `vmlinux` out of a bzImage. Pure: bytes in, bytes out; never runs a kernel.

Firecracker boots nothing else, and QEMU boots it quicker: the guest does not unpack itself under emulation.
Layout: the kernel's Documentation/arch/x86/boot.rst. Called by `build.py`.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block

from nimbus.model.errors import HostFault

_SECTOR_BYTES = 512
_HEADER_MAGIC = b"HdrS"
_HEADER_MAGIC_AT = 0x202
_SETUP_SECTORS_AT = 0x1F1
_DEFAULT_SETUP_SECTORS = 4  # what 0 means
_VERSION_AT = 0x206
_VERSION_WITH_PAYLOAD = 0x0208
_PAYLOAD_AT = 0x248  # u32 offset, u32 length, relative to the protected-mode code
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES = 8 << 20  # the legacy frame's fixed block size, uncompressed
_SIZE_BYTES = 4  # the kernel's build appends the unpacked size to every format but gzip, which has its own


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF inside; HostFault where the image or its compression is not one that this machine can read."""
    vmlinux = _unpack(_payload(image))
    if vmlinux[:4] != b"\x7fELF":
        raise HostFault("the kernel's payload is no ELF file: the kernel package is damaged")
    return vmlinux


def read_release(image: bytes) -> str:
    """`uname -r` of the kernel in this bzImage: the first word of its version string."""
    _check(image)
    (pointer,) = struct.unpack_from("<H", image, 0x20E)
    start = pointer + _SECTOR_BYTES
    return image[start : image.index(b"\0", start)].split(b" ", 1)[0].decode("ascii", "replace")


def _check(image: bytes) -> None:
    if len(image) < _PAYLOAD_AT + 8 or image[_HEADER_MAGIC_AT : _HEADER_MAGIC_AT + 4] != _HEADER_MAGIC:
        raise HostFault("the kernel is no x86 bzImage: only x86_64 packages are understood")
    if struct.unpack_from("<H", image, _VERSION_AT)[0] < _VERSION_WITH_PAYLOAD:
        raise HostFault("the kernel's boot protocol is older than 2.08 and does not say where its payload is")


def _payload(image: bytes) -> bytes:
    _check(image)
    setup = (image[_SETUP_SECTORS_AT] or _DEFAULT_SETUP_SECTORS) + 1
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    start = setup * _SECTOR_BYTES + offset
    if length <= _SIZE_BYTES or start + length > len(image):
        raise HostFault("the kernel's payload ends beyond its file: the kernel package is damaged")
    return image[start : start + length]


def _unpack(payload: bytes) -> bytes:
    if payload[:2] == b"\x1f\x8b":
        return _unpacked(lambda: gzip.decompress(payload))
    body, (size,) = payload[:-_SIZE_BYTES], struct.unpack("<I", payload[-_SIZE_BYTES:])
    if body[:4] == _LZ4_LEGACY:
        vmlinux = _unpacked(lambda: _unpack_lz4_legacy(body))
    elif body[:6] == b"\xfd7zXZ\0":
        vmlinux = _unpacked(lambda: lzma.decompress(body))
    elif body[:4] == b"\x28\xb5\x2f\xfd":
        raise HostFault(
            "the kernel is packed with zstd, which is not supported: use a kernel packed with lz4, xz or gzip"
        )
    else:
        raise HostFault(f"the kernel is packed in an unknown way (it starts with {body[:6].hex()})")
    if len(vmlinux) != size:
        raise HostFault(f"the kernel unpacks to {len(vmlinux)} bytes and not to {size}: the package is damaged")
    return vmlinux


def _unpack_lz4_legacy(frame: bytes) -> bytes:
    """The old frame format of the `lz4 -l` command, which the Python binding does not read: sized blocks, no end."""
    blocks: list[bytes] = []
    at = len(_LZ4_LEGACY)
    while at < len(frame):
        (length,) = struct.unpack_from("<I", frame, at)
        at += 4
        blocks.append(lz4.block.decompress(frame[at : at + length], uncompressed_size=_LZ4_BLOCK_BYTES))
        at += length
    return b"".join(blocks)


def _unpacked(unpack: Callable[[], bytes]) -> bytes:
    """The four codecs' own errors as one: the file is damaged, and its owner must fetch it again."""
    try:
        return unpack()
    except (OSError, EOFError, ValueError, struct.error, lzma.LZMAError, lz4.block.LZ4BlockError) as error:
        raise HostFault(f"the kernel cannot be unpacked ({error}): the kernel package is damaged") from None
