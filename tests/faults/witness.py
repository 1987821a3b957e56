"""A witness of double runs outside the product: each job beats, and the beats tell who ran when.

A job's own process appends `monotonic_ns machine fence pid` to a file every 100 ms, where `pid` is a number that no
other process has. Two fences of one machine request whose beats overlap are a double run, and so are two processes
under one fence. Called by the fault campaign and by whoever kills agents.

    python witness.py FILE MACHINE FENCE BEATS      beats BEATS times (0: until killed), printing a line at each
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

BEAT_S = 0.1


@dataclass(frozen=True, order=True)
class Beat:
    """One sign of life of one job's process."""

    at_ns: int
    machine: int
    fence: int
    pid: int


def beat_argv(file: Path, machine: int, fence: int, beats: int) -> tuple[str, ...]:
    """The job that beats."""
    words = (file, machine, fence, beats)
    return (sys.executable, "-I", "-S", str(Path(__file__).resolve()), *(str(word) for word in words))


def read_beats(file: Path) -> list[Beat]:
    """All beats so far, oldest first; none where nobody has beaten yet. A line that is being written is left out."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return sorted(Beat(*map(int, line.split())) for line in lines if line.endswith("\n"))


def find_double_runs(beats: list[Beat]) -> list[str]:
    """One sentence for each pair of processes of one machine request that ran at the same time, or under one fence."""
    lives: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for beat in beats:
        lives[beat.machine][beat.fence, beat.pid].append(beat.at_ns)
    found = []
    for machine, runs in lives.items():
        for (first, one), (second, other) in itertools.combinations(sorted(runs.items()), 2):
            if first[0] == second[0]:
                found.append(f"machine {machine} fence {first[0]}: ran as {first[1]} and as {second[1]}")
            elif max(one) >= min(other) and max(other) >= min(one):
                found.append(f"machine {machine}: fence {first[0]} still ran when fence {second[0]} had begun")
            elif max(other) < min(one):
                found.append(f"machine {machine}: fence {first[0]} began after fence {second[0]} had ended")
    return found


def find_gaps(beats: list[Beat], limit_s: float) -> list[str]:
    """One sentence for each silence of a process that was longer than the limit."""
    found = []
    for (machine, pid), group in itertools.groupby(
        sorted(beats, key=lambda beat: (beat.machine, beat.pid, beat.at_ns)), key=lambda beat: (beat.machine, beat.pid)
    ):
        for before, after in itertools.pairwise(group):
            silent_s = (after.at_ns - before.at_ns) / 1e9
            if silent_s > limit_s:
                found.append(f"machine {machine} as {pid} was silent for {silent_s:.1f} s")
    return found


def main() -> None:
    file, machine, fence, beats = sys.argv[1], *map(int, sys.argv[2:])
    me = int.from_bytes(os.urandom(6), "big")  # a pid would be the same in each VM, which has a namespace of its own
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for number in itertools.count(1):
        os.write(out, f"{time.monotonic_ns()} {machine} {fence} {me}\n".encode())
        os.write(1, f"beat {number}\n".encode())
        if number == beats:
            return
        time.sleep(BEAT_S)


if __name__ == "__main__":
    main()
