"""The job of the lease machine: beats like witness.py until its gate is open, then exits with what the gate says.

python gatejob.py FILE MACHINE FENCE GATE       a line on stdout at each beat, and a last one before its end
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

BEAT_S = 0.1


def gate_argv(file: Path, machine: int, gate: Path) -> tuple[str, ...]:
    """The job; FENCE stands for the fence that it is run under."""
    return (sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(file), str(machine), "FENCE", str(gate))


def main() -> None:
    file, machine, fence, gate = sys.argv[1:]
    me = int.from_bytes(os.urandom(6), "big")  # a pid would be the same in each VM, which has a namespace of its own
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for number in itertools.count(1):
        os.write(out, f"{time.monotonic_ns()} {machine} {fence} {me}\n".encode())
        os.write(1, f"beat {number}\n".encode())
        if os.path.exists(gate):
            os.write(1, b"gate\n")
            sys.exit(int(Path(gate).read_text()))
        time.sleep(BEAT_S)


if __name__ == "__main__":
    main()
