"""Our own Firecracker: its command line, its API, its threads and its vsock, with a double of a guest instead of a VM.

It refuses what the real one refuses, in the same words, and does wrong what faults.json says. Started through what
install.py makes, by hand or by fake_jailer.py; then `jailed` holds what had to be opened before the jail.
"""

from __future__ import annotations

import itertools
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.fakes import kernel
from tests.fakes.faults import Faults
from tests.fakes.guest import GuestLine, open_guest
from tests.fakes.http_server import render_reply, serve
from tests.fakes.vm import MAX_METADATA_BYTES, Reply, Vm, refuse

VERSION = "1.16.1"
GUEST_PORT = 1024
PANIC, BAD_ARGUMENTS, HANGUP = 134, 153, 156
ANSWER_S = 1.0
_FLAGS = frozenset({"--no-seccomp", "--show-level", "--show-log-origin", "--boot-timer", "--enable-pci"})
_VALUES = frozenset(
    {
        "--api-sock",
        "--id",
        "--seccomp-filter",
        "--start-time-us",
        "--start-time-cpu-us",
        "--parent-cpu-time-us",
        "--log-path",
        "--level",
        "--module",
        "--metrics-path",
        "--http-api-max-payload-size",
        "--mmds-size-limit",
    }
)


@dataclass(frozen=True)
class Jailed:
    """What the jailer opened before it went to jail."""

    guest: GuestLine
    faults: Faults


class Machine:
    """The guest's vCPUs, as threads that do nothing, and its double."""

    def __init__(self, line: GuestLine, *, filtered: bool) -> None:
        self._line = line
        self._filtered = filtered
        self._console: int | None = None
        self._word = ""
        self._turn = threading.Lock()
        self._running = threading.Event()
        self._ports = itertools.count(2**30)

    def build(self, vcpus: int, line: str, console: int | None) -> None:
        """The filters come right before guest code would run, as in the real one."""
        self._console = console
        self._word = line.partition(" ")[0]  # what native/probe does with it
        _give_up_power(filtered=self._filtered)
        for index in range(vcpus):
            threading.Thread(target=_idle, args=(f"fc_vcpu {index}",), daemon=True).start()

    @property
    def count(self) -> int:
        return self._line.count

    @count.setter
    def count(self, value: int) -> None:
        self._line.count = value

    def resume(self) -> None:
        with self._turn:
            if self._word == "stop":
                self._line.end()
            else:
                self._line.run(self._console, probe=self._word == "idle")
        self._running.set()

    def pause(self) -> None:
        self._running.clear()
        with self._turn:
            self._line.pause()

    def serve_vsock(self, stream: socket.socket) -> None:
        """One connection: which port is wanted, then bytes both ways. A paused guest answers nothing."""
        with stream:
            line = b""
            while not line.endswith(b"\n") and len(line) < 32 and (byte := stream.recv(1)):
                line += byte
            if line != b"CONNECT %d\n" % GUEST_PORT:
                return
            self._running.wait()
            if _is_gone(stream):
                return
            with self._turn:
                guest = self._line.connect()
            if guest is None:
                return
            with guest:
                stream.sendall(b"OK %d\n" % next(self._ports))
                back = threading.Thread(target=_pump, args=(guest, stream), daemon=True)
                back.start()
                _pump(stream, guest)
                back.join()


def _is_gone(stream: socket.socket) -> bool:
    """Whether who asked has hung up meanwhile."""
    try:
        return stream.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            _hang_up(end)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _idle(name: str) -> None:
    kernel.name_thread(name)
    threading.Event().wait()


def _give_up_power(*, filtered: bool) -> None:
    kernel.forbid_new_privileges()
    if filtered:
        kernel.filter_nothing()


class Api:
    """Calls come in on `fc_api` and are carried out by the main thread, as in the real one."""

    def __init__(self, vm: Vm, faults: Faults) -> None:
        self._vm = vm
        self._faults = faults
        self._asked: queue.Queue[tuple[str, str, str | None]] = queue.Queue()
        self._told: queue.Queue[Reply] = queue.Queue()
        self.bell = os.eventfd(0)
        self.silent = threading.Event()  # nobody waits for an answer
        self.silent.set()
        self._half: int | None = None

    def serve(self, listener: socket.socket, *, filtered: bool) -> None:
        kernel.name_thread("fc_api")
        _give_up_power(filtered=filtered)
        try:
            serve(listener, self._answer, self._say)
        except Exception:  # noqa: BLE001 - as with a panic of the real one, nothing goes on without this thread
            traceback.print_exc()
            os._exit(PANIC)

    def carry_out(self) -> None:
        """What was asked, on the main thread."""
        os.eventfd_read(self.bell)
        self._told.put(self._vm.answer(*self._asked.get()))

    def _answer(self, method: str, path: str, body: str | None) -> Reply | None:
        self.silent.clear()
        fault = self._faults.of_call(f"{method} {path}")
        match fault.get("do"):
            case "refuse":
                return refuse(fault["text"], status=fault.get("status", 400))
            case "hang":
                threading.Event().wait()
            case "drop":
                self.silent.set()
                return None
            case "exit":
                os._exit(fault.get("code", 1))
        self._asked.put((method, path, body))
        os.eventfd_write(self.bell, 1)
        reply = self._told.get()
        match fault.get("do"):
            case "exit_after":
                os._exit(fault.get("code", 1))
            case "half":
                self._half = fault.get("code", 1)
        return reply

    def _say(self, connection: socket.socket, reply: Reply) -> None:
        data = render_reply(reply)
        if self._half is not None:
            connection.sendall(data[: len(data) // 2])
            os._exit(self._half)
        try:
            connection.sendall(data)
        finally:
            self.silent.set()
        if reply.fatal is not None:
            _log(self._vm.instance_id, f"Firecracker exiting with error. exit_code={reply.fatal}")
            os._exit(reply.fatal)


def _log(instance_id: str, text: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} [{instance_id}:main] {text}\n")
    sys.stdout.flush()


def _parse(argv: Sequence[str]) -> dict[str, str]:
    found = {"--api-sock": "/run/firecracker.socket", "--id": "anonymous-instance"}
    words = iter(argv)
    for word in words:
        if word in _FLAGS:
            found[word] = ""
        elif word in _VALUES:
            found[word] = next(words, "")
        else:
            sys.stderr.write(f"Arguments parsing error: Found argument '{word.lstrip('-')}' which wasn't expected\n")
            raise SystemExit(BAD_ARGUMENTS)
    return found


def main(argv: Sequence[str], folder: str | None = None, jailed: Jailed | None = None) -> NoReturn:
    """Run as `argv` says, until the guest ends or something kills us."""
    if "--version" in argv:
        sys.stdout.write(f"Firecracker v{Faults(folder).read().get('version', VERSION)}\n\n")
        raise SystemExit(0)
    words = _parse(argv[1:])
    faults = jailed.faults if jailed is not None else Faults(folder)
    line = jailed.guest if jailed is not None else open_guest(Path(words["--api-sock"]).absolute().parent)
    told = faults.read()
    filtered = "--no-seccomp" not in words and "seccomp" not in told.get("jailer", {}).get("skip", ())
    kernel.name_thread(Path(argv[0]).name)
    signal.signal(signal.SIGHUP, lambda *_: os._exit(HANGUP))
    _log(words["--id"], f"Running Firecracker v{VERSION}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(words["--api-sock"])
    except OSError as error:
        _log(words["--id"], f"RunWithApiError error: Failed to open the API socket: {error.strerror}")
        raise SystemExit(1) from None
    machine = Machine(line, filtered=filtered)
    vm = Vm(words["--id"], told.get("version", VERSION), machine)
    vm.metadata_limit = int(words.get("--mmds-size-limit", MAX_METADATA_BYTES))
    api = Api(vm, faults)
    listener.listen()
    threading.Thread(target=lambda: api.serve(listener, filtered=filtered), daemon=True).start()
    _run(vm, api, machine, line)


def _run(vm: Vm, api: Api, machine: Machine, line: GuestLine) -> NoReturn:
    while True:
        vsock = vm.devices.listener
        watched = [api.bell, line.life] + ([vsock] if vsock is not None and vm.state != "Not started" else [])
        ready, _, _ = select.select(watched, [], [])
        if line.life in ready:
            api.silent.wait(ANSWER_S)  # who started the guest hears that it was started
            _log(vm.instance_id, "Firecracker exiting successfully. exit_code=0")
            os._exit(0)
        if api.bell in ready:
            api.carry_out()
        elif vsock is not None and vsock in ready:
            stream, _ = vsock.accept()
            threading.Thread(target=machine.serve_vsock, args=(stream,), daemon=True).start()
