"""Clones that stay sparse, writes that are whole, and removal that no hostile tree can lead astray."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.host.disk import chown_nofollow, clone_file, free_bytes, remove_tree, write_atomically

MIB = 1 << 20


def test_a_clone_has_the_same_bytes_and_the_same_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(64 * MIB)
        file.write(b"middle")
        file.truncate(128 * MIB)
    clone_file(source, target)
    assert target.stat().st_size == 128 * MIB
    assert target.stat().st_blocks * 512 < MIB
    with target.open("rb") as file:
        assert file.read(4) == b"head"
        file.seek(64 * MIB)
        assert file.read(7) == b"middle\0"


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=5000)), max_size=6))
def test_a_clone_of_any_file_reads_the_same(
    parts: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("clone")
    with (folder / "source").open("wb") as file:
        for gap, data in parts:
            file.seek(gap, os.SEEK_CUR)
            file.write(data)
    clone_file(folder / "source", folder / "target")
    assert (folder / "target").read_bytes() == (folder / "source").read_bytes()


def test_a_clone_never_overwrites_and_never_follows_a_symlink(tmp_path: Path) -> None:
    source, victim, target = tmp_path / "source", tmp_path / "victim", tmp_path / "target"
    source.write_bytes(b"new")
    victim.write_bytes(b"old")
    target.symlink_to(victim)
    with pytest.raises(FileExistsError):
        clone_file(source, target)
    assert victim.read_bytes() == b"old"


def test_a_clone_onto_another_filesystem_is_a_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", Path("/dev/shm") / f"nimbus-{os.getpid()}"
    source.write_bytes(b"across")
    try:
        clone_file(source, target)
        assert target.read_bytes() == b"across"
    finally:
        target.unlink()


def test_a_source_that_cannot_be_read_leaves_no_target(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        clone_file(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("fsync", [False, True])
def test_an_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"one", fsync=fsync)
    write_atomically(path, b"two", fsync=fsync)
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["record.json"]


def test_an_atomic_write_that_fails_keeps_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new", fsync=False)
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_tree_is_removed_with_everything_in_it(tmp_path: Path) -> None:
    tree = tmp_path / "vm"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"x")
    os.mkfifo(tree / "fifo")
    (tree / "shut").mkdir(mode=0)
    remove_tree(tree)
    remove_tree(tree)
    assert os.listdir(tmp_path) == []


def test_a_symlink_in_a_tree_is_removed_and_what_it_points_at_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    tree = tmp_path / "vm"
    tree.mkdir()
    (tree / "to a folder").symlink_to(outside)
    (tree / "to itself").symlink_to(tree)
    (tree / "to nothing").symlink_to("/nonexistent")
    remove_tree(tree)
    assert (outside / "precious").exists()
    assert not tree.exists()


def test_a_symlink_in_the_place_of_the_tree_is_removed_itself(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "vm").symlink_to(outside)
    remove_tree(tmp_path / "vm")
    assert os.listdir(tmp_path) == ["outside"]


def test_a_tree_deeper_than_any_descriptor_limit_is_removed(tmp_path: Path) -> None:
    tree = tmp_path / "vm"
    tree.mkdir()
    at = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    remove_tree(tree)
    assert os.listdir(tmp_path) == []


def test_removal_below_an_absent_folder_is_success(tmp_path: Path) -> None:
    remove_tree(tmp_path / "absent" / "vm")


def test_the_owner_of_a_symlink_changes_and_that_of_its_target_does_not(tmp_path: Path) -> None:
    target, name = tmp_path / "target", tmp_path / "name"
    target.touch()
    name.symlink_to(target)
    before = target.stat()
    chown_nofollow(name, os.getuid(), os.getgid())
    assert target.stat().st_ctime_ns == before.st_ctime_ns


def test_free_bytes_are_what_the_filesystem_says(tmp_path: Path) -> None:
    assert 0 < free_bytes(tmp_path) <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
