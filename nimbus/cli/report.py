"""`nimbus report`: a snapshot across services on one page: jobs, a job's output, or both with each service's health.

Adds up what the services' own APIs tell and decides nothing. Output for people is a table; `--json` gives the numbers.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import httpx2
import trio

from nimbus.cli.access import choose_token
from nimbus.cli.joblist import read_pages
from nimbus.cli.logreading import SERVICE as LOGS
from nimbus.cli.logreading import LogReader
from nimbus.cli.logreport import ORGS_MAX, collect_orgs, describe_sum, logs_option, report_logs
from nimbus.cli.plane import SERVICE as PLANE
from nimbus.cli.plane import Reply, call, connection_options, print_json, run_with
from nimbus.cli.tables import cell, render_table, sentence, terminal_width
from nimbus.model.errors import NimbusError
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.wire.tokens import Audience

_LAST = 200  # jobs that a report of jobs adds up
_LATELY_H = 24

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


report.add_command(report_logs)


@report.command()
@connection_options
@logs_option
@last_option
def overview(base_url: str, token: str | None, as_json: bool, logs_url: str, last: int) -> int:
    """Each service's health, the report of jobs, and how much was printed lately. Status 1 where one is away."""
    credential = choose_token(token, Audience.ADMIN)

    async def ask() -> Reply:
        health = {"control plane": await probe(base_url, PLANE), "logging pipeline": await probe(logs_url, LOGS)}
        if health["control plane"] != "ready":
            return {"services": health, "jobs": None, "logs": None}
        async with open_http(base_url, token=credential) as http:
            jobs = await collect_jobs(http, last)
        output = None
        if health["logging pipeline"] == "ready":
            output = await collect_output(logs_url, token, jobs["orgs"][:ORGS_MAX], datetime.now(UTC))
        return {"services": health, "jobs": jobs, "logs": output}

    told = trio.run(ask)
    if as_json:
        print_json(told)
    else:
        lines = [(name, sentence(state)) for name, state in told["services"].items()]
        click.echo(render_table(("SERVICE", "STATE"), lines, terminal_width()))
        if told["jobs"] is not None:
            click.echo("")
            click.echo(render_table(("JOBS", ""), describe_jobs(told["jobs"]), terminal_width()))
        if told["logs"] is not None:
            click.echo("")
            head = ("OUTPUT", f"of the last {_LATELY_H} hours, of these jobs' organisations")
            click.echo(render_table(head, describe_output(told["logs"]), terminal_width()))
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
        "orgs": sorted({job["org_id"] for job in jobs}),
    }


async def collect_output(logs_url: str, token: str | None, orgs: Sequence[int], now: datetime) -> Reply | str:
    """What these organisations' jobs printed lately; why that is not known, in words, where it is not."""
    try:
        reader = LogReader(logs_url, token)
        return await collect_orgs(reader, orgs, (now - timedelta(hours=_LATELY_H)).isoformat())
    except NimbusError as error:
        return str(error)


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


def describe_output(told: Reply | str) -> list[tuple[str, str]]:
    """What was printed lately as lines, or why that is not known."""
    return [("not known", sentence(told))] if isinstance(told, str) else describe_sum(told)


def _join(counts: dict[str, Any]) -> str:
    return ", ".join(f"{cell(name)} {count}" for name, count in counts.items())


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["report", *sys.argv[1:]]))
