"""What the host gives a VMM: its own user, network, root and limits, seen from /proc while a guest runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nimbus.host import slots
from nimbus.host.mountinfo import parse_mountinfo
from tests.vm.terminal import Terminal

pytestmark = [pytest.mark.vm, pytest.mark.root]


def test_a_vmm_holds_nothing_of_the_host_but_what_its_guest_needs(terminal: Terminal) -> None:
    with terminal.start_ready():
        (pid,) = terminal.vmm_pids()
        check_privileges(pid, terminal)
        check_namespaces(pid)
        check_root(pid, terminal)
        check_descriptors(pid, terminal)


def test_two_vmms_share_no_user_and_no_namespace(terminal: Terminal, other_terminal: Terminal) -> None:
    with terminal.start_ready(), other_terminal.start_ready():
        (one,), (other,) = terminal.vmm_pids(), other_terminal.vmm_pids()
        assert read_status(one)["Uid"] != read_status(other)["Uid"]
        for space in ("net", "mnt", "pid"):
            assert os.readlink(f"/proc/{one}/ns/{space}") != os.readlink(f"/proc/{other}/ns/{space}")


def check_privileges(pid: int, terminal: Terminal) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = parse_status((task / "status").read_text())
        uids = {int(uid) for uid in status["Uid"].split()}
        assert len(uids) == 1
        assert uids.pop() in range(slots.UID_BASE, slots.UID_BASE + 4096)
        assert status["Groups"].strip() in {"", status["Gid"].split()[0]}
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), status["Name"]
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert f"/{terminal.territory.prefix}" in Path(f"/proc/{pid}/cgroup").read_text()


def check_namespaces(pid: int) -> None:
    for space in ("net", "mnt", "pid"):
        assert os.readlink(f"/proc/{pid}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}"), space


def check_root(pid: int, terminal: Terminal) -> None:
    """Its root is the jail: programs to read, the image to read, and two folders of its own to write."""
    root = Path(f"/proc/{pid}/root")
    assert {path.name for path in root.iterdir()} <= {"usr", "lib", "lib64", "boot", "vm", "dev"}
    assert {path.name for path in (root / "dev").iterdir()} == {"null", "urandom", "net"}
    assert {path.name for path in (root / "vm").iterdir()} == {"run", "disk"}
    mounts = parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_text())
    assert str(terminal.territory.state_root) not in {mount.point for mount in mounts}
    flags = {
        words[4]: set(words[5].split(","))
        for words in map(str.split, Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    }
    writable = {point for point, options in flags.items() if "ro" not in options}
    assert writable == {"/vm/run", "/vm/disk"} | {point for point in writable if point.startswith("/dev/")}


def check_descriptors(pid: int, terminal: Terminal) -> None:
    """No file of the host is open in it but its own, and no socket of another's."""
    allowed = ("/boot/", "/vm/", "/dev/", "anon_inode:", "pipe:", "socket:", "/memfd:")
    opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    own = str(terminal.territory.state_root / "vms")
    assert [path for path in opened if not path.startswith((*allowed, own))] == []


def read_status(pid: int) -> dict[str, str]:
    return parse_status(Path(f"/proc/{pid}/status").read_text())


def parse_status(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
