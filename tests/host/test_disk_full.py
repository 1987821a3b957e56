"""A VM's disk where the host has no room or no reflinks: real filesystems that are really full.

Faults 11 and 39 on the way of a disk: a copy that fails half-way leaves nothing of itself, and says why.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nimbus.host import probes
from nimbus.host.disk import clone_file, free_bytes
from nimbus.host_agent.disks import RESERVE_BYTES, acquire_disk, release_disk
from nimbus.host_agent.plan import HostLayout, VmPlan, plan_vm
from nimbus.model.errors import HostFault
from nimbus.model.ids import new_vm_id
from nimbus.model.vm import Shape, Slot
from nimbus.storage.content import ImageStore
from nimbus.storage.overlays import overlay_template
from tests.hosts import needs_root

pytestmark = [needs_root, pytest.mark.root]

MIB = 1 << 20
ROOM_MIB = 44  # what a VM's disk may take of the larger filesystem here, beside the reserve


@contextmanager
def mounted(point: Path, *words: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", *words, str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of some 20 MiB: it knows holes and no reflinks."""
    image = tmp_path / "ext4.img"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    with mounted(tmp_path / "ext4", "-o", "loop", str(image)) as point:
        yield point


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state root with the reserve and a little more free."""
    with mounted(tmp_path / "state", "-t", "tmpfs", "-o", f"size={(RESERVE_BYTES >> 20) + ROOM_MIB}m", "none") as point:
        yield point


def make_plan(state: Path) -> VmPlan:
    layout = HostLayout(state=state, runtime=state / "run")
    slot = Slot(9, 290_009, 290_009, 12)
    return plan_vm(layout, new_vm_id(), shape=Shape(), image="none", backend="fake", accel="none", slot=slot)


def write_parts(path: Path, *parts: tuple[int, int]) -> None:
    """A sparse file with data at these MiB, so many of them, and a hole behind."""
    with path.open("wb") as file:
        for start, count in parts:
            file.seek(start * MIB)
            for _ in range(count):
                file.write(os.urandom(MIB))
        file.truncate(1024 * MIB)


def test_without_reflinks_a_clone_is_a_copy_that_keeps_its_holes(tmp_path: Path, ext4: Path) -> None:
    assert not probes.can_reflink(ext4), "this test needs a filesystem without them"
    source, target = ext4 / "source", ext4 / "target"
    write_parts(source, (0, 1), (500, 2))
    clone_file(source, target)
    assert subprocess.run(["cmp", source, target], check=False).returncode == 0
    assert target.stat().st_size == 1024 * MIB
    assert target.stat().st_blocks * 512 < 4 * MIB


def test_a_copy_that_fills_an_ext4_in_its_second_part_leaves_nothing_of_itself(tmp_path: Path, ext4: Path) -> None:
    source = tmp_path / "source"
    write_parts(source, (0, 4), (500, 40))
    before = free_bytes(ext4)
    with pytest.raises(OSError, match="No space left") as caught:
        clone_file(source, ext4 / "overlay.img")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(ext4) == ["lost+found"]
    subprocess.run(["sync", "-f", ext4], check=True)
    assert free_bytes(ext4) == before


def test_the_next_copy_finds_the_room_that_a_failed_one_had_taken(tmp_path: Path, ext4: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    write_parts(large, (0, 40))
    write_parts(small, (0, 12))
    with pytest.raises(OSError, match="No space left"):
        clone_file(large, ext4 / "overlay.img")
    clone_file(small, ext4 / "overlay.img")
    assert subprocess.run(["cmp", small, ext4 / "overlay.img"], check=False).returncode == 0


def test_a_disk_that_does_not_fit_is_the_hosts_fault_and_takes_no_room(tmp_path: Path, state: Path) -> None:
    template, plan = tmp_path / "template", make_plan(state)
    with template.open("wb") as file:
        for _ in range((RESERVE_BYTES >> 20) + 2 * ROOM_MIB):
            file.write(b"\1" * MIB)
    before = free_bytes(state)
    with pytest.raises(HostFault, match=f"cannot make the disk of VM {plan.vm}: No space left on device"):
        acquire_disk(plan, template)
    assert not plan.paths.overlay.exists()
    assert before - free_bytes(state) < MIB
    release_disk(plan.paths.disk)
    assert not plan.paths.folder.exists()


def test_no_disk_is_begun_where_only_the_reserve_is_free(tmp_path: Path, state: Path) -> None:
    template, plan = tmp_path / "template", make_plan(state)
    template.write_bytes(b"empty")
    (state / "others").write_bytes(b"\1" * ((ROOM_MIB + 1) * MIB))
    with pytest.raises(HostFault, match="disk full"):
        acquire_disk(plan, template)
    assert not plan.paths.overlay.exists()


def test_a_template_that_is_not_there_is_the_hosts_fault_and_leaves_no_disk(tmp_path: Path, state: Path) -> None:
    plan = make_plan(state)
    with pytest.raises(HostFault, match="No such file"):
        acquire_disk(plan, tmp_path / "absent")
    assert not plan.paths.overlay.exists()


@pytest.mark.parametrize("size_kib", [16, 64, 128, 256])
def test_an_empty_overlay_that_finds_no_room_is_published_whole_or_not_at_all(tmp_path: Path, size_kib: int) -> None:
    with mounted(tmp_path / "store", "-t", "tmpfs", "-o", f"size={size_kib}k", "none") as point:
        store = ImageStore(point / "images")
        with pytest.raises((HostFault, OSError), match="No space left"):
            overlay_template(store, 1 << 18)
        left = [path for path in store.root.rglob("*") if path.is_file()]
        assert left == []
