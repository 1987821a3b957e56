"""What is said to and by `nimbus-keeper`: its command line, its one line when ready, messages, and exit.json.

Bytes and values only: starts nothing, opens nothing. Called by host_agent/keeper.py; the other side is
native/host/keeper. Whatever comes from there is checked, so a half-written file is a named error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nimbus.model.errors import Fenced, HostFault, Refused

VERSION = 2
READABLE = frozenset({1, 2})  # keepers outlive the agent that started them, and its version
SOCKET_NAME = "keeper.sock"
EXIT_NAME = "exit.json"
CONSOLE_NAME = "console.tail"
RING_BYTES = 64 * 1024
REPLY_MAX_BYTES = 64 * 1024  # the longest is a console packet: 32 KiB and its head
RLIMITS = frozenset({"as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "stack"})
_REASON = re.compile(r"[a-z0-9_-]{1,32}")
_CONSOLE_HEAD = re.compile(rb"DATA ([0-9]{1,19}) ([0-9]{1,19})\n")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

ExitKind = Literal["exited", "signaled", "vanished"]


class KeeperFailed(HostFault):
    """The keeper did not start its VMM. `step` and `errno` say where and why."""

    def __init__(self, message: str, step: str = "", errno: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.errno = errno


@dataclass(frozen=True)
class Bind:
    """One file or folder of the host that the VMM sees. A writable source's last component is never followed."""

    source: str
    target: str
    writable: bool = False

    def __post_init__(self) -> None:
        for path in (self.source, self.target):
            _check_path(path)
            if ":" in path:
                raise Refused(f"{path!r} cannot be bound: the keeper separates paths by colons")


@dataclass(frozen=True)
class Jail:
    """The VMM's own root. `folder` is an empty one on the host; nothing is left in it afterwards."""

    folder: str
    binds: tuple[Bind, ...] = ()
    devices: tuple[str, ...] = ()  # names below /dev: each becomes a node of the VMM's uid, mode 0600
    proc: bool = False  # a /proc of the VMM's own processes, so that it can name a descriptor that it inherited

    def __post_init__(self) -> None:
        _check_path(self.folder)
        for name in self.devices:
            if not _DEVICE.fullmatch(name):
                raise Refused(f"{name!r} is no name of a device below /dev")


@dataclass(frozen=True)
class KeeperSpec:
    """One VMM and the bounds that its keeper sets. Without a jail its working folder is `folder`, else /.

    With a `pid_file` argv is a jailer's: it runs as root in the host's netns, must end with status 0, and the VMM is
    the process whose pid, in the keeper's own numbering, it has left there.
    """

    folder: str  # the VM's folder: keeper.sock, exit.json, console.tail
    cgroup: str  # the VM's cgroup, holding `keeper` and `vmm`
    uid: int
    gid: int
    argv: tuple[str, ...]
    deadline_ns: int | None  # CLOCK_BOOTTIME; None: no limit, then an orphan_fd should hold it
    netns: str | None = None
    jail: Jail | None = None
    rlimits: Mapping[str, int | None] = field(default_factory=dict)  # None: no limit
    keep_fds: tuple[int, ...] = ()  # the VMM inherits them under the same numbers
    pid_file: str | None = None

    def __post_init__(self) -> None:
        for path in (self.folder, self.cgroup, self.netns, self.pid_file):
            if path is not None:
                _check_path(path)
        if self.pid_file is not None and (self.uid != 0 or self.netns is not None or self.jail is not None):
            raise Refused("a jailer runs as root and outside: the jail and the netns are its own affair")
        if not self.argv:
            raise Refused("a VMM needs a command line")
        _check_path(self.argv[0])
        if any("\0" in word for word in self.argv):
            raise Refused("a NUL byte cannot be part of a VMM's command line")
        for name in self.rlimits:
            if name not in RLIMITS:
                raise Refused(f"{name!r} is no resource limit: {', '.join(sorted(RLIMITS))} are")


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise Refused(f"{path!r} is no absolute path without ..")


def render_argv(spec: KeeperSpec, *, keeper: str, ready_fd: int, orphan_fd: int | None = None) -> tuple[str, ...]:
    """The command line that starts this keeper."""
    words = [keeper, "--ready-fd", str(ready_fd), "--dir", spec.folder, "--cgroup", spec.cgroup]
    words += ["--uid", str(spec.uid), "--gid", str(spec.gid), "--deadline", _deadline(spec.deadline_ns)]
    if orphan_fd is not None:
        words += ["--orphan-fd", str(orphan_fd)]
    if spec.netns is not None:
        words += ["--netns", spec.netns]
    if spec.jail is not None:
        words += ["--jail", spec.jail.folder]
        for bind in spec.jail.binds:
            words += ["--bind", f"{bind.source}:{bind.target}:{'rw' if bind.writable else 'ro'}"]
        for device in spec.jail.devices:
            words += ["--dev", device]
        if spec.jail.proc:
            words += ["--proc"]
    if spec.pid_file is not None:
        words += ["--pid-file", spec.pid_file]
    for name, value in spec.rlimits.items():
        words += ["--rlimit", f"{name}={'max' if value is None else value}"]
    for fd in spec.keep_fds:
        words += ["--keep-fd", str(fd)]
    return (*words, "--", *spec.argv)


def _deadline(deadline_ns: int | None) -> str:
    return "none" if deadline_ns is None else str(deadline_ns)


@dataclass(frozen=True)
class Started:
    """The keeper's word that the VMM was executed. Both pids are the host's."""

    pid: int
    vmm_pid: int
    degraded: tuple[str, ...] = ()


def parse_ready(line: bytes, exit_status: int) -> Started:
    """Started, or Fenced where the deadline had passed, or KeeperFailed with the step that failed."""
    if not line:
        raise KeeperFailed(f"nimbus-keeper ended with status {exit_status} and said nothing", "start")
    said = _parse_object(line, "the keeper's ready line")
    match said:
        case {"pid": int(pid), "vmm_pid": int(vmm_pid), "degraded": list(names)}:
            return Started(pid, vmm_pid, tuple(str(name) for name in names))
        case {"step": "deadline"}:
            raise Fenced("the lease's deadline had passed before the VMM could start")
        case {"error": str(error), "step": str(step), "errno": int(errno)}:
            raise KeeperFailed(f"nimbus-keeper could not start the VMM: {error}", step, errno)
    raise KeeperFailed("nimbus-keeper's ready line is not one that this version knows", "start")


def _parse_object(text: bytes, what: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # bad JSON and bad UTF-8 alike
        raise HostFault(f"{what} is not JSON") from None


def render_deadline(deadline_ns: int | None) -> bytes:
    return f"DEADLINE {_deadline(deadline_ns)}".encode()


def render_lease(deadline_ns: int) -> bytes:
    return f"LEASE {deadline_ns}".encode()


def render_kill(reason: str) -> bytes:
    if not _REASON.fullmatch(reason):
        raise Refused(f"{reason!r} is no reason: 1 to 32 of a-z, 0-9, - and _ are")
    return f"KILL {reason}".encode()


def render_console(offset: int) -> bytes:
    return f"CONSOLE {max(offset, 0)}".encode()


def parse_ok(reply: bytes) -> None:
    """Nothing for OK; Fenced for a deadline that has passed; HostFault for any other answer."""
    if reply == b"OK":
        return
    if reply == b"ERR past":
        raise Fenced("the keeper's deadline has passed or its VMM is being killed: it moves no more")
    raise HostFault(f"nimbus-keeper answered {reply[:64]!r}")


@dataclass(frozen=True)
class KeeperStatus:
    """How a VMM stands with its keeper."""

    phase: str  # starting, running
    vmm_pid: int
    deadline_ns: int | None
    console_total: int
    killing: str | None


def parse_status(reply: bytes) -> KeeperStatus:
    match _parse_object(reply, "the keeper's status"):
        case {
            "phase": str(phase),
            "vmm_pid": int(vmm_pid),
            "deadline_ns": int() | None as deadline_ns,
            "console_total": int(total),
            "killing": str() | None as killing,
        }:
            return KeeperStatus(phase, vmm_pid, deadline_ns, total, killing)
    raise HostFault("the keeper's status is not one that this version knows")


class ConsoleChunk(NamedTuple):
    """Bytes of the console from `start` on; later than asked for where the ring has rolled over."""

    start: int
    total: int  # what the VMM has printed so far
    data: bytes


def parse_console(reply: bytes) -> ConsoleChunk:
    head = _CONSOLE_HEAD.match(reply)
    if head is None:
        raise HostFault(f"nimbus-keeper answered {reply[:64]!r} to a question for the console")
    return ConsoleChunk(int(head[1]), int(head[2]), reply[head.end() :])


@dataclass(frozen=True)
class VmmExit:
    """How a VMM ended. `vanished`: its keeper left no word (SIGKILL, or the host went down)."""

    kind: ExitKind
    code: int | None = None  # exit status, or the signal's number
    reason: str = ""  # exit: by itself; deadline, orphan, kill: by its keeper
    detail: str = ""  # the reason that came with a kill
    ended_ns: int | None = None  # CLOCK_BOOTTIME
    console_total: int = 0


VANISHED = VmmExit("vanished")


def parse_exit(text: bytes | None) -> VmmExit:
    """exit.json as a value. Absent, half-written or strange: vanished, because nobody can say more."""
    try:
        said = json.loads(text or b"")
    except ValueError:
        return VANISHED
    match said:
        case {
            "version": int(version),
            "kind": "exited" | "signaled" as kind,
            "code": int(code),
            "reason": str(reason),
            "detail": str(detail),
            "ended_ns": int(ended_ns),
            "console_total": int(total),
        } if version in READABLE:
            return VmmExit(kind, code, reason, detail, ended_ns, total)
    return VANISHED
