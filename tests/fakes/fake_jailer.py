"""Our own jailer: the real one's arguments, its order, its refusals and what it leaves; then it becomes the VMM.

Python cannot execute itself inside a chroot, so what the real one executes is loaded here before the jail is entered,
and called after. The guest's keeper is started in between, outside the jail. Started through what install.py makes.
"""

from __future__ import annotations

import os
import re
import resource
import runpy
import shutil
import stat
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.fakes import kernel
from tests.fakes.devices import name_error
from tests.fakes.fake_firecracker import VERSION, Jailed
from tests.fakes.faults import Faults
from tests.fakes.guest import open_guest

_ONCE = ("id", "exec-file", "uid", "gid", "chroot-base-dir", "netns", "cgroup-version", "parent-cgroup")
_MANY = ("cgroup", "resource-limit")
_FLAGS = ("daemonize", "new-pid-ns")
_REQUIRED = ("exec-file", "gid", "id", "uid")
_LIMITS = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}
_OPEN_FILES = 2048
_DEVICES = (("/dev/net/tun", 10, 200), ("/dev/kvm", 10, 232), ("/dev/urandom", 1, 9))
_FOLDERS = ("", "dev", "dev/net", "run")


class Failed(Exception):
    """The jailer's own word for why it gave up."""


def main(argv: Sequence[str], folder: str | None = None) -> NoReturn:
    """Jail and become the VMM, or say why not and end with 1."""
    os.closerange(3, 4096)
    os.environ.clear()
    faults = Faults(folder)
    fault = faults.of_jailer()
    if fault.get("do") == "hang":
        threading.Event().wait()
    try:
        if fault.get("do") == "exit":
            raise Failed(fault.get("text", "told to fail"))
        if "--version" in argv:
            sys.stdout.write(f"Jailer v{VERSION}\n\n")
            raise SystemExit(0)
        words, extra = _parse(argv[1:])
        _jail(_Order(words, extra), faults, frozenset(fault.get("skip", ())))
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(fault.get("code", 1)) from None


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    failed = "Failed to parse arguments: {}"
    words: dict[str, Any] = {name: [] for name in _MANY}
    given = iter(argv)
    for word in given:
        name = word.removeprefix("--")
        if not name and word == "--":
            break
        if name not in (*_ONCE, *_MANY, *_FLAGS) or not word.startswith("--"):
            raise Failed(
                failed.format(f"Found argument '{name}' which wasn't expected, or isn't valid in this context.")
            )
        if name in words and name not in _MANY:
            raise Failed(failed.format(f"The argument '{name}' was provided more than once."))
        if name in _MANY:
            words[name].append(next(given, ""))
        else:
            words[name] = "" if name in _FLAGS else next(given, "")
    for name in _REQUIRED:
        if name not in words:
            raise Failed(failed.format(f"Argument '{name}' required, but not found."))
    return words, list(given)


class _Order:
    """What is wanted, checked in the real one's order."""

    def __init__(self, words: dict[str, Any], extra: list[str]) -> None:
        self.extra = extra
        self.id = _check_id(words["id"])
        self.program = _canonicalize(words["exec-file"])
        if not self.program.is_file():
            raise Failed(f"{self.program} is not a file")
        base = _canonicalize(words.get("chroot-base-dir", "/srv/jailer"))
        if not base.is_dir():
            raise Failed(f"{base} is not a directory")
        self.root = base / self.program.name / self.id / "root"
        self.uid = _number(words["uid"], 32, "Invalid uid: {}")
        self.gid = _number(words["gid"], 32, "Invalid gid: {}")
        self.netns: str | None = words.get("netns")
        self.new_pid_ns = "new-pid-ns" in words
        self.parent = words.get("parent-cgroup", self.program.name)
        parts = self.parent.split("/")
        if self.parent.startswith("/") or ".." in parts or "." in parts:
            raise Failed("Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'")
        self.version = _number(words.get("cgroup-version", "1"), 8, "{} is an invalid cgroup version specifier")
        self.cgroups: list[str] = words["cgroup"]
        self.limits = {resource.RLIMIT_NOFILE: _OPEN_FILES}
        self.wanted_limits: list[str] = words["resource-limit"]

    def read_limits(self) -> None:
        for word in self.wanted_limits:
            name, found, value = word.partition("=")
            if not found:
                raise Failed(f"Invalid format for resources limits: {word}")
            limit = _number(value, 64, "Invalid limit value for resource: {}: invalid digit found in string")
            if name not in _LIMITS:
                raise Failed(f"Invalid resource argument: {name}")
            self.limits[_LIMITS[name]] = limit


def _check_id(name: str) -> str:
    if not 1 <= len(name) <= 64:
        raise Failed(f"Invalid instance ID: Invalid len ({len(name)});  the length must be between 1 and 64")
    for at, char in enumerate(name):
        if not (char == "-" or char.isalnum()):
            raise Failed(f"Invalid instance ID: Invalid char ({char}) at position {at}")
    return name


def _canonicalize(path: str) -> Path:
    try:
        return Path(path).resolve(strict=True)
    except OSError as error:
        raise Failed(f"Failed to canonicalize path {path}: {name_error(error)}") from None


def _number(text: str, bits: int, failed: str) -> int:
    if not re.fullmatch("[0-9]{1,20}", text) or int(text) >= 2**bits:
        raise Failed(failed.format(text))
    return int(text)


def _jail(order: _Order, faults: Faults, skip: frozenset[str]) -> NoReturn:
    _join_cgroup(order, skip)
    order.read_limits()
    program = runpy.run_path(str(order.program))["main"]
    order.root.mkdir(parents=True, exist_ok=True)
    _copy_program(order)
    if order.netns is not None and "netns" not in skip:
        _join_netns(order.netns)
    for limit, value in order.limits.items():
        resource.setrlimit(limit, (value, value))
    _make_folders(order)
    _make_devices(order)
    if order.new_pid_ns:
        leader = os.getsid(0) == os.getpid()
        kernel.leave(kernel.CLONE_NEWPID)
        child = os.fork()
        if child:
            _write_pid(order, child)
            os._exit(0)
        if leader:
            os.setsid()
    else:
        _write_pid(order, os.getpid())
    guest = open_guest(order.root / "run")
    kernel.pivot(str(order.root))
    os.setgroups([])
    if "uid" not in skip:
        os.setresgid(order.gid, order.gid, order.gid)
        os.setresuid(order.uid, order.uid, order.uid)
    program([f"/{order.program.name}", "--id", order.id, *order.extra], Jailed(guest, faults))
    raise SystemExit(1)


def _join_cgroup(order: _Order, skip: frozenset[str]) -> None:
    """With no `--cgroup` and version 2, into a parent that is there; where it is not, nowhere, without a word."""
    if order.cgroups:
        for word in order.cgroups:
            if len(word.split("=")) != 2 or word.endswith("="):
                raise Failed(f"Invalid format for cgroups: {word}")
        raise Failed("the fake makes no cgroups: give it a parent that is there")
    if order.version != 2:
        return
    mounts = [line.split(" ") for line in Path("/proc/mounts").read_text().splitlines()]
    found = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    if not found:
        raise Failed("Hierarchy not found: No hierarchy found for this cgroup version.")
    parent = found[0] / order.parent if "cgroup" not in skip else found[0]
    if parent.exists():
        try:
            (parent / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            raise Failed(f"Failed to move process to cgroup ({parent}): {name_error(error)}.") from None


def _join_netns(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failed(f"Failed to open file {path}: {name_error(error)}") from None
    try:
        kernel.enter(fd, kernel.CLONE_NEWNET)
    except OSError as error:
        raise Failed(f"Failed to join network namespace: netns: {name_error(error)}") from None
    os.close(fd)


def _copy_program(order: _Order) -> None:
    target = order.root / order.program.name
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755)
    except OSError as error:
        raise Failed(f"Failed to open {target}: {name_error(error)}") from None
    with os.fdopen(fd, "wb") as copy, order.program.open("rb") as program:
        if os.fstat(fd).st_nlink > 1:
            raise Failed(f"Detected hard link at: {target}")
        os.fchown(fd, order.uid, order.gid)
        shutil.copyfileobj(program, copy)


def _make_folders(order: _Order) -> None:
    for name in _FOLDERS:
        folder = order.root / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, order.uid, order.gid)


def _make_devices(order: _Order) -> None:
    devices = list(_DEVICES)
    minor = re.search(r"^ *([0-9]+) userfaultfd$", Path("/proc/misc").read_text(), re.MULTILINE)
    if minor is not None:
        devices.append(("/dev/userfaultfd", 10, int(minor[1])))
    for path, major, number in devices:
        node = order.root / path.lstrip("/")
        try:
            os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(major, number))
            os.chown(node, order.uid, order.gid)
        except OSError as error:
            if path == "/dev/urandom":
                sys.stdout.write("MMDS version 2 will not be available to use.\n")
                continue
            raise Failed(f"Failed to create {path} via mknod inside the jail: {name_error(error)}") from None


def _write_pid(order: _Order, pid: int) -> None:
    path = order.root / f"{order.program.name}.pid"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Failed(f"Failed to open file /{path.name}: {name_error(error)}") from None
    os.write(fd, str(pid).encode())
    os.close(fd)
