"""Plays a story to a Firecracker, real or fake, and tells what was answered. Needs root: a netns with two taps.

Called by record_refusals.py and by tests/contract/test_firecracker_api.py.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from tests.fakes.stories import Ask, Change, Fresh, Story, WaitExit

LIMIT_S = 60.0
ID = "story-1"
PROBE = Path(__file__).parents[2] / "nimbus" / "host" / "bin" / "nimbus-probe.elf"
SOCKETS = ("api.sock", "v.sock", "other.sock")
# Starts what follows in a netns of its own with two taps, which end with it; as root, but with no power over networks,
# since a jailed VMM has none either: with it, a tap that is not there is simply made.
LAUNCH = """
import fcntl, os, struct, sys
os.setgroups([])
libc = __import__("ctypes").CDLL(None, use_errno=True)
if libc.unshare(0x40000000):
    raise OSError("cannot unshare the netns")
for name in (b"tap0", b"tap1"):
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name, 0x5002))
    fcntl.ioctl(tap, 0x400454CB, 1)
    fcntl.ioctl(tap, 0x400454CC, 0)
if libc.prctl(24, 12, 0, 0, 0):
    raise OSError("cannot give up CAP_NET_ADMIN")
os.execv(sys.argv[1], sys.argv[1:])
"""

Told = dict[str, object]


@dataclass
class Scene:
    """One folder and the VMM that lives in it now."""

    argv: tuple[str, ...]
    root: Path
    process: subprocess.Popen[bytes] | None = None
    told: list[Told] = field(default_factory=list)

    def start(self, *words: str) -> None:
        for name in SOCKETS:
            (self.root / name).unlink(missing_ok=True)
        command = [
            sys.executable,
            "-c",
            LAUNCH,
            *self.argv,
            "--api-sock",
            str(self.root / "api.sock"),
            "--id",
            ID,
            *words,
        ]
        with (self.root / "console").open("ab") as console:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, cwd=self.root, start_new_session=True
            )
        deadline = time.monotonic() + LIMIT_S
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self.argv[-1]} did not start: {(self.root / 'console').read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self.root / "api.sock"))
            except OSError:
                return False
            return True

    def end(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(LIMIT_S)
            self.process = None

    def wait_exit(self) -> int:
        assert self.process is not None
        return self.process.wait(LIMIT_S)


class _UnixHttp(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(self._path)


@contextmanager
def open_scene(argv: Sequence[str], root: Path) -> Iterator[Scene]:
    """A folder as the stories want it, with a VMM in it; killed in the end."""
    shutil.copy(PROBE, root / "kernel")
    (root / "text").write_text("This is no kernel, no disk and no snapshot of any machine.\n" * 20)
    (root / "disk").write_bytes(bytes(1 << 20))
    (root / "log").touch()
    scene = Scene(tuple(argv), root)
    try:
        scene.start()
        yield scene
    finally:
        scene.end()


def play(scene: Scene, story: Story) -> list[Told]:
    """What each call was answered with, and how the VMM ended where the story waits for that."""
    told: list[Told] = []
    for step in story:
        match step:
            case Ask():
                told.append(ask(scene.root, step))
            case Fresh():
                scene.end()
                scene.start(*step.words)
            case WaitExit():
                told.append({"exit": scene.wait_exit()})
            case Change():
                change(scene.root / step.file, step)
            case _:
                assert_never(step)
    return told


def change(path: Path, step: Change) -> None:
    if step.how == "touch":
        path.touch()
    elif step.how == "remove":
        path.unlink()
    elif step.how == "cut":
        os.truncate(path, step.at)
    else:
        with path.open("r+b") as file:
            file.seek(step.at, os.SEEK_SET if step.at >= 0 else os.SEEK_END)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xFF]))


def ask(root: Path, step: Ask) -> Told:
    """Status, fault, and the body of a GET."""
    connection = _UnixHttp(str(root / "api.sock"))
    body = step.raw if step.raw is not None else None if step.body is None else json.dumps(step.body)
    try:
        connection.request(step.method, step.path, body, {"Accept": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return {"ask": f"{step.method} {step.path}", "dead": type(error).__name__}
    finally:
        connection.close()
    told: Told = {"ask": f"{step.method} {step.path}", "status": answer.status}
    if answer.getheader("Deprecation") is not None:
        told["deprecated"] = True
    if text:
        said = json.loads(text, strict=False)
        fault = said.get("fault_message", said.get("error")) if answer.status >= 400 else None
        told |= {"fault": fault} if fault is not None else {"body": said}
    return told
