"""`make bench-logs`: what the log pipeline takes in, how fast it is read, how small it stays, how soon a line is seen.

Rows go in through HTTP and validation, in turn with the bare engine (logingest.py). Then a store of five million rows
is paged and searched (logread.py), and while it is there, guests print to readers that follow (loglive.py). Everything
shares this host's CPUs: the service, its engine, a control plane's double (loghost.py), and whoever sends or reads. Run
it on a host that is not busy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from bench.frame import RESULTS, Bound, Samples, finish, interleave, percentile
from bench.loghost import DATABASE, TABLE, open_log_host
from bench.logingest import FLOOR_ROWS, IngestRounds
from bench.loglive import measure_live, measure_tails
from bench.logread import load, measure_reading
from bench.logsend import BODY_BYTES
from nimbus.cli.events import quiet_events

INGEST_MIN, INGEST_AIM = 0.40, 0.60
PAGE_OF_FLOOR_MAX = 2.0
PAGE_MAX_MS, TOKEN_MAX_MS, SUBSTRING_MAX_MS = 10.0, 50.0, 300.0
SMALLER_MIN = 8.0
LIVE_MAX_MS = 500.0
GROWTH_MAX, TAIL_MAX_KIB = 1.02, 128.0  # what "flat" means: in a minute of nothing, and what a tail may hold


def judge(samples: Samples) -> list[Bound]:
    """Pure: the promises of the issue. Of kinds of searches the slowest is judged."""
    rate = percentile(samples["nimbus.per_s"], 50) / percentile(samples["floor.per_s"], 50)
    return [
        Bound("ingest / bare engine, rows/s, p50 of rounds", rate, INGEST_MIN, at_least=True),
        Bound("page of a job's log, ms, p95", percentile(samples["page.ms"], 95), PAGE_MAX_MS),
        Bound(
            "page of a job's log / the bare engine's, p50",
            percentile(samples["page.ms"], 50) / percentile(samples["page.floor_ms"], 50),
            PAGE_OF_FLOOR_MAX,
        ),
        Bound("search of an org for a word, ms, p95", _slowest(samples, "token."), TOKEN_MAX_MS),
        Bound("search of an org for a part of a word, ms, p95", _slowest(samples, "substring."), SUBSTRING_MAX_MS),
        Bound("raw JSON / disk, bytes", samples["disk.smaller"][0], SMALLER_MIN, at_least=True),
        Bound("guest's write to a reader's first byte, ms, p99", percentile(samples["live.ms"], 99), LIVE_MAX_MS),
        Bound("memory of the service after / before idling with tails", samples["tails.growth"][0], GROWTH_MAX),
        Bound("memory of an idle tail, KiB", samples["tails.kib_each"][0], TAIL_MAX_KIB),
    ]


def _slowest(samples: Samples, kinds: str) -> float:
    return max(percentile(values, 95) for name, values in samples.items() if name.startswith(kinds))


async def measure_ingest(words: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Rates of both, in turn, into stores of their own."""
    async with open_log_host(folder) as host:
        table_sql = (await host.ask(f"SHOW CREATE TABLE {DATABASE}.{TABLE}"))[0]["statement"]
        rounds = IngestRounds(host, folder, str(table_sql), words.machines, words.lines)
        say(f"{rounds.rows} rows a round, {rounds.body_bytes // rounds.rows} bytes each as they are sent")
        measures = {"floor": rounds.floor, "nimbus": rounds.nimbus}
        warmup = min(1, words.rounds - 1)
        return await trio.to_thread.run_sync(partial(interleave, measures, words.rounds, warmup=warmup))


async def measure_store(words: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Reading, following and idling, beside the rows that are there."""
    async with open_log_host(folder) as host:
        say(f"{words.rows} rows are brought in")
        loaded = await load(host, words.rows, words.org_rows, words.job_rows)
        say(f"{loaded.rows} rows in {loaded.parts} parts are read")
        samples = await measure_reading(host, loaded, words.pages, words.terms)
        say(f"{words.jobs} jobs are followed")
        samples |= await measure_live(host, folder, words.jobs, words.agents, words.prints)
        say(f"{words.tails} tails are idle")
        samples |= await measure_tails(host, words.tails, words.settle_s, words.idle_s)
    return samples | {
        "disk.smaller": [loaded.stored_json_bytes / loaded.disk_bytes],
        "disk.smaller_than_sent": [loaded.wire_bytes / loaded.disk_bytes],
        "load.per_s": [loaded.rows / loaded.took_s],
    }


def say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


def parse_words(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of ingest and of the bare engine")
    parser.add_argument("--machines", type=int, default=50, help="that send at once in a round")
    parser.add_argument("--lines", type=int, default=10_000, help="of each of them")
    parser.add_argument("--rows", type=int, default=5_000_000, help="in the store that is read")
    parser.add_argument("--org-rows", type=int, default=1_000_000, help="of these, of the org that is searched")
    parser.add_argument("--job-rows", type=int, default=20_000, help="of these, of each job")
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--terms", type=int, default=20, help="of each kind that is searched for")
    parser.add_argument("--jobs", type=int, default=200, help="that print and are followed")
    parser.add_argument("--agents", type=int, default=4, help="they run on")
    parser.add_argument("--prints", type=int, default=30, help="lines of each, one a second")
    parser.add_argument("--tails", type=int, default=1000, help="that are idle")
    parser.add_argument("--settle-s", type=float, default=20.0, help="before their memory is read")
    parser.add_argument("--idle-s", type=float, default=60.0, help="until it is read again")
    return parser.parse_args(words)


def take(words: argparse.Namespace, results: Path = RESULTS) -> int:
    """Measure, write, judge."""
    samples: dict[str, list[float]] = {}
    for part in (measure_ingest, measure_store):
        with tempfile.TemporaryDirectory(prefix="nimbus-bench-logs-") as name:
            samples |= trio.run(part, words, Path(name))
    rate = percentile(samples["nimbus.per_s"], 50) / percentile(samples["floor.per_s"], 50)
    print(f"ingest / bare engine: {rate:.2f}; the aim, no bound, is {INGEST_AIM:g}\n")
    facts = {**vars(words), "floor_rows_an_insert": FLOOR_ROWS, "body_bytes": BODY_BYTES}
    plotted = [
        "page.ms",
        "page.floor_ms",
        "tail.ms",
        *(name for name in samples if name.startswith(("token.", "substring."))),
    ]
    return finish("logs", samples, judge(samples), facts=facts, plotted=plotted, results=results)


def main() -> int:
    quiet_events()
    return take(parse_words())


if __name__ == "__main__":
    sys.exit(main())
