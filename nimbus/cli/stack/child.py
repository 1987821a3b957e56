"""One process of the stack, from its start to its last descendant. Decides nothing about restarts.

A child dies when the supervisor does, even by SIGKILL: setpriv(1) asks the kernel for a parent-death signal. That
signal belongs to the *thread* that made the child, so children are started on the main thread, not in a worker
thread of Trio, which would end after ten idle seconds and take the child along. Called by supervisor.py.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from nimbus.cli.stack.service import Service
from nimbus.host.process import identify, is_alive, open_pidfd
from nimbus.model.errors import HostFault
from nimbus.model.record import ProcessId

LOG_BYTES_MAX = 16 * 1024 * 1024  # a longer log is moved aside (one generation) when its service starts
TAIL_LINES = 20
LEFTOVER_S = 10.0  # for what an earlier supervisor left, to end by itself
REAP_S = 10.0  # for the kernel to end a process after SIGKILL


class Child:
    """A started process and the descriptor that tells of its end."""

    def __init__(self, service: Service, popen: subprocess.Popen[bytes], mark: Path) -> None:
        self.service = service
        self.pid = popen.pid
        self._popen = popen
        self._mark = mark
        self._pidfd = os.pidfd_open(popen.pid)

    async def wait(self) -> int:
        """Its status (negative: the signal); what it left in its process group is killed first."""
        while self._popen.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self._collect()
        return self._popen.returncode

    def _collect(self) -> None:
        # The zombie still holds its number, so this group cannot be anybody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._mark.unlink(missing_ok=True)

    async def stop(self) -> None:
        """Ask, wait `stop_s`, kill. Call it in a shielded scope: it must not leave the process behind."""
        if self._popen.returncode is None:
            self._popen.send_signal(self.service.stop_signal)
            with trio.move_on_after(self.service.stop_s):
                await self.wait()
        if self._popen.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.wait()
        os.close(self._pidfd)


@asynccontextmanager
async def open_child(service: Service, state: Path) -> AsyncIterator[Child]:
    """The running process; stopped when the block ends, however it ends."""
    child = _spawn(service, state)
    try:
        yield child
    finally:
        with trio.move_on_after(service.stop_s + REAP_S, shield=True):
            await child.stop()


def log_file(state: Path, name: str) -> Path:
    return state / "logs" / f"{name}.log"


def log_tail(state: Path, name: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a service's log, for a person who asks why it died."""
    try:
        with log_file(state, name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 16 * 1024))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def sweep_leftovers(state: Path) -> list[str]:
    """Stop what an earlier supervisor of this state folder left running; the names of what was found alive.

    Blocking. The parent-death signal leaves little for this: a server that is still shutting down, or a child
    whose parent was killed before setpriv had asked for the signal. A process is told by pid, start and boot.
    """
    found = []
    for mark in sorted((state / "pids").glob("*")):
        identity, stop_signal = _parse_mark(mark)
        if identity is not None and is_alive(identity):
            found.append(mark.name)
            _end_group(identity, stop_signal)
        mark.unlink(missing_ok=True)
    return found


def _end_group(identity: ProcessId, stop_signal: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = open_pidfd(identity)
        try:
            signal.pidfd_send_signal(pidfd, stop_signal)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if not ended.poll(LEFTOVER_S * 1000):
                os.killpg(identity.pid, signal.SIGKILL)
                ended.poll(REAP_S * 1000)
        finally:
            os.close(pidfd)


def _parse_mark(mark: Path) -> tuple[ProcessId | None, int]:
    words = mark.read_text().split()
    if len(words) != 4 or not all(word.isdecimal() for word in (words[0], words[1], words[3])):
        return None, 0
    return ProcessId(int(words[0]), int(words[1]), words[2]), int(words[3])


def _spawn(service: Service, state: Path) -> Child:
    log = _open_log(log_file(state, service.name))
    stdin = _stdin_of(service.stdin)
    try:
        popen = subprocess.Popen(  # microseconds of vfork; see the module's first lines for why not in a thread
            [*_leash(service), *service.argv],
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd=service.cwd,
            env=dict(service.env),
            pass_fds=service.keep_fds,
            start_new_session=True,  # Ctrl-C on the terminal is ours to translate, in the right order
        )
    except OSError as error:
        raise HostFault(f"{service.name} cannot be started: {error}") from error
    finally:
        os.close(log)
        os.close(stdin)
    mark = state / "pids" / service.name
    mark.parent.mkdir(exist_ok=True)
    identity = identify(popen.pid)
    mark.write_text(f"{identity.pid} {identity.start_ticks} {identity.boot_id} {int(service.stop_signal)}\n")
    return Child(service, popen, mark)


def _leash(service: Service) -> list[str]:
    # Servers that keep data are asked to shut down in order; everything else has nothing to lose.
    word = "INT" if service.stop_signal is signal.SIGINT and service.account is not None else "KILL"
    leash = ["setpriv", "--pdeathsig", word]
    if service.account is not None:
        leash += ["--reuid", str(service.account.uid), "--regid", str(service.account.gid), "--clear-groups"]
    return [*leash, "--"]


def _open_log(path: Path) -> int:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _stdin_of(content: bytes) -> int:
    return memory_file(content) if content else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def memory_file(content: bytes) -> int:
    """A descriptor to read this from: a way for secrets that neither argv nor a disk shows. The caller closes it."""
    fd = os.memfd_create("nimbus")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
