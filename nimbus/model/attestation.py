"""What a machine was booted from, by content. Pure; filled by storage/attest.py, told with a machine's end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attestation:
    """The sha256 of each file that a guest was given, as its host read it."""

    image: str
    manifest: str  # sha256 of the image's manifest
    kernel: str
    initramfs: str
    rootfs: str
    verified_at: float  # Unix seconds: since then the file that was read longest ago is known to be unchanged
    overridden: tuple[str, ...] = ()  # kernel, rootfs: a file of the host's settings stood in, compared with nothing
    template: str | None = None  # digest of the snapshot template that it was restored from
