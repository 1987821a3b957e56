"""Files with holes: the same bytes are the same file, wherever its holes are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.storage.sparse import copy_without_zeros, digest_sparse

MIB = 1 << 20


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return digest_sparse(file.fileno())


def write_parts(path: Path, size: int, parts: list[tuple[int, bytes]]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts:
            os.pwrite(file.fileno(), data[: max(0, size - offset)], offset)


@pytest.mark.parametrize("where", [(), (0,), (5000,), (0, 1 << 20, (4 << 20) - 1)])
def test_a_copy_without_zeros_holds_the_same_bytes(tmp_path: Path, where: tuple[int, ...]) -> None:
    content = bytearray(4 << 20)
    for at in where:
        content[at] = 1
    (tmp_path / "dense").write_bytes(content)
    (tmp_path / "sparse").touch()
    copy_without_zeros(tmp_path / "dense", tmp_path / "sparse")
    assert (tmp_path / "sparse").read_bytes() == content
    assert (tmp_path / "sparse").stat().st_blocks * 512 <= 4096 * len(where)


PARTS = st.lists(st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=70_000)), max_size=5)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 300_000), parts=PARTS)
def test_a_digest_depends_on_the_bytes_and_not_on_the_holes(
    size: int, parts: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sparse")
    write_parts(folder / "holes", size, parts)
    (folder / "dense").write_bytes((folder / "holes").read_bytes())
    (folder / "copy").touch()
    copy_without_zeros(folder / "dense", folder / "copy")
    assert digest(folder / "holes") == digest(folder / "dense") == digest(folder / "copy")


@settings(max_examples=40, deadline=None)
@given(parts=PARTS, at=st.integers(0, 299_999))
def test_one_byte_more_or_another_is_another_digest(
    parts: list[tuple[int, bytes]], at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    write_parts(path, 300_000, parts)
    before = digest(path)
    with path.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes((byte ^ 1,)), at)
        assert digest(path) != before
        os.pwrite(file.fileno(), bytes((byte,)), at)
        assert digest(path) == before
        os.ftruncate(file.fileno(), 300_001)
    assert digest(path) != before


def test_data_that_moved_by_a_window_is_another_file(tmp_path: Path) -> None:
    write_parts(tmp_path / "one", MIB, [(0, b"data")])
    write_parts(tmp_path / "other", MIB, [(1 << 16, b"data")])
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_a_terabyte_of_holes_is_read_by_its_data_alone_and_told_to_its_end(tmp_path: Path) -> None:
    write_parts(tmp_path / "disk", 1 << 40, [(0, b"head"), (1 << 39, b"middle")])
    told: list[int] = []
    with (tmp_path / "disk").open("rb") as file:
        digest_sparse(file.fileno(), told.append)
    assert told == [1 << 16, (1 << 39) + (1 << 16), 1 << 40]
