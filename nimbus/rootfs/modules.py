"""Which kernel modules a guest needs, in the order in which they load. Reads bytes; never loads and never runs kmod.

Dependencies come from each module's own `.modinfo`, because `modules.dep` exists only where depmod has run.
Called by `build.py` with the files of a kernel package.
"""

from __future__ import annotations

import gzip
import lzma
import posixpath
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nimbus.model.errors import HostFault

# What a microVM's devices need, and overlayfs. Debian's cloud kernel has ext4 built in.
WANTED = (
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "overlay",
    "virtio_rng",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
)
# Loaded only where the VMM gives that virtio device (type by the virtio standard): others boot no slower for it.
ONLY_WITH = {"vsock": 19, "vmw_vsock_virtio_transport_common": 19, "vmw_vsock_virtio_transport": 19}
_ELF64 = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True)
class Module:
    """One module, unpacked as `finit_module` wants it."""

    name: str
    content: bytes

    @property
    def file_name(self) -> str:
        return f"{self.name}.ko"

    @property
    def device(self) -> int | None:
        """The type of the only virtio device that it is for."""
        return ONLY_WITH.get(self.name)


def is_module(path: str) -> bool:
    return path.endswith((".ko", ".ko.xz", ".ko.gz"))


def select_modules(
    files: Mapping[str, bytes], builtin: Iterable[str] = (), wanted: Iterable[str] = WANTED
) -> tuple[Module, ...]:
    """The wanted modules and all that they depend on, each after what it needs. Builtin ones are left out."""
    paths = {_module_name(path): path for path in files}
    inside_kernel = {_module_name(path) for path in builtin}
    chosen: dict[str, Module] = {}

    def choose(name: str, needed_by: tuple[str, ...]) -> None:
        if name in chosen or name in inside_kernel:
            return
        if name in needed_by:
            raise HostFault(f"kernel modules depend on each other in a ring: {' -> '.join((*needed_by, name))}")
        if name not in paths:
            raise HostFault(f"the kernel has no module {name} (wanted for {needed_by[0] if needed_by else name})")
        content = _unpack(paths[name], files[paths[name]])
        for dependency in read_dependencies(content):
            choose(dependency, (*needed_by, name))
        chosen[name] = Module(name, content)

    for name in wanted:
        choose(name, ())
    return tuple(chosen.values())


def read_dependencies(module: bytes) -> tuple[str, ...]:
    """The `depends=` of a module."""
    for entry in _modinfo(module).split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == b"depends":
            return tuple(_module_name(name) for name in value.decode().split(",") if name)
    return ()


def _modinfo(module: bytes) -> bytes:
    try:
        if module[:5] != b"\x7fELF\x02":
            raise ValueError("no 64-bit ELF file")
        header = _ELF64.unpack_from(module)
        offset, entry_bytes, count, names_index = header[5], header[10], header[11], header[12]
        sections = [_SECTION.unpack_from(module, offset + index * entry_bytes) for index in range(count)]
        names_offset = sections[names_index][4]
        for section in sections:
            start = names_offset + section[0]
            if module[start : start + 9] == b".modinfo\0":
                return module[section[4] : section[4] + section[5]]
    except (struct.error, IndexError, ValueError) as error:
        raise HostFault(f"a kernel module cannot be read ({error}): the kernel package is damaged") from None
    return b""


def _module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`: file names use either dash, names only one."""
    return posixpath.basename(path).partition(".")[0].replace("-", "_")


def _unpack(path: str, content: bytes) -> bytes:
    try:
        if path.endswith(".xz"):
            return lzma.decompress(content)
        return gzip.decompress(content) if path.endswith(".gz") else content
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise HostFault(f"{path} cannot be unpacked ({error}): the kernel package is damaged") from None
