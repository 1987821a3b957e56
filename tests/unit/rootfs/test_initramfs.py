"""Our cpio archives are read back by cpio itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from nimbus.rootfs.initramfs import plan_init, plan_modules, render_cpio
from nimbus.rootfs.modules import Module
from nimbus.rootfs.tree import file, folder, link, plan_tree

MODULES = (Module("zeta", b"first"), Module("alpha", b"second, and longer"))


def list_archive(archive: bytes) -> list[str]:
    done = subprocess.run(("cpio", "-itv", "--quiet"), input=archive, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def test_cpio_reads_the_archive_with_owners_modes_and_devices() -> None:
    lines = list_archive(render_cpio(plan_init(b"program")))
    assert re.match(r"-rwxr-xr-x +1 root +root +7 Jan +1 +1970 init$", next(x for x in lines if x.endswith("init")))
    console = next(x for x in lines if x.endswith("dev/console"))
    assert re.match(r"crw------- +1 root +root +5, +1 ", console)


def test_cpio_unpacks_the_same_content(tmp_path: Path) -> None:
    tree = plan_tree((file("a/b/data", b"\0\1\2" * 1001, 0o640), folder("empty", 0o700), link("short", "a/b/data")))
    subprocess.run(("cpio", "-id", "--quiet"), input=render_cpio(tree), cwd=tmp_path, check=True)
    assert (tmp_path / "short").read_bytes() == b"\0\1\2" * 1001
    assert (tmp_path / "a/b/data").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


def test_the_list_of_modules_keeps_the_order_of_loading() -> None:
    (listed,) = (entry for entry in plan_modules(MODULES) if entry.path == "modules.list")
    assert listed.content == b"zeta.ko\nalpha.ko\n"


def test_a_module_for_one_kind_of_device_is_listed_with_that_devices_type() -> None:
    (listed,) = (entry for entry in plan_modules([*MODULES, Module("vsock", b"third")]) if entry.path == "modules.list")
    assert listed.content == b"zeta.ko\nalpha.ko\nvsock.ko 19\n"


def test_each_listed_module_lies_in_the_one_flat_folder() -> None:
    contents = {entry.path: entry.content for entry in plan_modules(MODULES)}
    assert contents["lib/modules/zeta.ko"] == b"first"
    assert contents["lib/modules/alpha.ko"] == b"second, and longer"


def test_the_kernel_finds_the_second_archive_where_it_looks_for_it() -> None:
    # It skips zero bytes between archives and wants each header on a 4-byte boundary.
    assert len(render_cpio(plan_init(b"odd"))) % 4 == 0


def test_equal_trees_give_equal_bytes() -> None:
    assert render_cpio(plan_modules(MODULES)) == render_cpio(plan_modules(list(MODULES)))
