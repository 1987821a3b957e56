"""What the base root file system holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nimbus.model.errors import HostFault
from nimbus.rootfs.busybox import merge_usr, plan_base, read_files
from nimbus.rootfs.tree import Entry, Kind

BUSYBOX = Path(shutil.which("busybox") or "/bin/busybox")


@pytest.fixture(scope="module")
def tree() -> dict[str, Entry]:
    return {entry.path: entry for entry in plan_base(BUSYBOX.read_bytes())}


def target_of(tree: dict[str, Entry], path: str) -> str:
    assert tree[path].kind is Kind.LINK
    return tree[path].content.decode()


def test_the_shell_and_the_usual_tools_are_busybox(tree: dict[str, Entry]) -> None:
    for name in ("sh", "cat", "sed", "wget", "uname", "head", "sleep"):
        assert target_of(tree, f"usr/bin/{name}") == "busybox"
    assert tree["usr/bin/busybox"].mode == 0o755


def test_a_tool_for_root_finds_busybox_from_its_own_folder(tree: dict[str, Entry]) -> None:
    assert target_of(tree, "usr/sbin/fdisk") == "../bin/busybox"


def test_the_top_folders_are_links_into_usr(tree: dict[str, Entry]) -> None:
    assert {name: target_of(tree, name) for name in ("bin", "sbin", "lib")} == {
        "bin": "usr/bin",
        "sbin": "usr/sbin",
        "lib": "usr/lib",
    }


def test_the_runner_owns_its_home_and_its_work_folder(tree: dict[str, Entry]) -> None:
    assert b"\nrunner:x:1001:1001:runner:/home/runner:/bin/sh\n" in tree["etc/passwd"].content
    assert {(tree[path].uid, tree[path].gid) for path in ("home/runner", "work")} == {(1001, 1001)}


def test_everybody_may_write_to_tmp_and_nobody_may_remove_anothers_file(tree: dict[str, Entry]) -> None:
    assert tree["tmp"].mode == 0o1777


def test_the_runner_program_is_there_and_may_be_run(tree: dict[str, Entry]) -> None:
    assert tree["usr/local/bin/nimbus-runner"].mode == 0o755


def test_the_machine_id_is_there_and_empty_for_each_vm_gets_its_own(tree: dict[str, Entry]) -> None:
    assert (tree["etc/machine-id"].kind, tree["etc/machine-id"].content) == (Kind.FILE, b"")


@pytest.mark.parametrize(
    "path", ["etc/ssh/ssh_host_ed25519_key", "var/lib/systemd/random-seed", "var/lib/urandom/seed", "etc/machine-id"]
)
def test_an_image_holds_nothing_that_only_one_machine_may_have(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(b"0123")

    with pytest.raises(HostFault, match="belongs to one machine"):
        plan_base(BUSYBOX.read_bytes(), tmp_path)


def test_what_the_guest_mounts_upon_is_there(tree: dict[str, Entry]) -> None:
    assert all(tree[path].kind is Kind.FOLDER for path in ("dev", "proc", "sys", "run", "tmp"))


def test_a_file_in_a_folder_of_programs_may_be_run_whatever_its_mode_here(tmp_path: Path) -> None:
    for path in ("bin/program", "usr/local/sbin/admin", "etc/config"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    assert {(entry.path, entry.mode) for entry in read_files(tmp_path)} == {
        ("usr/bin/program", 0o755),
        ("usr/local/sbin/admin", 0o755),
        ("etc/config", 0o644),
    }


@pytest.mark.parametrize(
    ("path", "merged"),
    [("bin/sh", "usr/bin/sh"), ("sbin/ip", "usr/sbin/ip"), ("usr/bin/env", "usr/bin/env"), ("binary", "binary")],
)
def test_paths_are_moved_below_usr(path: str, merged: str) -> None:
    assert merge_usr(path) == merged


def test_a_busybox_that_does_not_run_here_is_the_hosts_fault() -> None:
    with pytest.raises(HostFault, match="does not run on this host"):
        plan_base(b"\x7fELF of another machine")
