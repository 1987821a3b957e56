"""The ext4 image holds the tree exactly, whoever builds it and whenever."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nimbus.model.errors import HostFault
from nimbus.rootfs.filesystem import plan_size_bytes, render_script, write_filesystem
from nimbus.rootfs.tree import Entry, character_device, file, folder, link, plan_tree
from nimbus.storage.content import hash_file
from nimbus.storage.ext4 import run_e2fs

TREE = plan_tree(
    (
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
        file("usr/bin/tool", os.urandom(1) * 300_000, 0o755),
        link("bin", "usr/bin"),
        folder("tmp", 0o1777),
        folder("home/runner", uid=1001, gid=1001),
        character_device("dev/console", 5, 1),
        file("usr/bin/setuid", b"s", 0o4755),
        file("empty", b""),
    )
)


def make(path: Path, tree: tuple[Entry, ...] = TREE) -> Path:
    path.touch()
    write_filesystem(path, tree)
    return path


def ask(image: Path, request: str) -> str:
    done = subprocess.run(("/usr/sbin/debugfs", "-R", request, image), capture_output=True, text=True, check=True)
    return done.stdout


def owner_and_mode(image: Path, path: str) -> tuple[str, str, str]:
    said = ask(image, f"stat {path}")
    mode, user, group = (re.search(rf"{key}: +(\d+)", said) for key in ("Mode", "User", "Group"))
    assert mode is not None
    assert user is not None
    assert group is not None
    return f"{int(mode[1], 8):04o}", user[1], group[1]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("filesystem") / "root.ext4")


def test_a_files_content_is_as_the_tree_says(image: Path, tmp_path: Path) -> None:
    ask(image, f"dump /usr/bin/tool {tmp_path / 'tool'}")
    (expected,) = (entry.content for entry in TREE if entry.path == "usr/bin/tool")
    assert (tmp_path / "tool").read_bytes() == expected
    assert ask(image, "cat /empty") == ""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ("0755", "0", "0")),
        ("/etc/passwd", ("0644", "0", "0")),
        ("/usr/bin/tool", ("0755", "0", "0")),
        ("/usr/bin/setuid", ("4755", "0", "0")),
        ("/tmp", ("1777", "0", "0")),
        ("/home/runner", ("0755", "1001", "1001")),
        ("/home", ("0755", "0", "0")),
        ("/dev/console", ("0600", "0", "0")),
    ],
)
def test_owner_and_mode_are_as_the_tree_says(image: Path, path: str, expected: tuple[str, str, str]) -> None:
    assert owner_and_mode(image, path) == expected


def test_links_and_devices_are_what_they_are(image: Path) -> None:
    assert 'Fast link dest: "usr/bin"' in ask(image, "stat /bin")
    assert re.search(r"character special.*Device major/minor number: 05:01", ask(image, "stat /dev/console"), re.S)


def test_the_same_tree_gives_the_same_bytes(image: Path, tmp_path: Path) -> None:
    assert hash_file(make(tmp_path / "again")) == hash_file(image)


# Starts as root, for a plain user may not reach this interpreter; then becomes one for good.
PLAIN_USER = """
import os, pickle, sys
from pathlib import Path
from nimbus.rootfs.filesystem import write_filesystem
tree = pickle.load(sys.stdin.buffer)
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
write_filesystem(Path(sys.argv[1]), tree)
"""


@pytest.mark.root
def test_a_plain_user_makes_the_same_bytes_as_root(image: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="nimbus-plain-") as folder:
        os.chown(folder, 65534, 65534)
        target = Path(folder) / "image"
        target.touch()
        os.chown(target, 65534, 65534)
        subprocess.run((sys.executable, "-c", PLAIN_USER, target), input=pickle.dumps(TREE), check=True)
        assert hash_file(target) == hash_file(image)


def test_five_hundred_names_in_one_folder_fit(tmp_path: Path) -> None:
    tree = plan_tree((file("bin/busybox", b"x", 0o755), *(link(f"bin/{n:03}-applet", "busybox") for n in range(500))))
    image = make(tmp_path / "many", tree)
    assert ask(image, "ls -p /bin").count("-applet") == 500


def test_a_large_file_fits_with_little_to_spare(tmp_path: Path) -> None:
    tree = plan_tree((file("data", bytes(range(256)) * 4096 * 24),))
    image = make(tmp_path / "large", tree)
    assert image.stat().st_size < 27 << 20
    run_e2fs("e2fsck", "-fn", str(image))


def test_the_planned_size_never_falls_below_the_content() -> None:
    for size in (0, 1, 4096, 4097, 1 << 20):
        assert plan_size_bytes((file("a", bytes(size)),), 32) > size + 32 * 256


def test_the_script_never_names_a_path_from_the_root() -> None:
    # debugfs takes the parent of `/name` for the current folder
    staged = {entry.path: Path("/staged") for entry in TREE}
    commands = [line.split() for line in render_script(TREE, staged)]
    assert all(words[0] == "cd" or not words[-1].startswith("/") for words in commands)
    assert ["mkdir", "tmp"] in commands


def test_a_filling_that_goes_wrong_is_noticed_though_debugfs_says_success(tmp_path: Path) -> None:
    child_first = (file("absent/file", b"x"),)  # not a planned tree: its parent is missing
    with pytest.raises(HostFault, match="debugfs could not fill"):
        make(tmp_path / "broken", child_first)
