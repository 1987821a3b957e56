"""The folders that a jailer takes over: filled with what is shared, purged by name, and no link followed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from nimbus.host.chroots import chroot_path, find_chroot, list_chroots, new_chroot, remove_chroots
from nimbus.host.hardlink import lend_file, share_file
from nimbus.model.errors import HostFault

pytestmark = pytest.mark.root

VM, OTHER = "nb0ff-0000000a", "nb0ff-0000000b"
VM_UID = 261_017


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "jailer"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another filesystem."""
    point = tmp_path / "elsewhere"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"a kernel")
    path.chmod(0o444)
    return path


def give(base: Path, source: Path) -> tuple[bool, Path]:
    with new_chroot(base, "firecracker", VM) as root:
        linked = share_file(source, root, "kernel")
    return linked, chroot_path(base, "firecracker", VM) / "kernel"


def test_what_vms_share_is_one_file_of_roots_under_two_names(base: Path, kernel: Path) -> None:
    linked, path = give(base, kernel)
    assert linked
    assert os.path.samefile(path, kernel)
    found = path.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode), found.st_nlink) == (0, 0o444, 2)


def test_a_file_of_another_filesystem_is_copied_and_that_is_said(base: Path, elsewhere: Path) -> None:
    source = elsewhere / "vmlinux"
    source.write_bytes(b"a kernel")
    linked, path = give(base, source)
    assert not linked
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (b"a kernel", 0o444, 0)


@pytest.mark.parametrize(("mode", "owner"), [(0o666, 0), (0o464, 0), (0o444, VM_UID), (0o600, 0)])
def test_a_file_that_a_tenant_could_write_or_could_not_read_is_never_shared(
    base: Path, kernel: Path, mode: int, owner: int
) -> None:
    kernel.chmod(mode)
    os.chown(kernel, owner, 0)
    linked, path = give(base, kernel)
    assert not linked
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (b"a kernel", 0o444, 0)
    assert (stat.S_IMODE(kernel.stat().st_mode), kernel.stat().st_uid) == (mode, owner)


def test_a_copy_that_fills_the_disk_leaves_no_part_of_itself(tmp_path: Path, elsewhere: Path) -> None:
    source = tmp_path / "rootfs"
    source.write_bytes(os.urandom(2 << 20))
    source.chmod(0o444)
    with new_chroot(elsewhere / "jailer", "firecracker", VM) as root:
        with pytest.raises(OSError, match="No space left"):
            share_file(source, root, "rootfs")
        assert os.listdir(root) == []


_at_link: list[Callable[[], object]] = []  # an audit hook stays for ever: this one acts once, when it is told what


def _on_audit(event: str, _: tuple[object, ...]) -> None:
    if event == "os.link" and _at_link:
        _at_link.pop()()


sys.addaudithook(_on_audit)


def test_a_file_that_is_replaced_while_it_is_linked_is_found_out(base: Path, kernel: Path, tmp_path: Path) -> None:
    other = tmp_path / "another kernel"
    other.write_bytes(b"another kernel")
    _at_link.append(partial(os.replace, other, kernel))
    with pytest.raises(OSError, match="replaced") as caught:
        give(base, kernel)
    assert caught.value.errno == errno.ESTALE


def test_a_vms_own_disk_keeps_its_owner_and_is_one_file(base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "overlay.img"
    disk.touch(0o600)
    os.chown(disk, VM_UID, VM_UID)
    with new_chroot(base, "firecracker", VM) as root:
        assert lend_file(disk, root, "overlay.img")
    found = (chroot_path(base, "firecracker", VM) / "overlay.img").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode), found.st_nlink) == (VM_UID, 0o600, 2)


def test_a_vms_own_disk_of_another_filesystem_is_copied_with_its_owner(base: Path, elsewhere: Path) -> None:
    disk = elsewhere / "overlay.img"
    disk.write_bytes(b"blocks")
    disk.chmod(0o600)
    os.chown(disk, VM_UID, VM_UID)
    with new_chroot(base, "firecracker", VM) as root:
        assert not lend_file(disk, root, "overlay.img")
    found = chroot_path(base, "firecracker", VM) / "overlay.img"
    assert (found.read_bytes(), found.stat().st_uid) == (b"blocks", VM_UID)


def test_a_link_in_place_of_a_vms_disk_is_not_followed(base: Path, kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "overlay.img").symlink_to(kernel)
    with new_chroot(base, "firecracker", VM) as root, pytest.raises(OSError, match="no file of one name"):
        lend_file(tmp_path / "overlay.img", root, "overlay.img")


def test_whatever_an_earlier_jail_of_that_name_left_is_purged_first(base: Path) -> None:
    for binary in ("firecracker", "firecracker-v1.13.1"):
        left = chroot_path(base, binary, VM)
        (left / "dev").mkdir(parents=True)
        (left / f"{binary}.pid").write_text("1")
        (left / "escape").symlink_to("/etc")
    neighbour = chroot_path(base, "firecracker", OTHER)
    neighbour.mkdir(parents=True)
    with new_chroot(base, "firecracker", VM) as root:
        assert os.listdir(root) == []
    assert find_chroot(base, VM) == chroot_path(base, "firecracker", VM)
    assert neighbour.is_dir()
    assert Path("/etc/passwd").exists()


def test_a_link_planted_in_place_of_a_folder_leads_nowhere(base: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / VM).mkdir(parents=True)
    base.mkdir()
    (base / "firecracker").symlink_to(outside)
    with pytest.raises(OSError, match="firecracker"), new_chroot(base, "firecracker", VM):
        pass
    remove_chroots(base, VM)
    assert (outside / VM).is_dir()
    assert list_chroots(base, "nb0ff-") == ()


def test_a_base_that_others_may_write_is_refused_with_what_mends_it(base: Path) -> None:
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(HostFault, match="chmod go-w"), new_chroot(base, "firecracker", VM):
        pass
    base.chmod(0o755)
    os.chown(base, VM_UID, 0)
    with pytest.raises(HostFault, match="chown root"), new_chroot(base, "firecracker", VM):
        pass


def test_chroots_are_listed_by_prefix_and_absent_ones_are_removed_with_success(base: Path) -> None:
    remove_chroots(base, VM)
    assert list_chroots(base, "nb0ff-") == ()
    with new_chroot(base, "firecracker", VM), new_chroot(base, "firecracker", OTHER):
        assert list_chroots(base, "nb0ff-") == (VM, OTHER)
    remove_chroots(base, VM)
    remove_chroots(base, VM)
    assert list_chroots(base, "nb0ff-") == (OTHER,)
    assert find_chroot(base, VM) is None


@pytest.mark.parametrize("name", ["", "..", "nb0ff-0000000a/..", "firecracker"])
def test_nothing_but_a_vms_object_name_names_a_chroot(base: Path, name: str) -> None:
    with pytest.raises(HostFault):
        remove_chroots(base, name)
