"""Throw-away kernel objects by which a host shows what it can do: made, looked at, and removed again.

Names begin with `nbprobe-` and end with the maker's pid, so no agent takes one for a VM's, and the next probe removes
those of a maker that was killed. Touches no VM. Called by host_agent/doctor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nimbus.host import cgroup, link, netns
from nimbus.model.errors import HostFault
from nimbus.model.ids import check_ifname

PREFIX = "nbprobe-"
KILL_LIMIT_S = 5.0  # from cgroup.kill to the child's end
_FICLONE = 0x40049409  # of include/uapi/linux/fs.h
_PEER = "probe0"
_NOBODY = 65534
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Signals that would end this process wait until the block has removed what it made."""
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def probe_name(pid: int | None = None) -> str:
    """This process' name for its probes; six hex digits hold any pid of Linux."""
    return check_ifname(f"{PREFIX}{os.getpid() if pid is None else pid:x}")


def sweep_probes() -> tuple[str, ...]:
    """Remove the probes of makers that live no more; returns their names."""
    found = {*netns.list_netns(PREFIX), *link.list_links(PREFIX), *cgroup.list_cgroups(PREFIX)}
    stale = tuple(sorted(name for name in found if not _has_maker(name)))
    for name in stale:
        _remove_network(name)
        _remove_cgroup(cgroup.cgroup_mount() / cgroup.PARENT / name)
    return stale


def _has_maker(name: str) -> bool:
    try:
        return Path("/proc", str(int(name.removeprefix(PREFIX), 16))).exists()
    except ValueError:
        return True  # not named by us: not ours to remove


@contextmanager
def open_network() -> Iterator[Path]:
    """A network namespace with a veth to the host and a tap in it; the namespace's path."""
    name = probe_name()
    try:
        path = netns.ensure_netns(name)
        with netns.open_netns(name) as fd:
            with link.open_netlink() as route, link.open_netlink(fd) as inside:
                link.ensure_veth(route, name, inside, _PEER, fd)
            link.ensure_tap(fd, "tap0", uid=_NOBODY, gid=_NOBODY)
        yield path
    finally:
        _remove_network(name)


def _remove_network(name: str) -> None:
    with link.open_netlink() as route:
        link.remove_link(route, name)
    netns.remove_netns(name)


@contextmanager
def open_cgroup() -> Iterator[Path]:
    """A cgroup where a VM's would be. The folder above it goes too, where it came with this one."""
    parent = cgroup.cgroup_mount() / cgroup.PARENT
    folder = parent / probe_name()
    was_there = parent.exists()
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostFault(f"cgroup {folder} could not be made ({error.strerror})") from error
        yield folder
    finally:
        _remove_cgroup(folder)
        if not was_there:
            with suppress(OSError):  # somebody's VM is in it by now
                parent.rmdir()


def _remove_cgroup(folder: Path) -> None:
    with suppress(FileNotFoundError):
        folder.rmdir()


def is_offered(controller: str) -> bool:
    """Whether cgroup v2 has this controller on this host at all."""
    return controller in (cgroup.cgroup_mount() / "cgroup.controllers").read_text().split()


def try_controller(controller: str, folder: Path) -> None:
    """Hand a controller down to `folder`, and take it back where it was not there. OSError where the kernel refuses."""
    given: list[Path] = []
    try:
        for level in (cgroup.cgroup_mount(), folder.parent):
            knob = level / "cgroup.subtree_control"
            if controller not in knob.read_text().split():
                knob.write_text(f"+{controller}")
                given.append(knob)
    finally:
        for knob in reversed(given):
            with suppress(OSError):  # a VM uses it by now
                knob.write_text(f"-{controller}")


def kill_in(folder: Path) -> None:
    """Start a process, put it into the cgroup and end it by `cgroup.kill`. HostFault where that does not work."""
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL) as child:
        try:
            (folder / "cgroup.procs").write_text(str(child.pid))
            (folder / "cgroup.kill").write_text("1")
            child.wait(KILL_LIMIT_S)
        except OSError as error:
            raise HostFault(f"cgroup.kill cannot be used ({error.strerror})") from error
        except subprocess.TimeoutExpired as error:
            raise HostFault(f"a process lived on {KILL_LIMIT_S:g} s after cgroup.kill") from error
        finally:
            child.kill()


def can_reflink(folder: Path) -> bool:
    """Whether files in `folder` can share their blocks, tried on two files without names."""
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
        source.write(b"\0" * 65536)
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS}:
                return False
            raise
    return True
