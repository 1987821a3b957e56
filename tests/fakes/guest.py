"""The fake's guest: nimbus-init as a double, or one that does as native/probe, kept by a process of its own.

A chroot has no shell for a guest's commands, and a VMM without power could not stop them: so this process is started
before the VMM is jailed and keeps the host's root and power, in the VMM's cgroup, netns and pid namespace. It dies with
the VMM. The probe's count is all the memory that a snapshot takes along. Called by fake_jailer.py and
fake_firecracker.py.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tests.fakes import kernel

INIT = Path(__file__).parents[2] / "nimbus" / "rootfs" / "bin" / "nimbus-init"
_RUN, _RUN_PROBE, _PAUSE, _CONNECT = b"run", b"run probe", b"pause", b"connect"
_COUNT_BYTES = 8
_TICK_S = 1.0


class GuestLine:
    """The VMM's end: one word, one answer; and a pipe that ends when the guest does."""

    def __init__(self, sock: socket.socket, life: int, count: mmap.mmap) -> None:
        self._sock = sock
        self._count = count
        self.life = life

    @property
    def count(self) -> int:
        """How far the probe has counted."""
        return int.from_bytes(self._count[:_COUNT_BYTES], "little")

    @count.setter
    def count(self, value: int) -> None:
        self._count[:_COUNT_BYTES] = value.to_bytes(_COUNT_BYTES, "little")

    def run(self, console: int | None, *, probe: bool) -> None:
        """Start it the first time, printing there; let it go on after a pause."""
        word = _RUN_PROBE if probe else _RUN
        socket.send_fds(self._sock, [word], [] if console is None else [console])
        self._sock.recv(16)

    def pause(self) -> None:
        self._sock.send(_PAUSE)
        self._sock.recv(16)

    def end(self) -> None:
        """There is no guest, or no more: its keeper goes, and `life` ends."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def connect(self) -> socket.socket | None:
        """A stream to the guest's link; None while it does not listen."""
        self._sock.send(_CONNECT)
        _, fds, _, _ = socket.recv_fds(self._sock, 16, 1)
        return socket.socket(fileno=fds[0]) if fds else None


def open_guest(folder: Path) -> GuestLine:
    """Fork the keeper of a guest whose socket is in `folder`. Before any thread is started."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    life, lives = os.pipe2(os.O_CLOEXEC)
    count = mmap.mmap(-1, _COUNT_BYTES)  # shared with all that is forked from here on
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.fork() == 0:
        ours.close()
        os.close(life)
        try:
            _Keeper(theirs, folder_fd, GuestLine(ours, life, count)).serve()
        finally:
            os._exit(0)
    theirs.close()
    os.close(lives)
    os.close(folder_fd)
    return GuestLine(ours, life, count)


class _Keeper:
    def __init__(self, sock: socket.socket, folder_fd: int, line: GuestLine) -> None:
        self._sock = sock
        self._line = line
        self._folder = f"/proc/self/fd/{folder_fd}"
        self._init = os.open(INIT, os.O_RDONLY | os.O_CLOEXEC)
        self._folder_fd = folder_fd
        self._pid = self._pidfd = 0

    def serve(self) -> None:
        """Until the VMM hangs up or the guest ends."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        watched = False
        while True:
            if self._pidfd and not watched:
                poll.register(self._pidfd, select.POLLIN)
                watched = True
            ready = {fd for fd, _ in poll.poll()}
            if watched and self._pidfd in ready:
                return
            word, fds, _, _ = socket.recv_fds(self._sock, 16, 1)
            if not word:
                self._signal(signal.SIGKILL)
                return
            self._obey(word, fds)

    def _obey(self, word: bytes, fds: list[int]) -> None:
        given: list[int] = []
        if word in {_RUN, _RUN_PROBE}:
            self._run(fds, probe=word == _RUN_PROBE)
        elif word == _PAUSE:
            self._signal(signal.SIGSTOP)
        else:
            given = self._connect()
        socket.send_fds(self._sock, [b"done"], given)
        for fd in given:
            os.close(fd)

    def _run(self, fds: list[int], *, probe: bool) -> None:
        if self._pid:
            self._signal(signal.SIGCONT)
            return
        with suppress(FileNotFoundError):
            os.unlink("guest.sock", dir_fd=self._folder_fd)  # an earlier guest's in this folder
        self._pid = os.fork()
        if self._pid == 0:
            kernel.die_with_parent()
            os.setsid()
            for stream in (1, 2) if fds else ():
                os.dup2(fds[0], stream)
            if probe:
                self._count_on()
            os.set_inheritable(self._folder_fd, True)  # its paths are reached through it, however long they are
            os.execve(  # noqa: S606 - no shell is what this is about
                self._init, ["nimbus-init", "--host-double", f"{self._folder}/guest.sock"], {}
            )
        self._pidfd = os.pidfd_open(self._pid)
        for fd in fds:
            os.close(fd)

    def _count_on(self) -> NoReturn:
        """What native/probe does when its first word is `idle`."""
        if not self._line.count:
            os.write(1, b"nimbus-probe: up\n")
        while True:
            time.sleep(_TICK_S)
            self._line.count += 1
            os.write(1, b"nimbus-probe: tick %d\n" % self._line.count)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _connect(self) -> list[int]:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(f"{self._folder}/guest.sock")
        except OSError:
            sock.close()
            return []
        return [sock.detach()]
