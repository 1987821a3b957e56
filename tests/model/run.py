"""`make model`: searches all states of the lease protocol with spin, then proves that the search can see.

The real protocol must hold; each broken variant must be caught. Prints a table and one line at the end; status 1
where anything is otherwise. Needs spin and gcc. test_model.py calls `search` with smaller numbers. With the name of a
broken variant, `.venv/bin/python -m tests.model.run NO_MARGIN` tells the shortest story of what goes wrong.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.model.generate import TABLES, render_tables

FOLDER = Path(__file__).parent
DEPTH_MAX = 10_000  # steps of one run; the deepest seen is below 100, and a truncated search counts as failed
MEMORY_MAX_MIB = 4000
TITLE_WIDTH = 76

WHOLE = {"REQUESTS": 2, "ATTEMPTS": 2, "RENEWALS": 1, "FAULTS": 1, "MERGE_STARTED": 1}
DEEP = {"REQUESTS": 1, "ATTEMPTS": 3, "RENEWALS": 2, "FAULTS": 4, "CLOCK_JUMPS": 1}
SMALL = {"REQUESTS": 1, "ATTEMPTS": 2, "RENEWALS": 1, "FAULTS": 2, "CLOCK_JUMPS": 1}
LONG = {"REQUESTS": 1, "ATTEMPTS": 2, "RENEWALS": 2, "FAULTS": 2, "LONG_LEASES": 1}

# What is taken away, and where the search for what follows is made: two requests for the two that the promise names.
BROKEN: dict[str, tuple[Mapping[str, int], str]] = {
    "NO_MARGIN": (WHOLE, "the holder counts on the whole lifetime"),
    "NO_FENCE_CHECK": (WHOLE, "a finish is taken whoever sends it"),
    "NO_RENEW_CHECK": (SMALL, "a renewal is granted whoever asks"),
    "NO_FENCE_RAISE": (SMALL, "a new lease has the old one's fence"),
    "NO_FIRST_RENEWAL": (SMALL, "a grant is trusted however old it is"),
    "COUNT_FROM_REPLY": (SMALL, "the deadline counts from the reply, not from the sending"),
    "NO_KEEPER_DEADLINE": (SMALL, "only the agent stops its VMs"),
    "NO_REFUSAL_OF_PAST": (SMALL, "a keeper starts a VM after the deadline"),
    "NO_QUESTION_AT_ADOPTION": (SMALL, "an adopting agent takes the lease as new"),
    "NO_HELD_AT_ENROLMENT": (SMALL, "a new agent gives up leases whose VMs live"),
    "NO_PAUSE": (SMALL, "leases expire by a clock that has just jumped"),
    "NO_GREATEST": (LONG, "a shorter lifetime moves the deadline back"),
    "LATE_ENROLMENT": (SMALL, "a copy of an enrolment arrives after later leases"),
}


@dataclass(frozen=True)
class Search:
    """What spin found."""

    states: int
    depth: int
    seconds: float
    error: str  # empty: no run breaks any promise
    steps: tuple[str, ...]  # of the counterexample


def find_missing() -> list[str]:
    """Programs that the search needs and this machine lacks."""
    return [name for name in ("spin", "gcc") if shutil.which(name) is None]


def search(numbers: Mapping[str, int], broken: str = "", *, cycles: bool = False, shortest: bool = False) -> Search:
    """Every state that the protocol can reach. `cycles` looks for a run without an end instead of a broken promise.

    `shortest` goes breadth first, which takes more memory and finds the counterexample with the fewest steps.
    """
    defines = [f"-D{name}={number}" for name, number in numbers.items()] + ([f"-D{broken}"] if broken else [])
    with tempfile.TemporaryDirectory(prefix="nimbus-model-") as name:
        folder = Path(name)
        for part in FOLDER.glob("*.pml"):
            shutil.copy(part, folder)
        began = time.monotonic()
        _run(folder, "spin", "-a", *defines, "lease.pml")
        kinds = ["-DNP"] if cycles else ["-DSAFETY", *(["-DBFS"] if shortest else [])]
        pace = "-O0" if numbers in (SMALL, LONG) else "-O2"  # of a small search, compiling is the longest part
        _run(folder, "gcc", pace, "-w", *kinds, f"-DMEMLIM={MEMORY_MAX_MIB}", "-o", "pan", "pan.c")
        told = _run(folder, "./pan", f"-m{DEPTH_MAX}", *(["-l"] if cycles else []))
        seconds = time.monotonic() - began
        steps: tuple[str, ...] = ()
        if (folder / "lease.pml.trail").exists():
            replayed = _run(folder, "spin", "-t", *defines, "lease.pml")
            steps = tuple(
                line.strip() for line in replayed.splitlines() if re.match(r"\s*(request|agent|tick)\b", line)
            )
    return _parse(told, seconds, steps)


def _run(folder: Path, *argv: str) -> str:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0 and argv[0] != "spin":
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    if argv[:2] == ("spin", "-a") and done.returncode != 0:
        raise RuntimeError(f"spin refuses the model: {done.stdout}{done.stderr}")
    return done.stdout


def _parse(told: str, seconds: float, steps: tuple[str, ...]) -> Search:
    states = re.search(r"^\s*([\d.e+]+) states, stored", told, flags=re.MULTILINE)
    depth = re.search(r"depth reached (\d+), errors: (\d+)", told)
    if states is None or depth is None:
        raise RuntimeError(f"the search told no result: {told}")
    found = re.search(r"^pan:\d+: (.*)", told, flags=re.MULTILINE)
    error = found[1] if found else ("a broken promise without a name" if depth[2] != "0" else "")
    if ("Search not completed" in told or "search depth too small" in told) and not error:
        error = "the search was not completed"
    return Search(int(float(states[1])), int(depth[1]), seconds, error, steps)


def main() -> int:
    """The whole search. Returns the exit status."""
    missing = find_missing()
    if missing:
        _say(f"model: {' and '.join(missing)} missing: make setup installs it")
        return 1
    if TABLES.read_text() != render_tables():
        _say("model: tests/model/lease_tables.pml is not what the code says: python -m tests.model.generate")
        return 1
    failures = _search_real() + _search_broken()
    verdict = f"{failures} of these are not as they must be" if failures else "holds; every broken variant is caught"
    _say(f"model: {verdict}")
    return 1 if failures else 0


def find_numbers(broken: str) -> Mapping[str, int]:
    """Where a variant is searched when it has to be quick."""
    numbers, _ = BROKEN[broken]
    return SMALL if numbers is WHOLE else numbers


def show(broken: str) -> int:
    """What goes wrong in one variant, step by step."""
    if broken not in BROKEN:
        _say(f"model: no variant is called {broken}; there are {', '.join(BROKEN)}")
        return 2
    found = search(find_numbers(broken), broken, shortest=True)
    _say("".join(f"{step}\n" for step in found.steps) + found.error)
    return 0


def _search_real() -> int:
    failures = 0
    _say(f"{'the protocol as it is':<{TITLE_WIDTH}} {'states':>10} {'depth':>5} {'s':>6}  found")
    for title, numbers, cycles in (
        ("2 agents, 2 requests, 1 fault: no promise is broken", WHOLE, False),
        ("2 agents, 1 request, 4 faults, 3 leases: the same", DEEP, False),
        ("2 agents, 1 request, 2 faults, longer lifetimes: the same", LONG, False),
        ("2 agents, 1 request, 2 faults: no run without an end", SMALL, True),
    ):
        found = search(numbers, cycles=cycles)
        failures += bool(found.error)
        _say(_row(title, found, found.error or "nothing"))
        _say("".join(f"    {step}\n" for step in found.steps), end="")
    return failures


def _search_broken() -> int:
    failures = 0
    _say("broken on purpose")
    for name, (numbers, meaning) in BROKEN.items():
        found = search(numbers, name)
        failures += not found.error
        _say(_row(f"{name}: {meaning}", found, f"caught, {len(found.steps)} steps" if found.error else "NOT CAUGHT"))
    return failures


def _row(title: str, found: Search, verdict: str) -> str:
    return f"{title:<{TITLE_WIDTH}} {found.states:>10} {found.depth:>5} {found.seconds:>6.1f}  {verdict}"


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(show(sys.argv[1]) if len(sys.argv) > 1 else main())
