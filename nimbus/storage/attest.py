"""Whether an image's files are what its manifest says, at each boot, and what they are. Reads; never repairs.

A file is read once in the life of a process and then known by its device, inode, size, mtime and ctime. A ctime alone
also moves when a jail takes or drops a hard link of the file, at every boot under Firecracker: such a file is believed
for REREAD_S after its last reading. So who may write the file and puts its mtime back is found out within that time;
who is root and turns the clock back, or writes to the disk beneath the file system, is not, and neither is a disk that
lies. Called by the agent in threads.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nimbus.model.attestation import Attestation
from nimbus.model.errors import HostFault
from nimbus.storage.images import BUILD_COMMAND, Image

REREAD_S = 600.0
_SETTLED_NS = 2_000_000_000  # a file system's clock ticks: what was written just now could be again, unseen
_KNOWN_MAX = 256  # files; a host has a few images
_SHORT_DIGEST = 12


class AlteredImage(HostFault):
    """A file of an image is not what was published, so nothing may boot from it."""


@dataclass(frozen=True)
class _Identity:
    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Reading:
    sha256: str
    at: float  # Unix seconds
    ctime_ns: int


class Attestor:
    """Remembers, for the life of its process, which files it has read."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._known: dict[_Identity, _Reading] = {}
        self._reading = threading.Lock()  # machines that start at once wait for one reading of their image

    def attest(self, image: Image) -> Attestation:
        """What the image is. AlteredImage where it is not what its manifest says, HostFault where it cannot be read."""
        kernel, initramfs, rootfs = (
            self._check(image, role, path)
            for role, path in (("vmlinux", image.vmlinux), ("initramfs", image.initramfs), ("rootfs", image.rootfs))
        )
        overridden = [name for name, role in (("kernel", "vmlinux"), ("rootfs", "rootfs")) if role not in image.digests]
        return Attestation(
            image=image.name,
            manifest=image.manifest_sha256,
            kernel=kernel.sha256,
            initramfs=initramfs.sha256,
            rootfs=rootfs.sha256,
            verified_at=min(kernel.at, initramfs.at, rootfs.at),
            overridden=tuple(overridden),
        )

    def _check(self, image: Image, role: str, path: Path) -> _Reading:
        try:
            with self._reading:
                found = self._read(path)
        except OSError as error:
            raise HostFault(f"image {image.name!r}: its {role} at {path} cannot be read: {error.strerror}") from error
        promised = image.digests.get(role)
        if promised is not None and found.sha256 != promised:
            raise AlteredImage(
                f"image {image.name!r}: {role} at {path} hashes to {found.sha256[:_SHORT_DIGEST]}… and its "
                f"manifest says {promised[:_SHORT_DIGEST]}…: nothing boots from it. Find out who changed it; "
                f"`{BUILD_COMMAND} --name {image.name} --force` or a new fetch repairs it"
            )
        return found

    def _read(self, path: Path) -> _Reading:
        with path.open("rb") as file:
            identity, ctime_ns = _identify(file.fileno())
            known, now_ns = self._known.get(identity), self._now_ns()
            if known is not None and (known.ctime_ns == ctime_ns or 0 <= now_ns / 1e9 - known.at < REREAD_S):
                return known
            reading = _Reading(hashlib.file_digest(file, "sha256").hexdigest(), now_ns / 1e9, ctime_ns)
            if _identify(file.fileno())[0] != identity:
                raise AlteredImage(f"{path} changed while it was read: nothing boots from it")
        if now_ns - identity.mtime_ns > _SETTLED_NS:
            while len(self._known) >= _KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[identity] = reading
        return reading


def _identify(fd: int) -> tuple[_Identity, int]:
    found = os.fstat(fd)
    return _Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns), found.st_ctime_ns
