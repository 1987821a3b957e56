"""The disk below a folder, in a sysfs of our own making and on this very host."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimbus.host.blockdevice import find_disk, whole_disk


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """One disk with one partition, and a device-mapper volume, linked as the kernel links them."""
    for place, device in (("sda", "8:0"), ("sda/sda1", "8:1"), ("dm-0", "253:0")):
        folder = tmp_path / "devices" / place
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{device}\n")
        (tmp_path / "dev" / "block").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / "block" / device).symlink_to(folder)
    (tmp_path / "devices" / "sda" / "sda1" / "partition").write_text("1\n")
    return tmp_path


@pytest.mark.parametrize(("device", "disk"), [("8:1", "8:0"), ("8:0", "8:0"), ("253:0", "253:0"), ("7:7", None)])
def test_a_partition_is_a_part_of_its_disk_and_a_disk_is_itself(device: str, disk: str | None, sysfs: Path) -> None:
    assert whole_disk(device, sysfs) == disk


def test_a_filesystem_in_memory_lies_on_no_disk() -> None:
    assert find_disk(Path("/proc")) is None


def test_a_folder_that_is_not_there_yet_will_lie_where_its_parents_lie(tmp_path: Path) -> None:
    assert find_disk(tmp_path / "not" / "yet") == find_disk(tmp_path)
