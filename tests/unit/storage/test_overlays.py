"""The writable disk's template: empty, sparse, the same for all."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nimbus.host.disk import clone_file
from nimbus.model.errors import Refused
from nimbus.storage.content import ImageStore, hash_file
from nimbus.storage.ext4 import run_e2fs
from nimbus.storage.overlays import overlay_template


def test_a_template_has_the_size_asked_for_and_a_sound_file_system(tmp_path: Path) -> None:
    path = overlay_template(ImageStore(tmp_path), 64)
    assert path.stat().st_size == 64 << 20
    run_e2fs("e2fsck", "-fn", str(path))


def test_two_stores_make_the_same_template(tmp_path: Path) -> None:
    first = overlay_template(ImageStore(tmp_path / "a"), 32)
    second = overlay_template(ImageStore(tmp_path / "b"), 32)
    assert hash_file(first) == hash_file(second)


def test_a_vms_copy_of_a_template_takes_little_room(tmp_path: Path) -> None:
    path = overlay_template(ImageStore(tmp_path), 2048)
    clone_file(path, tmp_path / "clone")
    for file in (path, tmp_path / "clone"):
        assert file.stat().st_blocks * 512 < 1 << 20
    run_e2fs("e2fsck", "-fn", str(tmp_path / "clone"))


def test_the_guest_has_nothing_left_to_initialise(tmp_path: Path) -> None:
    path = overlay_template(ImageStore(tmp_path), 256)
    described = subprocess.run(("/usr/sbin/dumpe2fs", path), capture_output=True, text=True, check=True).stdout
    assert "UNINIT" not in described
    assert "has_journal" not in described


def test_a_second_call_returns_the_same_file(tmp_path: Path) -> None:
    first = overlay_template(ImageStore(tmp_path), 32).stat()
    second = overlay_template(ImageStore(tmp_path), 32).stat()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, second.st_mtime_ns)


def test_a_damaged_template_is_made_again(tmp_path: Path) -> None:
    path = overlay_template(ImageStore(tmp_path), 32)
    path.unlink()
    path.write_bytes(b"")
    assert overlay_template(ImageStore(tmp_path), 32).stat().st_size == 32 << 20


def test_eight_machines_that_want_it_at_once_all_get_a_whole_one(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: overlay_template(store, 32), range(8)))
    assert len(set(paths)) == 1
    run_e2fs("e2fsck", "-fn", str(paths[0]))
    assert list(store.staging.iterdir()) == []


@pytest.mark.parametrize("mib", [-1, 0, 15, (1 << 20) + 1])
def test_a_size_that_makes_no_sense_is_refused(tmp_path: Path, mib: int) -> None:
    with pytest.raises(Refused, match="MiB is not possible"):
        overlay_template(ImageStore(tmp_path), mib)
