"""The guest's runner script as a process on this machine, with busybox's tools only: no VM."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

import nimbus.rootfs

SCRIPT = Path(nimbus.rootfs.__file__).parent / "base/usr/local/bin/nimbus-runner"
BUSYBOX = shutil.which("busybox")
needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed (Debian: busybox-static)")


@dataclass(frozen=True)
class Ended:
    """How the script ended and what it printed."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class ScriptFolder:
    """A folder with busybox's tools and a home."""

    folder: Path

    @property
    def command(self) -> list[str]:
        return [str(self.folder / "bin" / "sh"), str(SCRIPT)]

    def environment(self, config: str, **more: str) -> dict[str, str]:
        tools, home = str(self.folder / "bin"), str(self.folder / "home")
        return {"PATH": tools, "HOME": home, "ACTIONS_RUNNER_INPUT_JITCONFIG": config, **more}

    async def run(self, config: str, **more: str) -> Ended:
        """Run the script to its end."""
        done = await trio.run_process(
            self.command, env=self.environment(config, **more), capture_stdout=True, capture_stderr=True, check=False
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def open_script_folder() -> Iterator[ScriptFolder]:
    """A folder that other users can enter, unlike tmp_path."""
    assert BUSYBOX is not None
    with tempfile.TemporaryDirectory(prefix="nimbus-guest-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("bin", "home"):
            (folder / part).mkdir()
        subprocess.run([BUSYBOX, "--install", "-s", str(folder / "bin")], check=True)
        yield ScriptFolder(folder)
