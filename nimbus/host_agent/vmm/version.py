"""What a VMM's binary says of its own version. Runs it once, for a moment, without any rights it needs not."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nimbus.model.errors import HostFault

LIMIT_S = 10.0


def read_version(binary: Path) -> str:
    """The first line of `--version`. Raises HostFault where it says nothing."""
    try:
        done = subprocess.run(
            [str(binary), "--version"], capture_output=True, timeout=LIMIT_S, check=False, env={}, cwd="/", text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostFault(f"{binary} --version could not be run: {error}") from error
    line = done.stdout.strip().split("\n", 1)[0].strip()
    if done.returncode != 0 or not line:
        raise HostFault(f"{binary} --version ended with {done.returncode} and said: {done.stderr.strip()[:200]!r}")
    return line
