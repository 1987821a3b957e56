"""`make bench-control`: what the scheduler costs over its own SQL, what waiting hosts cost, and how soon one is woken.

A cycle is a lease granted, renewed once as running, and finished. Cycles are taken through leases.py in one process,
through HTTP from a real control plane, and as bare statements by asyncpg (controlcycles.py), in turn in one run, with
commits that are flushed; and once more through leases.py beside a million jobs that ended. Then a thousand hosts wait
at one control plane, and a hundred at two while jobs are submitted (controlwait.py). Run it on a host that is not busy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import trio

from bench.controlcycles import AGENTS, AT_ONCE, POOL_SIZE, WARM
from bench.controlhost import ControlHost, migrate, open_control_host
from bench.controlrows import FEW, add_people
from bench.controlwait import (
    PASSES,
    PATIENCE_S,
    SETTLE_S,
    WAKES,
    Crowd,
    Line,
    enrol,
    measure_idle,
    measure_passes,
    measure_wakes,
    open_crowd,
    open_line,
    read_counters,
)
from bench.frame import RESULTS, Bound, Samples, finish, interleave, percentile
from nimbus.cli.events import quiet_events
from nimbus.runtime.postgres import open_database

ROUNDS, CYCLES = 5, 1000
HISTORY = 1_000_000
HOSTS, IDLE_S = 1000, 60.0  # each asks three times and tells of itself twice
CROWD, CROWD_SETTLE_S = 100, 8.0
LEASES_MIN, HTTP_MIN, HISTORY_MIN = 0.50, 0.15, 0.80
IDLE_MAX, WAKE_MAX_MS, PASS_MAX_MS = 0.15, 50.0, PATIENCE_S * 1000 + 250.0
WOKEN_MAX = 1.0
ROOM = {"wait_s": 0, "free": {"cpus": 8, "mem_mib": 16384, "slots": 8}, "labels": ["nimbus"]}


class Rounds:
    """The measures of cycles, called from a thread; HTTP is spoken on the loop."""

    def __init__(self, host: ControlHost, few: Mapping[str, str], many: Mapping[str, str], cycles: int) -> None:
        self._host = host
        self._few = few
        self._many = many
        self._cycles = cycles

    def floor(self) -> dict[str, float]:
        """The bare statements."""
        return self._take("floor", self._few, FEW)

    def leases(self) -> dict[str, float]:
        """The same through leases.py."""
        return self._take("leases", self._few, FEW)

    def history(self) -> dict[str, float]:
        """And beside a long history, to which each round adds its own few jobs."""
        return self._take("leases", self._many, -1)

    def http(self) -> dict[str, float]:
        """The same from the first control plane, over connections that are kept."""
        prepare(self._host.environment, -1, WARM + self._cycles + AT_ONCE)
        per_s: float = trio.from_thread.run(take_over_http, self._host.planes[0].port, self._cycles)
        return {"per_s": per_s}

    def _take(self, which: str, environment: Mapping[str, str], history: int) -> dict[str, float]:
        prepare(environment, history, WARM + self._cycles + AT_ONCE)
        told: dict[str, float] = json.loads(run_part(environment, "bench.controlcycles", which, str(self._cycles)))
        return told


def prepare(environment: Mapping[str, str], history: int, queued: int) -> None:
    """The tables of this database as a round begins."""
    run_part(environment, "bench.controlrows", str(history), str(queued))


def run_part(environment: Mapping[str, str], module: str, *words: str) -> str:
    """What a part of the bench prints that is a process of its own."""
    argv = [sys.executable, "-m", module, *words]
    done = subprocess.run(
        argv, env=dict(environment), cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{module} {' '.join(words)} failed")
    return done.stdout


async def take_over_http(port: int, cycles: int) -> float:
    """Cycles a second, by a connection for each agent."""
    tokens = await enrol(port, AGENTS)
    async with AsyncExitStack() as opened:
        lines = [await opened.enter_async_context(open_line(port, tokens[name])) for name in AGENTS]
        await _cycle_all(lines, WARM)
        began = time.monotonic()
        done = await _cycle_all(lines, cycles)
        return done / (time.monotonic() - began)


async def _cycle_all(lines: Sequence[Line], cycles: int) -> int:
    left, done = iter(range(cycles)), itertools.count()

    async def work(line: Line) -> None:
        while next(left, None) is not None and await _cycle(line):
            next(done)

    async with trio.open_nursery() as nursery:
        for line in lines:
            nursery.start_soon(work, line)
    return next(done)


async def _cycle(line: Line) -> bool:
    status, answer = await line.post("/api/agents/lease", ROOM, 200, 204)
    if status == 204:
        return False
    grant = json.loads(answer)
    key, path = {"lease_id": grant["lease_id"], "fence": grant["fence"]}, f"/api/machines/{grant['machine_id']}"
    await line.post(f"{path}/renew", key | {"state": "running"}, 200)
    await line.post(f"{path}/finish", key | {"ending": "done", "exit_code": 0}, 200)
    return True


async def make_database(host: ControlHost, name: str, jobs: int) -> dict[str, str]:
    """The environment of a control plane with a database of its own on this server, and so many ended jobs in it."""
    async with open_database(host.dsn, 1) as database:
        await database.fetch(f"CREATE DATABASE {name}")
    dsn = urlunsplit(urlsplit(host.dsn)._replace(path=f"/{name}"))
    await migrate(dsn)
    async with open_database(dsn, 1) as database:
        await database.run(add_people, AGENTS)
    environment = {**host.environment, "NIMBUS_DATABASE_URL": dsn}
    await trio.to_thread.run_sync(prepare, environment, jobs, 0)
    return environment


def judge(samples: Samples) -> list[Bound]:
    """Pure: the promises of the issue."""
    rates = {which: percentile(samples[f"{which}.per_s"], 50) for which in ("floor", "leases", "http", "history")}
    wakes, woken = samples["wake.ms"], samples["woken.a_request"]
    return [
        Bound("leases.py / bare SQL, cycles/s, p50 of rounds", rates["leases"] / rates["floor"], LEASES_MIN, True),
        Bound("HTTP / bare SQL, cycles/s, p50 of rounds", rates["http"] / rates["floor"], HTTP_MIN, True),
        Bound("long history / none, cycles/s, p50 of rounds", rates["history"] / rates["leases"], HISTORY_MIN, True),
        Bound("share of a core for hosts that wait, long polls alone", samples["polls.cpu_share"][0], IDLE_MAX),
        Bound("share of a core for hosts that wait, polls and heartbeats", samples["idle.cpu_share"][0], IDLE_MAX),
        Bound("submitted to granted, ms, p99", percentile(wakes, 99), WAKE_MAX_MS),
        Bound("agents woken for a request", woken[0], WOKEN_MAX),
        Bound("the same where the first one woken leases nothing, ms, max", max(samples["pass.ms"]), PASS_MAX_MS),
    ]


async def measure_cycles(host: ControlHost, words: argparse.Namespace) -> dict[str, list[float]]:
    """All rates, in turn."""
    async with open_database(host.dsn, 1) as database:
        await database.run(add_people, AGENTS)
    few = await make_database(host, "few", FEW)
    say(f"{words.history} ended jobs are written")
    many = await make_database(host, "many", words.history)
    rounds = Rounds(host, few, many, words.cycles)
    measures = {"floor": rounds.floor, "leases": rounds.leases, "history": rounds.history, "http": rounds.http}
    say("cycles are taken")
    warmup = min(1, words.rounds - 1)
    return await trio.to_thread.run_sync(partial(interleave, measures, words.rounds, warmup=warmup))


async def measure_waiting(host: ControlHost, words: argparse.Namespace) -> dict[str, list[float]]:
    """What hosts cost that wait, and how soon one of them has what is submitted."""
    say(f"{words.hosts} hosts wait")
    async with open_crowd(host.planes[:1], words.hosts, words.settle_s, hearts=False) as crowd:
        polls = await measure_idle(host.planes[0], crowd, words.hosts, words.idle_s)
    say("the same with their heartbeats")
    async with open_crowd(host.planes[:1], words.hosts, words.settle_s) as crowd:
        idle = await measure_idle(host.planes[0], crowd, words.hosts, words.idle_s)
    say(f"{words.wakes} jobs are submitted")
    async with open_crowd(host.planes, CROWD, min(words.settle_s, CROWD_SETTLE_S)) as crowd:
        before = await read_counters(host.planes)
        wakes_ms = await measure_wakes(host.planes, crowd, words.wakes)
        after = await read_counters(host.planes)
        passes_ms = await measure_passes(host.planes, host.dsn, crowd, words.passes)
        check_once(crowd)
    return {
        "polls.cpu_share": [polls.cpu_share],
        "idle.cpu_share": [idle.cpu_share],
        "idle.polls_per_s": [idle.polls_per_s],
        "idle.beats_per_s": [idle.beats_per_s],
        "wake.ms": wakes_ms,
        "pass.ms": passes_ms,
        **{f"{name}.a_request": [(after[name] - before[name]) / words.wakes] for name in ("looks", "woken", "granted")},
    }


def check_once(crowd: Crowd) -> None:
    twice = [machine_id for machine_id, times in crowd.granted.items() if len(times) > 1]
    if twice:
        sys.exit(f"granted more than once: {twice}")


def say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


async def measure(words: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    async with open_control_host(folder, planes=2) as host:
        return {**await measure_cycles(host, words), **await measure_waiting(host, words)}


def parse_words(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cycles", type=int, default=CYCLES, help="of each measure of a round")
    parser.add_argument("--history", type=int, default=HISTORY, help="ended jobs beside the queue")
    parser.add_argument("--hosts", type=int, default=HOSTS, help="that wait for work")
    parser.add_argument("--idle-s", type=float, default=IDLE_S, help="for which they do")
    parser.add_argument("--settle-s", type=float, default=SETTLE_S, help="until all of them have asked once")
    parser.add_argument("--wakes", type=int, default=WAKES, help="jobs submitted while hosts wait")
    parser.add_argument("--passes", type=int, default=PASSES, help="of these where the first one woken leases nothing")
    return parser.parse_args(words)


def take(words: argparse.Namespace, results: Path = RESULTS) -> int:
    """Measure, write, judge."""
    with tempfile.TemporaryDirectory(prefix="nimbus-bench-control-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the database's own user passes through
        samples = trio.run(measure, words, folder)
    facts = {**vars(words), "pool": POOL_SIZE, "cycles_at_once": AT_ONCE, "crowd": CROWD, "planes": 2}
    return finish("control", samples, judge(samples), facts=facts, plotted=["wake.ms"], results=results)


def main() -> int:
    quiet_events()
    return take(parse_words())


if __name__ == "__main__":
    sys.exit(main())
