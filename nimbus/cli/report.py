"""`nimbus report`: a snapshot across services on one page: jobs, a job's output, or both with each service's health.

Adds up what the services' own APIs tell and decides nothing. Output for people is a table; `--json` gives the numbers.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import click
import httpx2
import trio

from nimbus.cli.access import choose_token
from nimbus.cli.joblist import read_pages
from nimbus.cli.logreading import DEFAULT_URL as LOGS_URL
from nimbus.cli.logreading import SERVICE as LOGS
from nimbus.cli.plane import SERVICE as PLANE
from nimbus.cli.plane import Reply, call, connection_options, print_json, run_with
from nimbus.cli.tables import cell, render_table, sentence, terminal_width
from nimbus.model.errors import NimbusError
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.wire.tokens import Audience

_LAST = 200  # jobs that a report of jobs adds up
_PAGE_ROWS = 1000
_OURS = frozenset({"agent", "end"})  # streams that no job writes

logs_option = click.option(
    "--logs-url", envvar="NIMBUS_LOGS_URL", default=LOGS_URL, show_default=True, help="Logging pipeline."
)
last_option = click.option("--last", type=click.IntRange(1, 10000), default=_LAST, show_default=True, help="Jobs.")


@click.group()
def report() -> None:
    """Snapshots across services: what waits and runs, how the last jobs went, what a job wrote.

    \b
    Examples:
      nimbus report jobs
      nimbus report logs --job-id 12
      nimbus report overview
    """


@report.command(name="jobs")
@connection_options
@last_option
def report_jobs(base_url: str, token: str | None, as_json: bool, last: int) -> None:
    """What waits and runs now, and how the last jobs went."""

    async def ask(http: httpx2.AsyncClient) -> Reply:
        return await collect_jobs(http, last)

    told = run_with(base_url, choose_token(token, Audience.ADMIN), ask)
    if as_json:
        print_json(told)
    else:
        click.echo(render_table(("JOBS", ""), describe_jobs(told), terminal_width()))


@report.command(name="logs")
@logs_option
@click.option("--job-id", type=click.IntRange(1), required=True, help="Whose output.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Look at so many lines, from the first.")
@click.option("--token", default=None, help="A JWT; left out, one is minted from NIMBUS_JWT_SECRET.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")
def report_logs(logs_url: str, job_id: int, limit: int | None, token: str | None, as_json: bool) -> None:
    """How much a job wrote, to which streams, and when."""
    credential = choose_token(token, Audience.LOGS_READ)

    async def ask() -> Reply:
        async with open_http(logs_url, token=credential) as http:
            return await collect_logs(http, job_id, limit)

    told = trio.run(ask)
    if as_json:
        print_json(told)
    else:
        click.echo(render_table(("OUTPUT OF JOB", str(job_id)), describe_logs(told), terminal_width()))


@report.command()
@connection_options
@logs_option
@last_option
def overview(base_url: str, token: str | None, as_json: bool, logs_url: str, last: int) -> int:
    """Each service's health, and the report of jobs. Status 1 where a service does not answer."""
    credential = choose_token(token, Audience.ADMIN)

    async def ask() -> Reply:
        health = {"control plane": await probe(base_url, PLANE), "logging pipeline": await probe(logs_url, LOGS)}
        if health["control plane"] != "ready":
            return {"services": health, "jobs": None}
        async with open_http(base_url, token=credential) as http:
            return {"services": health, "jobs": await collect_jobs(http, last)}

    told = trio.run(ask)
    if as_json:
        print_json(told)
    else:
        lines = [(name, sentence(state)) for name, state in told["services"].items()]
        click.echo(render_table(("SERVICE", "STATE"), lines, terminal_width()))
        if told["jobs"] is not None:
            click.echo("")
            click.echo(render_table(("JOBS", ""), describe_jobs(told["jobs"]), terminal_width()))
    return 0 if set(told["services"].values()) == {"ready"} else 1


# --- requests ------------------------------------------------------------------------------------------------------


async def collect_jobs(http: httpx2.AsyncClient, last: int) -> Reply:
    """The queue now, and the last jobs added up."""
    status = await call(http, "GET", "/api/status")
    jobs: list[Reply] = []
    async for page in read_pages(http, "/api/jobs", {}, "jobs", last):
        jobs += page
    return {
        "machines": status["machines"],
        "jobs": status["jobs"],
        "oldest_queued_s": status["oldest_queued_s"],
        "hosts": len(status["agents"]),
        "last": add_up(jobs),
    }


async def collect_logs(http: httpx2.AsyncClient, job_id: int, limit: int | None) -> Reply:
    """What stands in a job's output: counted, never shown."""
    lines: Counter[str] = Counter()
    size, first_ms, last_ms = 0, None, None
    left, cursor, more = limit, "", True
    while more and left != 0:
        count = _PAGE_ROWS if left is None else min(_PAGE_ROWS, left)
        with mapped_http_errors(LOGS):
            address = f"/logs/jobs/{job_id}?limit={count}&after={quote(cursor)}"
            page = check_status(await http.get(address), LOGS).json()
        for row in page["rows"]:
            lines[row["stream"]] += 1
            size += 0 if row["stream"] in _OURS else len(row["message"].encode())
            first_ms = row["ts_ms"] if first_ms is None else min(first_ms, row["ts_ms"])
            last_ms = row["ts_ms"] if last_ms is None else max(last_ms, row["ts_ms"])
        cursor, more = page["next"] or "", bool(page["more"])
        left = None if left is None else left - len(page["rows"])
    whole = not more
    return {"lines": dict(lines), "bytes": size, "first_ms": first_ms, "last_ms": last_ms, "whole": whole}


async def probe(url: str, service: str) -> str:
    """Whether a service is ready, in a word, or why not."""
    try:
        async with open_http(url) as http:
            with mapped_http_errors(service):
                check_status(await http.get("/readyz"), service)
    except NimbusError as error:
        return str(error)
    return "ready"


# --- values --------------------------------------------------------------------------------------------------------


def add_up(jobs: Sequence[Reply]) -> Reply:
    """Pure: how these jobs went: their ends, and seconds that they waited and took."""
    ends = Counter(str(job["conclusion"] or job["state"]) for job in jobs if job["state"] in {"completed", "lost"})
    waited = [_between(job["queued_at"], job["started_at"]) for job in jobs if job["started_at"]]
    ran = [job for job in jobs if job["started_at"] and job["completed_at"]]
    took = [_between(job["started_at"], job["completed_at"]) for job in ran]
    sources = Counter(str(job["source"]) for job in jobs)
    counted = {"count": len(jobs), "ends": dict(ends.most_common()), "sources": dict(sources.most_common())}
    return counted | {"waited_s": _spread(waited), "took_s": _spread(took)}


def _between(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _spread(seconds: list[float]) -> Reply | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 3), "p95": round(p95, 3), "most": round(ordered[-1], 3)}


def describe_jobs(told: Reply) -> list[tuple[str, str]]:
    """The report of jobs as lines."""
    lines = [(f"machines {state}", str(count)) for state, count in told["machines"].items() if count]
    lines += [(f"jobs {state}", str(count)) for state, count in told["jobs"].items() if count]
    if told["oldest_queued_s"] is not None:
        lines.append(("oldest in queue", f"{told['oldest_queued_s']:.0f} s"))
    last = told["last"]
    lines.append((f"the last {last['count']}", _join(last["ends"]) or "none has ended"))
    for name, what in (("waited", last["waited_s"]), ("took", last["took_s"])):
        if what is not None:
            numbers = f"{what['median']:.1f} s in the middle, {what['p95']:.1f} s for 95 of 100"
            lines.append((f"they {name}", f"{numbers}, {what['most']:.1f} s at most"))
    return lines


def describe_logs(told: Reply) -> list[tuple[str, str]]:
    """The report of a job's output as lines."""
    lines = [("lines", _join(told["lines"]) or "none"), ("bytes", str(told["bytes"]))]
    if told["first_ms"] is not None:
        lines.append(("written over", f"{(told['last_ms'] - told['first_ms']) / 1000:.1f} s"))
    if not told["whole"]:
        lines.append(("counted", "the first lines only (--limit)"))
    return lines


def _join(counts: dict[str, Any]) -> str:
    return ", ".join(f"{cell(name)} {count}" for name, count in counts.items())


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["report", *sys.argv[1:]]))
