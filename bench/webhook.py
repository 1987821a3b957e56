"""`make bench-webhook`: how many deliveries two workers accept, against the bare insert of the same rows.

wrk sends signed `workflow_job` deliveries of 8 KB, each under a new GUID; one counts when it is answered, so committed.
The floor inserts the same rows over the same pools: two processes, each with the one that a worker has. Both are taken
in turn in one run, with commits that are flushed; beside them, and not judged, the same by asyncpg without Trio.
Deliveries are also processed meanwhile, as ever. Then the same at half the rate, for the times. Run it on a host that
is not busy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trio

from bench.frame import Bound, Samples, finish, interleave, percentile
from bench.webhookhost import POOL_SIZE, SECRET, WORKERS, WebhookHost, open_webhook_host
from nimbus.cli.events import quiet_events
from nimbus.wire.github import render_signature

ROUNDS, SECONDS = 5, 5.0
BODIES, BODY_BYTES = 2000, 8192
OURS = 0.1  # of the jobs ask for a label of ours: an organisation's other jobs run on hosts of GitHub's
CONNECTIONS = 128  # GitHub sends each delivery by a connection of its own
RATE_MIN, P99_MAX_MS = 0.40, 50.0
RATE_AIM = 0.60
DRAIN_S = 300.0
ACTIONS = ("queued", "in_progress", "completed")


def render_body(number: int, ours: float) -> bytes:
    """One of three events in the life of a job, filled up with steps to its size."""
    job_id, action = 10_000 + number // len(ACTIONS), ACTIONS[number % len(ACTIONS)]
    mine = (job_id * 0.618034) % 1 < ours
    repo = f"repo-{job_id % 20}"
    job: dict[str, object] = {
        "id": job_id, "run_id": 500_000 + job_id // 4, "run_attempt": 1, "name": f"build ({job_id % 7})",
        "workflow_name": "CI", "head_branch": "main", "head_sha": f"{job_id:040x}",
        "html_url": f"https://github.example/octo-org/{repo}/actions/runs/1/job/{job_id}", "status": action,
        "conclusion": "success" if action == "completed" else None, "created_at": "2026-11-21T08:00:00Z",
        "started_at": "2026-11-21T08:00:00Z", "completed_at": None, "steps": [],
        "labels": ["nimbus"] if mine else ["ubuntu-latest"],
        "runner_id": None if action == "queued" else job_id,
        "runner_name": None if action == "queued" else f"GitHub Actions {job_id}",
    }  # fmt: skip
    repository = {
        "id": 600 + job_id % 20, "name": repo, "full_name": f"octo-org/{repo}", "private": True,
        "owner": {"id": 501, "login": "octo-org", "type": "Organization"},
    }  # fmt: skip
    event = {"action": action, "workflow_job": job, "repository": repository, "installation": {"id": 77}}
    steps: list[dict[str, object]] = []
    job["steps"] = steps
    missing = BODY_BYTES - len(json.dumps(event))
    while missing > 0:
        step = {"name": f"Run step {len(steps)} of the job", "status": action, "number": len(steps), "conclusion": None}
        steps.append(step)
        missing -= len(json.dumps(step)) + 2
    return json.dumps(event).encode()


def write_bodies(file: Path, ours: float) -> None:
    """Signature and body, one pair a line."""
    bodies = (render_body(number, ours) for number in range(BODIES))
    file.write_bytes(b"".join(render_signature(SECRET, body).encode() + b"\t" + body + b"\n" for body in bodies))


class Rounds:
    """The measures, called from a thread; the host is asked through the loop."""

    def __init__(self, host: WebhookHost, bodies: Path, seconds: float) -> None:
        self._host = host
        self._bodies = bodies
        self._seconds = seconds
        self._numbers = itertools.count()

    def floor(self) -> dict[str, float]:
        """As many processes as there are workers, each with a worker's pool."""
        return {"per_s": self._insert("pool", WORKERS, POOL_SIZE)}

    def asyncpg(self) -> dict[str, float]:
        """One process without Trio, with as many connections: nothing is judged by it."""
        return {"per_s": self._insert("asyncpg", 1, WORKERS * POOL_SIZE)}

    def _insert(self, which: str, processes: int, pool_size: int) -> float:
        trio.from_thread.run(self._host.clear)
        environment = {"NIMBUS_DATABASE_URL": self._host.dsn, "PATH": os.environ["PATH"]}
        started = []
        for _ in range(processes):
            argv = [sys.executable, "-m", "bench.webhookfloor", which, str(self._bodies), str(pool_size)]
            started.append(
                subprocess.Popen(
                    [*argv, f"floor-{next(self._numbers)}", str(self._seconds)],
                    env=environment,
                    cwd=Path(__file__).parents[1],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        told = [process.communicate()[0] for process in started]
        if any(process.returncode != 0 for process in started):
            sys.exit("the floor failed")
        return sum(float(json.loads(line)["per_s"]) for line in told)

    def full(self) -> dict[str, float]:
        """As fast as it goes, and how fast the inbox is worked off afterwards."""
        told = self.wrk(0.0)
        began = time.monotonic()
        left = trio.from_thread.run(self._host.unfinished)
        self.drain()
        took_s = max(time.monotonic() - began, 0.001)
        return {
            "per_s": told["requests"] / told["seconds"],
            "full_p99_ms": told["p99_ms"],
            "worked_off_per_s": left / took_s,
        }

    def half(self, rate: float) -> dict[str, float]:
        """At this rate, by connections that pause."""
        told = self.wrk(CONNECTIONS / rate * 1000)
        self.drain()
        return {"rate": told["requests"] / told["seconds"], "p50_ms": told["p50_ms"], "p99_ms": told["p99_ms"]}

    def wrk(self, pause_ms: float) -> dict[str, float]:
        trio.from_thread.run(self._host.clear)
        prefix = f"wrk-{next(self._numbers)}"
        script = Path(__file__).with_name("webhook.lua")
        url = f"http://127.0.0.1:{self._host.port}"
        argv = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{self._seconds:g}s", "--timeout", "30s", "-s", str(script), url]
        done = subprocess.run(
            [*argv, "--", str(self._bodies), prefix, f"{pause_ms:.3f}"], capture_output=True, text=True, check=False
        )
        result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not result:
            sys.exit(f"wrk failed: {done.stdout}{done.stderr}")
        told: dict[str, float] = json.loads(result[0].removeprefix("RESULT "))
        stored = trio.from_thread.run(self._host.stored, prefix)
        if told["refused"] or told["broken"] or stored < told["requests"]:
            sys.exit(f"an answer was no acceptance: {told}, and {stored} rows are stored")
        return told

    def drain(self) -> None:
        over = time.monotonic() + DRAIN_S
        while trio.from_thread.run(self._host.unfinished):
            if time.monotonic() > over:
                sys.exit(f"the inbox was not worked off in {DRAIN_S:g} s")
            time.sleep(0.2)


def judge(samples: Samples) -> list[Bound]:
    """Pure: the promises of the issue."""
    rate = percentile(samples["nimbus.per_s"], 50) / percentile(samples["floor.per_s"], 50)
    return [
        Bound("accepted / bare insert, p50 of the rounds", rate, RATE_MIN, at_least=True),
        Bound("p99 at half that rate, ms, p50 of the rounds", percentile(samples["half.p99_ms"], 50), P99_MAX_MS),
    ]


async def measure(words: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    bodies = folder / "bodies"
    write_bodies(bodies, words.ours)
    async with open_webhook_host(folder) as host:
        print(f"  hypercorn is process {host.pid}", file=sys.stderr, flush=True)
        rounds = Rounds(host, bodies, words.seconds)
        await trio.to_thread.run_sync(rounds.full)  # warm: nothing of the first requests is measured
        samples = await trio.to_thread.run_sync(
            interleave, {"floor": rounds.floor, "asyncpg": rounds.asyncpg, "nimbus": rounds.full}, words.rounds
        )
        rate = percentile(samples["nimbus.per_s"], 50) / 2
        halves = await trio.to_thread.run_sync(interleave, {"half": lambda: rounds.half(rate)}, words.rounds)
        return samples | halves


def parse_words(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measure of a round")
    parser.add_argument("--ours", type=float, default=OURS, help="share of the jobs that are ours")
    return parser.parse_args(words)


def main() -> int:
    """Measure, write, judge."""
    words = parse_words()
    if shutil.which("wrk") is None:
        sys.exit("bench-webhook needs wrk: apt-get install wrk")
    quiet_events()
    with tempfile.TemporaryDirectory(prefix="nimbus-bench-webhook-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the database's own user passes through
        samples = trio.run(measure, words, folder)
    aim = percentile(samples["nimbus.per_s"], 50) / percentile(samples["floor.per_s"], 50)
    print(f"accepted / bare insert: {aim:.2f}; the aim, no bound, is {RATE_AIM:g}\n")
    facts = {
        "workers": WORKERS, "pool_of_each": POOL_SIZE, "connections": CONNECTIONS, "body_bytes": BODY_BYTES,
        "share_of_ours": words.ours, "seconds": words.seconds,
    }  # fmt: skip
    return finish("webhook", samples, judge(samples), facts=facts, plotted=["half.p99_ms", "half.p50_ms"])


if __name__ == "__main__":
    sys.exit(main())
