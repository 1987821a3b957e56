"""host/sealed.py: a copy that the kernel lets nobody change, with the holes of the file it is of."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from nimbus.host.sealed import Sealed, seal_file

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(8 * MIB)
        file.write(b"a page of the guest" * 1000)
    return path


def test_the_copy_is_the_file_and_takes_no_room_for_its_holes(source: Path) -> None:
    fd = seal_file(source, "test")
    try:
        assert os.fstat(fd).st_size == 64 * MIB
        assert os.fstat(fd).st_blocks * 512 < 4 * MIB
        assert os.pread(fd, 64 * MIB, 0) == source.read_bytes()
    finally:
        os.close(fd)


def test_nobody_writes_grows_or_shrinks_it_and_a_private_mapping_copies(source: Path) -> None:
    fd = seal_file(source, "test")
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # as a VMM opens it
    try:
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        for size in (1, 65 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(again, size)
        with pytest.raises(PermissionError):
            mmap.mmap(again, MIB, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(again, MIB, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            mapped[:5] = b"clone"
            assert os.pread(fd, 5, 0) == bytes(5)
    finally:
        os.close(again)
        os.close(fd)


def test_a_link_is_not_followed(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(OSError, match="symbolic"):
        seal_file(link, "test")


def test_a_copy_is_open_for_as_long_as_anybody_holds_it_and_no_longer(source: Path) -> None:
    first = Sealed(source, "test")
    fd, second = first.fd, first
    del first
    assert os.fstat(fd).st_size == 64 * MIB
    del second
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
