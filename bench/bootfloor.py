"""The floor of `make bench-boot`: one bare QEMU, from its start to the guest's hello, cold or from a template.

Imports nothing of nimbus, and does in plain calls what has to be done at least. It is given, as one line of JSON on
stdin, the very argv that the agent uses with the jail's paths replaced by the host's, and the bytes to say on the guest
link; it says that it is set, waits for a second line, and prints its milliseconds as JSON. It runs inside the VM's
network namespace, with the disk and the template's memory made ready by whoever starts it.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from bench.floor import HELLO, LIMIT_S, wait_frame

CONNECT_EVERY_S = 0.0005
LOOK_EVERY_S = 0.001
PREPARED = 1  # of a hello's flags, which are its fourth byte


class Monitor:
    """QEMU's monitor, as lines."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = sock.makefile("rb")
        self._lines.readline()  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, name: str, arguments: dict[str, object] | None = None, fd: int | None = None) -> Any:
        told = {"execute": name} | ({} if arguments is None else {"arguments": arguments})
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._sock.sendmsg([json.dumps(told).encode()], rights)
        while line := self._lines.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                sys.exit(f"QEMU refused {name}: {answer['error']}")
        sys.exit(f"QEMU ended during {name}")


def connect(path: str, vmm: subprocess.Popen[bytes]) -> socket.socket:
    """The VMM's socket, as soon as it listens."""
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            if vmm.poll() is not None:
                sys.exit(f"the VMM ended with {vmm.returncode} before it made {path}")
            time.sleep(CONNECT_EVERY_S)
        else:
            sock.settimeout(LIMIT_S)
            return sock


def load(monitor: Monitor, state: str) -> None:
    """The template's devices; its memory is mapped already."""
    monitor.ask("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]})
    fd = os.open(state, os.O_RDONLY)
    monitor.ask("getfd", {"fdname": "state"}, fd)
    os.close(fd)
    monitor.ask("migrate-incoming", {"uri": "fd:state"})
    while (told := monitor.ask("query-status")["status"]) == "inmigrate":
        time.sleep(LOOK_EVERY_S)
    if told not in {"paused", "prelaunch"}:
        sys.exit(f"QEMU is {told} where a template was loaded")


def bring_up(spec: dict[str, str], vmm: subprocess.Popen[bytes]) -> dict[str, float]:
    """Milliseconds of each step of a restore."""
    began = time.monotonic()
    monitor = Monitor(connect(spec["qmp"], vmm))
    answered = time.monotonic()
    load(monitor, spec["state"])
    loaded = time.monotonic()
    monitor.ask("cont")
    ran = time.monotonic()
    return {"spawn": ms(began, answered), "load": ms(answered, loaded), "run": ms(loaded, ran)}


def ms(began: float, ended: float) -> float:
    return (ended - began) * 1000


def main() -> None:
    """One boot, one hello."""
    spec = json.loads(sys.stdin.readline())
    said = bytes.fromhex(spec["frames"])
    keep = [spec["memory_fd"]] if "memory_fd" in spec else []
    console = os.open(spec["console"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    print("set", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    with subprocess.Popen(
        spec["argv"], stdin=subprocess.DEVNULL, stdout=console, stderr=console, env={}, pass_fds=keep
    ) as vmm:
        try:
            steps = bring_up(spec, vmm) if "state" in spec else {}
            ran = time.monotonic()
            with connect(spec["link"], vmm) as link:
                link.sendall(said)
                hello = wait_frame(link, bytearray(), HELLO)
                heard = time.monotonic()
        finally:
            vmm.kill()
    if not hello[3] & PREPARED:
        sys.exit("the guest said hello without its own randomness and clock")
    print(json.dumps({**steps, "guest": ms(ran, heard), "ready": ms(began, heard)}))


if __name__ == "__main__":
    main()
