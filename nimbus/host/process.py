"""Processes by identity: a pid alone may name another process a moment later.

Reads /proc only; starts and kills nothing. Called by the agent for keepers and VMMs, and by reapers.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from pathlib import Path

from nimbus.host import native
from nimbus.model.record import ProcessId

_PROC = Path("/proc")


def boot_id() -> str:
    """Changes with every boot of the host: pids and CLOCK_BOOTTIME of another boot mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _read_stat(pid: int) -> tuple[str, int]:
    """(state letter, start ticks); ProcessLookupError where there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    return fields[0].decode(), int(fields[19])


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat."""
    return _read_stat(pid)[1]


def identify(pid: int) -> ProcessId:
    """Who has this pid now; ProcessLookupError where nobody has."""
    return ProcessId(pid, start_ticks(pid), boot_id())


def is_alive(process: ProcessId) -> bool:
    """Whether that very process runs; a zombie does not."""
    if process.boot_id != boot_id():
        return False
    try:
        state, ticks = _read_stat(process.pid)
    except ProcessLookupError:
        return False
    return ticks == process.start_ticks and state not in "ZXx"


def open_pidfd(process: ProcessId) -> int:
    """A descriptor of that very process; ProcessLookupError where it has gone. The descriptor is the caller's."""
    pidfd = native.pidfd_open(process.pid)
    try:
        if not is_alive(process):  # asked after the descriptor holds the pid, so nobody can slip in between
            raise ProcessLookupError(f"process {process.pid} is not the one that was meant, or it is dead")
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd


def wait_ended(pidfd: int, limit_s: float) -> bool:
    """Wait until the process is dead, whether its parent has reaped it or not. False when `limit_s` passed first."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(limit_s * 1000))


def pid_behind(pidfd: int) -> int | None:
    """The pid, as this /proc numbers it, of the process behind a descriptor; None once it is reaped."""
    for line in (_PROC / "self/fdinfo" / str(pidfd)).read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            pid = int(value)
            return pid if pid > 0 else None
    raise OSError(f"descriptor {pidfd} names no process")


def find_threads(pid: int, inner: tuple[int, ...]) -> tuple[int, ...]:
    """This host's numbers of threads that the process's own pid namespace numbers `inner`, in the same order.

    Raises ProcessLookupError where one of them, or the process, has ended.
    """
    found: dict[int, int] = {}
    try:
        for name in os.listdir(_PROC / str(pid) / "task"):
            with suppress(FileNotFoundError, ProcessLookupError):  # another one that has ended: none of ours
                status = (_PROC / str(pid) / "task" / name / "status").read_text()
                words = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                found[int(words.split()[-1])] = int(name)
        return tuple(found[thread] for thread in inner)
    except (FileNotFoundError, KeyError) as error:
        raise ProcessLookupError(f"a thread of process {pid} has ended") from error


def started_at(process: ProcessId) -> float:
    """Unix seconds of its start, for people: the kernel keeps it in ticks since the boot."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
