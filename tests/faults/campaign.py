"""`make faults`: every operation of a clean run times every kind of fault, each in a run of its own, some at once.

    python -m tests.faults.campaign --folder DIR [--all] [--only WORD]... [--kinds KIND,KIND] [--part] [--at-once 4]

A fixed choice of all pairs: each operation fails, and meets some of the other kinds; each service meets every kind.
`--all` (or NIMBUS_FAULTS_ALL=1) leaves out none. What hangs has workers of its own, since it only waits.

Ends with one line, `faults: N injected, 0 leaks, 0 double runs, 0 neighbours hurt`, and exit status 1 where a run
went wrong or a fault did not fire. N counts distinct (operation, kind) pairs that fired.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.faults.case import Verdict, run_case
from tests.faults.forks import Child, fork
from tests.faults.numbers import render_table
from tests.faults.operations import PATIENT, RACING, RARE, SURE, has_peer
from tests.faults.place import STOP_S, Place, open_place
from tests.faults.plane import ROUTES
from tests.faults.representative import ALWAYS, REPRESENTATIVE
from tests.faults.strike import BEGIN, CALL_KINDS, CLAIM, Fault, Kind
from tests.faults.ways import MUST_MEET, Way

START_KINDS = (Kind.ERROR, Kind.KILL_AFTER)
# Of these kinds each operation meets one in so many, by a sum over both names: it stays the same when others come.
ONE_IN = {Kind.HANG: 3, Kind.DELAY: 5, Kind.PARTIAL: 2, Kind.KILL_BEFORE: 3, Kind.KILL_AFTER: 2}
ONE_WAY_IN = 5  # an operation that was struck on an earlier way is struck again on every fifth other way or so
ORDER_S = 3600.0  # a whole campaign's share of one worker


@dataclass(frozen=True)
class Trace:
    """What a clean run does: how often each operation happens, and which of them wait in Trio's own thread."""

    seen: dict[str, int]
    at_start: dict[str, int]  # of these, before the machine's life began
    returned: list[str]
    is_async: dict[str, bool]
    at_claim: dict[str, int] = field(default_factory=dict)  # before a job asked for a machine that waits


def plan_faults(trace: Trace) -> list[Fault]:
    """Pure: every pair that can be, where the operation first happens for a machine; some also at the agent's start."""
    calls = []
    for name, count in trace.seen.items():
        before = trace.at_start.get(name, 0)
        of_machine = count > before
        kinds = [kind for kind in CALL_KINDS if _can_be(kind, name, trace)]
        calls += [Fault(name, kind, before + 1 if of_machine else 1, at_start=not of_machine) for kind in kinds]
        if before and of_machine:
            calls += [Fault(name, kind, at_start=True) for kind in START_KINDS]
    return [*calls, *(Fault(route, kind) for route in ROUTES for kind in Kind)]


def plan_way(trace: Trace, way: Way) -> list[Fault]:
    """Pure: the same for another way, but for its agent's start: there it is as on any."""
    calls = []
    for name, count in trace.seen.items():
        kinds = [kind for kind in CALL_KINDS if _can_be(kind, name, trace)]
        before, claimed = trace.at_start.get(name, 0), trace.at_claim.get(name, count)
        if claimed > before:
            calls += [Fault(name, kind, way=way, after=BEGIN) for kind in kinds]
        if count > claimed:
            calls += [Fault(name, kind, way=way, after=CLAIM) for kind in kinds]
    return calls


def _can_be(kind: Kind, name: str, trace: Trace) -> bool:
    """A coroutine hangs only where a peer can be frozen for it, and only what returns can lose its answer."""
    if name in RARE or (name in SURE and kind in (Kind.ERROR, Kind.PARTIAL)):
        return False
    if kind is Kind.HANG:
        return name not in PATIENT and (not trace.is_async[name] or has_peer(name))
    return kind not in (Kind.PARTIAL, Kind.KILL_AFTER) or (name in trace.returned and name not in RACING)


def read_trace(place: Place, way: Way = Way.FAKE) -> Trace:
    """The operations of a run in which nothing fails. Raises RuntimeError where that run is not clean."""
    verdict = run_case(place, None, way)
    if verdict.wrong or verdict.leaks or verdict.doubles or verdict.hurt:
        raise RuntimeError(f"a run without any fault is not clean ({way}): {verdict}")
    trace = Trace(*json.loads((place.folder / "trace.json").read_text()))
    if lacking := MUST_MEET[way] - set(trace.seen):
        raise RuntimeError(f"a machine did not come up that way ({way}): it never met {', '.join(sorted(lacking))}")
    return trace


def read_steady_trace(place: Place, way: Way) -> Trace:
    """What two such runs had in common: a pool refills and looks about while the job runs, sometimes more often."""
    one, other = read_trace(place, way), read_trace(place, way)
    seen = {name: count for name, count in one.seen.items() if name in other.seen}
    at_claim = {name: count for name, count in one.at_claim.items() if name in other.at_claim}
    for name, count in seen.items():
        if (count > at_claim.get(name, 0)) != (other.seen[name] > other.at_claim.get(name, 0)):
            at_claim[name] = count
    return replace(one, seen=seen, at_claim=at_claim, returned=sorted({*one.returned} & {*other.returned}))


def plan_campaign(only_fake: bool) -> tuple[list[Fault], int]:
    """All pairs of all ways, and how many operations there are."""
    with open_place() as place:
        first = read_trace(place)
        ways = [] if only_fake else [way for way in Way if way is not Way.FAKE]
        traces = {way: read_steady_trace(place, way) for way in ways}
    names = set(first.seen).union(*(trace.seen for trace in traces.values()))
    planned = [*plan_faults(first), *(fault for way, trace in traces.items() for fault in plan_way(trace, way))]
    return planned, len(names) + len(ROUTES)


def run_share(faults: Sequence[Fault], results: Path) -> None:
    """One worker's runs, one JSON line each. A place that a run spoiled is left for a fresh one."""
    signal.signal(signal.SIGTERM, _leave)
    queue = list(faults)
    with results.open("a") as out:
        while queue:
            with open_place() as place:
                while queue:
                    verdict = run_case(place, queue.pop(0))
                    out.write(json.dumps(asdict(verdict)) + "\n")
                    out.flush()
                    place.spoiled = bool(verdict.leaks or verdict.hurt)
                    if place.spoiled:
                        break


def _leave(_: int, __: object) -> None:
    sys.exit(143)


def run_campaign(faults: Sequence[Fault], at_once: int, folder: Path) -> list[Verdict]:
    """All of them; every one has a verdict, or this raises."""
    workers: list[tuple[Child, Path]] = []
    hangs, calm = [f for f in faults if f.kind is Kind.HANG], [f for f in faults if f.kind is not Kind.HANG]
    shares = [part[number::at_once] for part in (calm, hangs) for number in range(at_once)]
    for number, share in enumerate(filter(None, shares)):
        results = folder / f"results{number}.jsonl"
        child = fork(folder / f"worker{number}.txt", run_share, share, results)
        workers.append((child, results))
    try:
        for child, _ in workers:
            child.wait(ORDER_S)
    finally:
        for child, _ in workers:
            child.send(signal.SIGTERM)
        for child, _ in workers:
            if not child.wait(STOP_S):
                child.kill()
    verdicts = []
    for child, results in workers:
        if child.status != 0:
            say(f"a worker ended with {child.status}:\n{child.told()[-4000:]}")
        verdicts += (
            [Verdict(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
        )
    return verdicts


def render_report(verdicts: Sequence[Verdict]) -> str:
    """A table of all runs, the failures first and in full."""
    lines = ["# Faults", "", "| fault | fired in | end | agents | s | verdict |", "|---|---|---|---|---|---|"]
    for verdict in sorted(verdicts, key=lambda v: (v.good, v.fault)):
        said = "; ".join([*verdict.wrong, *verdict.leaks, *verdict.doubles, *verdict.hurt, *verdict.notes])
        line = " ".join(said.replace("|", "/").split())[:400]
        cells = (verdict.fault, verdict.fired, verdict.ending, verdict.agents, verdict.seconds, line or "good")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", "# Faults by number", "", render_table()])


def summarize(verdicts: Sequence[Verdict]) -> str:
    """The one line."""
    injected = len({verdict.fault.partition(" (")[0] for verdict in verdicts if verdict.fired})
    leaks, doubles, hurt = (sum(bool(getattr(v, name)) for v in verdicts) for name in ("leaks", "doubles", "hurt"))
    return f"faults: {injected} injected, {leaks} leaks, {doubles} double runs, {hurt} neighbours hurt"


def choose_faults(faults: Sequence[Fault], only: Sequence[str], kinds: Sequence[Kind]) -> list[Fault]:
    """Pure: those whose names hold one of the words, of these kinds."""
    return [
        f for f in faults if f.kind in kinds and (not only or any(word in f"{f.way} {f.operation}" for word in only))
    ]


def is_usual(fault: Fault) -> bool:
    """Pure: whether a campaign runs it that is not told to run all."""
    if fault.operation in ROUTES or str(fault) in ALWAYS:
        return True
    return zlib.crc32(f"{fault.operation} {fault.kind}".encode()) % ONE_IN.get(fault.kind, 1) == 0


def thin(faults: Sequence[Fault]) -> list[Fault]:
    """Pure: what a campaign runs that is not told to run all.

    The fake's way is struck as ever. On each other way an operation that no way before it had is struck like that too;
    one that they had meets a single kind there, chosen by name, and not on every way. What happens to a machine between
    its job's claim and its end meets an error of each operation once more.
    """
    chosen: list[Fault] = []
    met: set[str] = set()
    claimed: set[str] = set()
    for way in Way:
        mine = [fault for fault in faults if fault.way is way]
        for fault in mine:
            is_claim = fault.after == CLAIM and fault.operation not in claimed and fault.kind is Kind.ERROR
            is_new = way is Way.FAKE or fault.operation not in met
            if is_claim or (is_usual(fault) if is_new else _is_sample(fault, mine)):
                chosen.append(fault)
        met |= {fault.operation for fault in mine}
        claimed |= {fault.operation for fault in mine if fault.after == CLAIM}
    return chosen


def _is_sample(fault: Fault, faults: Sequence[Fault]) -> bool:
    """The one kind, of those that it can meet there, that a repeated operation meets; on one way of ONE_WAY_IN."""
    number = zlib.crc32(f"{fault.way} {fault.operation} {fault.after}".encode())
    if number % ONE_WAY_IN:
        return False
    kinds = [one.kind for one in faults if (one.operation, one.after) == (fault.operation, fault.after)]
    return fault.kind is kinds[number // ONE_WAY_IN % len(kinds)]


def say(line: str) -> None:
    """One line for whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.faults.campaign")
    parser.add_argument("--only", action="append", default=[], help="a part of `<way> <operation>`; repeatable")
    parser.add_argument("--kinds", default=",".join(Kind), help="comma separated")
    parser.add_argument("--part", action="store_true", help="the fixed part that `make test` runs")
    parser.add_argument("--all", action="store_true", default=bool(os.environ.get("NIMBUS_FAULTS_ALL")))
    parser.add_argument("--at-once", type=int, default=4, help="of what hangs and of all else; most of a run waits")
    parser.add_argument("--folder", type=Path, required=True, help="where report and results are written")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for stale in asked.folder.glob("results*.jsonl"):
        stale.unlink()
    began = time.monotonic()
    planned, operations = plan_campaign(asked.part)
    faults = choose_faults(planned, asked.only, [Kind(word) for word in asked.kinds.split(",")])
    if asked.part:
        faults = [fault for fault in faults if str(fault) in REPRESENTATIVE]
    elif not (asked.all or asked.only):
        faults = thin(faults)
    say(f"{operations} operations, {len(faults)} of {len(planned)} faults, {asked.at_once} at once")
    verdicts = run_campaign(faults, asked.at_once, asked.folder)
    (asked.folder / "report.md").write_text(render_report(verdicts))
    bad = [verdict for verdict in verdicts if not verdict.good]
    for verdict in bad:
        say(f"WRONG {verdict.fault}: {[*verdict.wrong, *verdict.leaks, *verdict.doubles, *verdict.hurt]}")
    say(f"{len(bad)} of {len(verdicts)} runs went wrong in {time.monotonic() - began:.0f} s: {asked.folder}/report.md")
    say(summarize(verdicts))
    sys.exit(1 if bad or len(verdicts) < len(faults) else 0)


if __name__ == "__main__":
    os.environ.pop("NIMBUS_STATE_DIR", None)
    main()
