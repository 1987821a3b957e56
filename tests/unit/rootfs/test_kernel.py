"""The ELF inside a bzImage comes out whole, or the package is said to be damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.model.errors import HostFault
from nimbus.rootfs.kernel import extract_vmlinux, read_release
from tests.unit.rootfs.samples import RELEASE, VMLINUX, bzimage, payload_of

SOUND = bzimage(payload_of(VMLINUX, "lz4"))


@pytest.mark.parametrize("packer", ["lz4", "xz", "gzip"])
def test_the_kernel_inside_comes_out_byte_for_byte(packer: str) -> None:
    assert extract_vmlinux(bzimage(payload_of(VMLINUX, packer))) == VMLINUX


def test_no_setup_sectors_means_four() -> None:
    image = bytearray(bzimage(payload_of(VMLINUX, "lz4"), sectors=4))
    image[0x1F1] = 0
    assert extract_vmlinux(bytes(image)) == VMLINUX


def test_the_release_is_what_uname_will_say() -> None:
    assert read_release(SOUND) == RELEASE


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "no x86 bzImage"),
        (bytes(4096), "no x86 bzImage"),
        (bzimage(b"payload", version=0x0207), "older than 2.08"),
        (bzimage(b"\x28\xb5\x2f\xfd" + bytes(64)), "zstd"),
        (bzimage(b"what is this" + bytes(64)), "unknown way"),
        (bzimage(payload_of(b"no ELF" * 9, "lz4")), "no ELF file"),
        (bzimage(payload_of(VMLINUX, "lz4")[:-4] + bytes(4)), "and not to 0"),
        (bzimage(payload_of(VMLINUX, "xz")[:-40] + bytes(40)), "damaged"),
        (SOUND[: len(SOUND) // 2], "ends beyond its file"),
    ],
)
def test_what_cannot_be_a_kernel_is_named(image: bytes, reason: str) -> None:
    with pytest.raises(HostFault, match=reason):
        extract_vmlinux(image)


@given(st.integers(0x1F1, len(SOUND) - 1), st.integers(1, 255))
def test_one_wrong_byte_never_fails_in_another_way(at: int, change: int) -> None:
    image = bytearray(SOUND)
    image[at] ^= change
    try:
        vmlinux = extract_vmlinux(bytes(image))
    except HostFault:
        return
    assert vmlinux[:4] == b"\x7fELF"
