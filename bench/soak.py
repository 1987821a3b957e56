"""`make soak-run`: many `nimbus run` at once, round after round, each with an answer and a status of its own.

Eight at once on two cores, twenty rounds; then outputs of hundreds of megabytes, counted. Promises: every run says its
own token and exits with its own status, nobody reaps a neighbour, nothing is left on the host, and a run stays small
whatever its guest prints. Run as root; other VMs may run on the host meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.frame import Bound, finish, summarise
from nimbus.host.disk import remove_tree
from nimbus.host.inventory import Territory, leftovers
from nimbus.host_agent.settings import HostSettings

RUN = (sys.executable, "-m", "nimbus", "run")
RSS_MAX_MIB = 150
BIG_BYTES = (300_000_000, 1 << 30)
RUN_LIMIT_S = 300.0  # a run that takes longer hangs


@dataclass(frozen=True)
class Run:
    """One `nimbus run --json` that was started, and what it must answer."""

    process: subprocess.Popen[str]
    began: float
    token: str
    status: int


@dataclass(frozen=True)
class Told:
    """How it ended."""

    total_ms: float  # as the run measured itself: they are heard one after the other
    boots: int
    complaint: str  # empty where all was as promised


@contextmanager
def open_root(settings: HostSettings) -> Iterator[Territory]:
    """A state root for the soak alone, over the images that are there."""
    root = Path(tempfile.mkdtemp(prefix="nbsoak", dir="/tmp"))
    try:
        (root / "images").symlink_to(settings.state_dir / "images")
        os.environ["NIMBUS_STATE_DIR"] = str(root)
        yield Territory(root, settings.runtime_dir, settings.jailer_uid)
    finally:
        subprocess.run([sys.executable, "-m", "nimbus", "vms", "purge", "--all"], check=False)
        remove_tree(root)


def start(token: str, status: int) -> Run:
    script = f"echo {token}; exit {status}"
    argv = [*RUN, "--json", "--", "sh", "-c", script]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return Run(process, time.monotonic(), token, status)


def hear(run: Run) -> Told:
    """Wait for the end of one run, and judge it."""
    try:
        out, err = run.process.communicate(timeout=RUN_LIMIT_S)
    except subprocess.TimeoutExpired:
        run.process.kill()
        out, err = run.process.communicate()
        return Told(RUN_LIMIT_S * 1000, 0, f"{run.token}: no end after {RUN_LIMIT_S:g} s; said {err[-300:]!r}")
    wall_ms = (time.monotonic() - run.began) * 1000
    try:
        told = json.loads(out)
    except ValueError:
        return Told(wall_ms, 0, f"{run.token}: status {run.process.returncode}, no JSON but {out!r}; said {err!r}")
    complaint = ""
    if run.process.returncode != run.status or err.splitlines().count(run.token) != 1 or not told.get("clean"):
        complaint = f"{run.token}: status {run.process.returncode} for {run.status}, {told}; said {err!r}"
    return Told(told.get("phases_ms", {}).get("total", wall_ms), int(told.get("boots", 0)), complaint)


def soak(number: int, at_once: int) -> tuple[list[Told], float]:
    """One round: all at once, each with a token and a status that no other has."""
    began = time.monotonic()
    runs = [start(f"token-{number}-{index}", (number * at_once + index) % 120) for index in range(at_once)]
    return [hear(run) for run in runs], time.monotonic() - began


def count_big(size: int) -> tuple[int, int]:
    """Bytes that arrived of `size`, and the peak memory in MiB of the process that passed them on."""
    argv = [*RUN, "--quiet", "--", "head", "-c", str(size), "/dev/zero"]
    count = peak_mib = 0
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - asked for one line above
        while chunk := os.read(process.stdout.fileno(), 1 << 20):
            count += len(chunk)
            peak_mib = max(peak_mib, peak_rss_mib(process.pid))
    return (count if process.returncode == 0 else -1), peak_mib


def peak_rss_mib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:")), 0)


def main() -> int:
    """Soak, look for leaks, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--big", action=argparse.BooleanOptionalAction, default=True, help="count big outputs too")
    words = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("soak-run boots VMs: run it as root")
    told: list[Told] = []
    samples: dict[str, list[float]] = {"round.wall_ms": []}
    leaks: list[str] = []
    bounds: list[Bound] = []
    with open_root(HostSettings()) as territory:
        for number in range(1, words.rounds + 1):
            heard, took_s = soak(number, words.at_once)
            told += heard
            samples["round.wall_ms"].append(took_s * 1000)
            found = [str(leak) for leak in leftovers(territory)]
            leaks += found
            for line in [
                *(one.complaint for one in heard if one.complaint),
                *(f"left behind: {name}" for name in found),
            ]:
                print(f"  {line}", file=sys.stderr)
            print(f"  round {number} of {words.rounds}: {took_s:.1f} s", file=sys.stderr, flush=True)
        for size in BIG_BYTES if words.big else ():
            count, peak_mib = count_big(size)
            bounds.append(Bound(f"bytes missing of {size}", abs(size - count), 0))
            bounds.append(Bound(f"peak memory while {size} bytes pass, MiB", peak_mib, RSS_MAX_MIB))
        leaks += [str(leak) for leak in leftovers(territory)]
    samples["run.total_ms"] = [one.total_ms for one in told]
    retried = sum(max(0, one.boots - 1) for one in told)
    summary = summarise(samples["run.total_ms"])
    print(
        f"{len(told)} runs, {words.at_once} at once: p50 {summary.p50:.0f} ms, p95 {summary.p95:.0f} ms, "
        f"max {summary.max:.0f} ms; {retried} boots tried again; left behind: {leaks or 'nothing'}\n"
    )
    bounds = [
        Bound("runs that were not as promised", sum(bool(one.complaint) for one in told), 0),
        Bound("things left on the host", len(leaks), 0),
        *bounds,
    ]
    return finish("soak", samples, bounds, facts={"at_once": words.at_once, "boots_retried": retried})


if __name__ == "__main__":
    sys.exit(main())
