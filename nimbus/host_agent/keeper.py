"""The agent's end of a keeper: start one, find one again, move its deadline, read its console, wait for its end.

Holds no VM state: the keeper and its files do. Every question is a connection of its own, so one that is
cancelled half-way leaves nothing behind that the next could mistake for its answer. Called by vmm/ and lifecycle.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import trio

from nimbus.host import native, process
from nimbus.model.errors import Conflict, HostFault, Unavailable
from nimbus.model.record import ProcessId
from nimbus.wire import keeper as wire
from nimbus.wire.keeper import ConsoleChunk, KeeperSpec, KeeperStatus, Started, VmmExit

KEEPER_BINARY = Path(__file__).resolve().parent.parent / "host" / "bin" / "nimbus-keeper"
ANSWER_LIMIT_S = 15.0  # it answers at once; a stopped one never does, and must not hold a machine for ever
GONE_LIMIT_S = 3.0  # between closing its socket and its end a keeper waits at most 2 s for stragglers to die
SEE_OFF_LIMIT_S = 2.0  # the outer process ends once we have heard it, or was killed


class KeeperGone(Conflict):
    """The keeper has ended, and its VMM with it: `wait_exit` tells how."""


class Keeper:
    """One living (or just ended) keeper. Made by `spawn_keeper` and `connect_keeper`; close it after use."""

    def __init__(self, identity: ProcessId, pidfd: int, folder_fd: int, degraded: tuple[str, ...] = ()) -> None:
        self.identity = identity
        self.degraded = degraded
        self._pidfd = pidfd
        self._folder_fd = folder_fd

    async def __aenter__(self) -> Keeper:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    async def aclose(self) -> None:
        """Lets go of the descriptors; keeper and VMM live on."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        for fd in (self._pidfd, self._folder_fd):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._folder_fd = -1

    async def set_deadline(self, deadline_ns: int | None) -> None:
        """Fenced where the old or the new one has passed; None takes the limit away."""
        wire.parse_ok(await self._ask(wire.render_deadline(deadline_ns)))

    async def lease(self, deadline_ns: int) -> None:
        """Sets the deadline and lets go of the orphan pipe in one act; Fenced where either has passed."""
        wire.parse_ok(await self._ask(wire.render_lease(deadline_ns)))

    async def kill(self, reason: str) -> None:
        """Kills the VMM and all in its cgroup, now; a keeper that is gone is success. `wait_exit` sees the end.

        A keeper that lives and refuses to talk is killed itself: its VMM dies with it, and the end is `vanished`.
        """
        try:
            wire.parse_ok(await self._ask(wire.render_kill(reason)))
        except KeeperGone:
            return
        except Unavailable:
            with suppress(ProcessLookupError):
                native.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def status(self) -> KeeperStatus:
        return wire.parse_status(await self._ask(b"STATUS"))

    async def version(self) -> int:
        return int(await self._ask(b"VERSION"))

    async def console(self, offset: int) -> ConsoleChunk:
        """At most 32 KiB from `offset` on; after the end, `console.tail` in the VM's folder holds the same."""
        return wire.parse_console(await self._ask(wire.render_console(offset)))

    async def vmm_pidfd(self) -> int:
        """A descriptor of the VMM; the caller's to close."""
        with await self._connect() as sock:
            try:
                await sock.send(b"PIDFD")
                reply, ancillary, _, _ = await sock.recvmsg(
                    wire.REPLY_MAX_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise await self._failed(error) from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return array.array("i", data)[0]
        wire.parse_ok(reply)
        raise HostFault("nimbus-keeper sent no descriptor of its VMM")

    async def vmm_identity(self) -> ProcessId:
        """Who the VMM is, for pinning and for the record; KeeperGone where it has just ended."""
        pidfd = await self.vmm_pidfd()
        try:
            pid = process.pid_behind(pidfd)
            if pid is None:
                raise KeeperGone("the VMM has ended")
            return process.identify(pid)
        except ProcessLookupError as error:
            raise KeeperGone("the VMM has ended") from error
        finally:
            os.close(pidfd)

    async def wait_exit(self) -> VmmExit:
        """Waits until the keeper is gone, then tells how its VMM ended. May be called by several tasks."""
        await self._wait_gone()
        return await read_exit(Path(f"/proc/self/fd/{self._folder_fd}"))

    async def _wait_gone(self) -> None:
        own = os.dup(self._pidfd)  # Trio lets one task wait on a descriptor
        try:
            await trio.lowlevel.wait_readable(own)
        finally:
            os.close(own)

    async def _ask(self, message: bytes) -> bytes:
        with trio.move_on_after(ANSWER_LIMIT_S):
            with await self._connect() as sock:
                try:
                    await sock.send(message)
                    reply = await sock.recv(wire.REPLY_MAX_BYTES)
                except OSError as error:
                    raise await self._failed(error) from error
            if not reply:
                raise await self._failed(None)
            return reply
        raise Unavailable(f"keeper {self.identity.pid} gives no answer: is it stopped?")

    async def _connect(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # through the folder's descriptor: the path itself may be longer than the 107 bytes of a socket address
            await sock.connect(f"/proc/self/fd/{self._folder_fd}/{wire.SOCKET_NAME}")
        except OSError as error:
            sock.close()
            raise await self._failed(error) from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def _failed(self, error: OSError | None) -> KeeperGone | Unavailable:
        """Gone or only silent: the process decides, for a socket error alone can mean either."""
        with trio.move_on_after(GONE_LIMIT_S):
            await self._wait_gone()
            return KeeperGone(f"keeper {self.identity.pid} has ended, and its VM with it")
        said = "end of file" if error is None else error.strerror
        return Unavailable(f"keeper {self.identity.pid} lives and does not answer: {said}", retry_after_s=1.0)


async def spawn_keeper(spec: KeeperSpec, *, orphan_fd: int | None = None) -> Keeper:
    """Starts the VMM under a new keeper and returns once it was executed.

    Fenced where the deadline has passed, KeeperFailed where a step failed; then nothing is left running.
    `orphan_fd` and `spec.keep_fds` stay the caller's to close. Cancelled: the keeper finds that nobody
    listens and kills its VMM.
    """
    if not KEEPER_BINARY.exists():
        raise HostFault(f"{KEEPER_BINARY} is not built: run `make build`")
    folder_fd = _open_folder(spec.folder)
    try:
        started, identity, pidfd = await _start(spec, orphan_fd)
    except BaseException:
        os.close(folder_fd)
        raise
    return Keeper(identity, pidfd, folder_fd, started.degraded)


def _open_folder(path: str | Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostFault(f"the VM's folder {path} cannot be opened: {error.strerror}") from error


async def _start(spec: KeeperSpec, orphan_fd: int | None) -> tuple[Started, ProcessId, int]:
    """Runs the short-lived outer process and takes hold of the keeper that it leaves."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    ready = trio.lowlevel.FdStream(read_fd)
    outer = heard = None
    try:
        try:
            outer = await _open_outer(spec, write_fd, orphan_fd)
        finally:
            os.close(write_fd)
        line = await _read_line(ready)
        started = wire.parse_ready(line, 0 if line else await outer.wait())
        # From here on no checkpoint that a cancellation could reach, or the keeper would be lost again. The outer
        # process lives until our end of the pipe is closed; until then even an ended keeper keeps its pid (a zombie).
        heard = (started, process.identify(started.pid), native.pidfd_open(started.pid))
        return heard
    finally:
        if outer is not None and heard is None:
            outer.kill()  # before the pipe is closed: so the keeper learns that nobody knows of it
        with trio.move_on_after(SEE_OFF_LIMIT_S, shield=True):
            await ready.aclose()
            if outer is not None:
                await outer.wait()


async def _open_outer(spec: KeeperSpec, ready_fd: int, orphan_fd: int | None) -> trio.Process:
    argv = wire.render_argv(spec, keeper=str(KEEPER_BINARY), ready_fd=ready_fd, orphan_fd=orphan_fd)
    return await trio.lowlevel.open_process(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(ready_fd, *spec.keep_fds, *([] if orphan_fd is None else [orphan_fd])),
        env={},
        cwd="/",
        process_group=0,  # a Ctrl-C at the terminal is for us to hear, not for it
    )


async def _read_line(stream: trio.lowlevel.FdStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = await stream.receive_some()
        if not chunk:
            break
        line += chunk
    return line


async def connect_keeper(vm_folder: str | Path, identity: ProcessId) -> Keeper:
    """Finds a keeper again after a restart. KeeperGone where it has ended: `read_exit` tells how its VMM did."""
    try:
        pidfd = process.open_pidfd(identity)
    except ProcessLookupError as error:
        raise KeeperGone(str(error)) from error
    try:
        folder_fd = _open_folder(vm_folder)
    except BaseException:
        os.close(pidfd)
        raise
    keeper = Keeper(identity, pidfd, folder_fd)
    try:
        version = await keeper.version()
        if version not in wire.READABLE:
            known = ", ".join(str(readable) for readable in sorted(wire.READABLE))
            raise HostFault(f"keeper {identity.pid} speaks version {version}, this agent {known}")
    except BaseException:
        await keeper.aclose()
        raise
    return keeper


async def read_exit(vm_folder: str | Path) -> VmmExit:
    """What the keeper of this folder left; `vanished` where it left nothing."""
    try:
        return wire.parse_exit(await trio.Path(vm_folder, wire.EXIT_NAME).read_bytes())
    except OSError:
        return wire.VANISHED
