"""Processes inside a VM's cgroup, and what the kernel counts of them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from nimbus.host.cgroup import cgroup_dir

LIMIT_S = 60.0  # the guest is emulated
LOOK_AGAIN_S = 0.05


def start_in(name: str, leaf: str, script: str) -> subprocess.Popen[bytes]:
    """A shell that joins the leaf by itself before it runs the script; returned once it has."""
    procs = cgroup_dir(name) / leaf / "cgroup.procs"
    process = subprocess.Popen(
        ["sh", "-c", f"echo $$ > {procs}; echo in; {script}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    return process


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Its status and what it said, when it has ended."""
    with process:
        said, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, said.decode()


def read_file(name: str, file: str) -> str:
    return (cgroup_dir(name) / "vmm" / file).read_text().strip()


def read_count(name: str, file: str, key: str) -> int:
    """A number of a file of `key number` lines."""
    return next(int(line.split()[1]) for line in read_file(name, file).splitlines() if line.split()[0] == key)


def wait_until(seen: Callable[[], bool]) -> None:
    """Until the kernel shows it. It counts and does not signal."""
    deadline = time.monotonic() + LIMIT_S
    while not seen():
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(LOOK_AGAIN_S)


def find_controllers() -> set[str]:
    return set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
