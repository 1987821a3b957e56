"""Disk acts that need root: full filesystems and mount points inside a tree."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus.host.disk import clone_file, remove_tree

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of one mebibyte."""
    point = tmp_path / "tree" / "small"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_a_clone_that_fills_the_disk_leaves_no_part_of_itself(tmp_path: Path, small: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 << 20))
    with pytest.raises(OSError, match="No space left") as caught:
        clone_file(source, small / "overlay.img")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small) == []


def test_a_mount_point_inside_a_tree_is_refused_and_its_content_stays(tmp_path: Path, small: Path) -> None:
    (small / "of another filesystem").touch()
    with pytest.raises(OSError, match="mount point") as caught:
        remove_tree(tmp_path / "tree")
    assert caught.value.errno == errno.EBUSY
    assert os.listdir(small) == ["of another filesystem"]
