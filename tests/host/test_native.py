"""The C library against the real kernel: namespaces, taps, affinity, process descriptors, the TSC."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimbus.host import native

SIOCGIFINDEX = 0x8933


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    path = tmp_path / "netns"
    native.create_netns(path)
    yield path
    native.remove_netns(path)


@pytest.fixture
def netns_fd(netns: Path) -> Iterator[int]:
    fd = os.open(netns, os.O_RDONLY)
    yield fd
    os.close(fd)


def has_interface(sock_fd: int, name: str) -> bool:
    try:
        fcntl.ioctl(sock_fd, SIOCGIFINDEX, struct.pack("16s16x", name.encode()))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def links_in(netns: Path) -> list[dict[str, object]]:
    ran = subprocess.run(["nsenter", f"--net={netns}", "ip", "-j", "-d", "link"], capture_output=True, check=True)
    links: list[dict[str, object]] = json.loads(ran.stdout)
    return links


@pytest.mark.root
def test_a_namespace_is_new_and_the_callers_stays_as_it_was(tmp_path: Path) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    native.create_netns(tmp_path / "netns")
    made = (tmp_path / "netns").stat().st_ino
    links = [link["ifname"] for link in links_in(tmp_path / "netns")]
    native.remove_netns(tmp_path / "netns")
    assert made != before
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    assert links == ["lo"]


@pytest.mark.root
def test_a_name_that_is_taken_is_not_taken_over(netns: Path) -> None:
    inode = netns.stat().st_ino
    with pytest.raises(FileExistsError, match="netns"):
        native.create_netns(netns)
    assert netns.stat().st_ino == inode


@pytest.mark.root
def test_removing_twice_is_success(netns: Path) -> None:
    native.remove_netns(netns)
    native.remove_netns(netns)
    assert not netns.exists()


@pytest.mark.root
def test_a_file_that_never_became_a_namespace_is_removed_too(tmp_path: Path) -> None:
    left = tmp_path / "left-by-a-kill"
    left.touch()
    native.remove_netns(left)
    assert not left.exists()


@pytest.mark.root
def test_a_folder_that_is_absent_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        native.create_netns(tmp_path / "no-such-folder" / "netns")


@pytest.mark.root
def test_a_tap_is_made_inside_the_namespace_and_nowhere_else(netns: Path, netns_fd: int) -> None:
    name = f"nbt{secrets.token_hex(3)}"
    os.close(native.open_tap(netns_fd, name, uid=200_001, gid=200_002, persist=True))
    inside = native.netns_socket(netns_fd, socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        assert (has_interface(inside, name), has_interface(outside.fileno(), name)) == (True, False)
    os.close(inside)
    (tap,) = [link for link in links_in(netns) if link["ifname"] == name]
    info = tap["linkinfo"]
    assert isinstance(info, dict)
    data = info["info_data"]
    assert (data["type"], data["persist"], data["vnet_hdr"], data["pi"]) == ("tap", True, True, False)
    assert (data["user"], data["group"]) == ("200001", "200002") or (data["user"], data["group"]) == (200_001, 200_002)


@pytest.mark.root
def test_a_tap_that_is_not_persistent_ends_with_its_descriptor(netns: Path, netns_fd: int) -> None:
    fd = native.open_tap(netns_fd, "tap0", uid=0, gid=0, persist=False)
    assert not os.get_inheritable(fd)
    assert "tap0" in [link["ifname"] for link in links_in(netns)]
    os.close(fd)
    assert "tap0" not in [link["ifname"] for link in links_in(netns)]


@pytest.mark.root
@pytest.mark.parametrize("name", ["", "tap%d", "sixteen-bytes-xx"])
def test_a_name_that_the_kernel_would_change_is_refused(netns_fd: int, name: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked, which is more than a message
        native.open_tap(netns_fd, name, 0, 0, persist=False)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.root
def test_a_descriptor_that_is_no_namespace_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            native.open_tap(fd, "tap0", 0, 0, persist=False)
        with pytest.raises(OSError, match="Invalid argument"):
            native.netns_socket(fd, socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        native.netns_socket(-1, socket.AF_INET, socket.SOCK_DGRAM)


@pytest.mark.root
def test_threads_that_work_in_different_namespaces_never_meet(tmp_path: Path) -> None:
    seen: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        path = tmp_path / f"netns{number}"
        native.create_netns(path)
        fd = os.open(path, os.O_RDONLY)
        os.close(native.open_tap(fd, f"tap{number}", 0, 0, persist=True))
        sock = native.netns_socket(fd, socket.AF_INET, socket.SOCK_DGRAM)
        seen[number] = [has_interface(sock, f"tap{other}") for other in range(8)]
        os.close(sock)
        os.close(fd)
        native.remove_netns(path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: [other == number for other in range(8)] for number in range(8)}


def test_affinity_is_read_back_as_it_was_set() -> None:
    before = native.get_affinity(0)
    assert before == frozenset(os.sched_getaffinity(0))
    native.set_affinity(0, {min(before)})
    assert native.get_affinity(0) == {min(before)}
    native.set_affinity(0, before)
    assert native.get_affinity(threading.get_native_id()) == before


def test_a_cpu_that_is_not_there_is_refused() -> None:
    for cpus in ({8000}, set[int]()):
        with pytest.raises(OSError, match="Invalid argument"):
            native.set_affinity(0, cpus)


def test_a_signal_goes_to_the_process_behind_a_descriptor() -> None:
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        pidfd = native.pidfd_open(child.pid)
        native.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        native.pidfd_send_signal(pidfd, signal.SIGTERM)
    os.close(pidfd)


def test_two_measurements_of_the_tsc_agree() -> None:
    first, second = native.tsc_khz(), native.tsc_khz()
    assert 100_000 < first < 20_000_000
    assert abs(first - second) < first / 1000
