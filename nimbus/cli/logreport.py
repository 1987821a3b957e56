"""`nimbus report logs`: how much was printed, by whom and when: counted by the logging pipeline, no line of it shown.

Joins the group of report.py, whose overview takes its numbers from here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click
import trio

from nimbus.cli.joblist import parse_moment
from nimbus.cli.logreading import DEFAULT_URL, LogReader
from nimbus.cli.plane import Reply, print_json
from nimbus.cli.tables import cell, render_table, terminal_width
from nimbus.model.errors import Refused
from nimbus.wire.joboutput import LEVELS

TOP = 10  # steps or jobs that are listed
ORGS_MAX = 20  # that an overview asks for, one by one
_NOT_THE_JOBS = ("agent", "end")  # streams that no job writes
_PLAIN = "info"
_TROUBLE = ("error", "warning")
_LISTS = {"step": ("by_step", "step"), "job": ("jobs", "job_id")}  # what each is called in the answer, and its number

logs_option = click.option(
    "--logs-url", envvar="NIMBUS_LOGS_URL", default=DEFAULT_URL, show_default=True, help="Logging pipeline."
)


@click.command(name="logs")
@logs_option
@click.option("--job-id", type=click.IntRange(1), default=None, help="Whose output.")
@click.option("--org", type=click.IntRange(1), default=None, help="All jobs of an organisation, by Nimbus' number.")
@click.option("--repo", type=click.IntRange(1), default=None, help="All jobs of a repository, by Nimbus' number.")
@click.option("--since", metavar="WHEN", default=None, help="Printed then or later: 20m, 2h, 2026-11-21T08:00:00Z.")
@click.option("--until", metavar="WHEN", default=None, help="Printed before then, written alike.")
@click.option("--limit", type=click.IntRange(1, 1000), default=TOP, show_default=True, help="Steps or jobs listed.")
@click.option("--token", default=None, help="A JWT; left out, one is minted from NIMBUS_JWT_SECRET.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")
def report_logs(logs_url: str, token: str | None, as_json: bool, limit: int, **given: Any) -> None:
    """How much was printed: lines, bytes, levels, streams, and the steps or jobs that printed most.

    \b
    Examples:
      nimbus report logs --job-id 12
      nimbus report logs --org 3 --since 24h
    """
    path, query = plan_counts(given, limit, datetime.now(UTC))
    told = trio.run(collect_counts, LogReader(logs_url, token), path, query)
    if as_json:
        print_json(told)
        return
    whose = next((name, value) for name, value in given.items() if value is not None)
    head = (f"OUTPUT OF {whose[0].removesuffix('_id').upper()}", str(whose[1]))
    click.echo(render_table(head, describe_counts(told, limit), terminal_width()))


def plan_counts(given: dict[str, Any], limit: int, now: datetime) -> tuple[str, dict[str, str]]:
    """The path and query of the counts that were asked for."""
    named = [name for name in ("job_id", "org", "repo") if given[name] is not None]
    if not named:
        raise Refused("give --job-id, --org or --repo; jobs are listed by: nimbus jobs recent")
    if "job_id" in named and len(named) > 1:
        raise Refused("--job-id stands alone: a job is of one repository and one organisation")
    query = {
        name: parse_moment(given[name], now, f"--{name}").isoformat() for name in ("since", "until") if given[name]
    }
    if given["job_id"] is not None:
        return f"/logs/jobs/{given['job_id']}/counts", query
    return "/logs/counts", query | {name: str(given[name]) for name in named} | {"limit": str(limit)}


async def collect_counts(reader: LogReader, path: str, query: dict[str, str]) -> Reply:
    """What the logging pipeline counts."""
    async with reader.open() as http:
        return await reader.get(http, path, query)


async def collect_orgs(reader: LogReader, orgs: Iterable[int], since: str) -> Reply:
    """The counts of several organisations as one."""
    lines, size, levels = 0, 0, Counter[str]()
    async with reader.open() as http:
        for org in orgs:
            told = await reader.get(http, "/logs/counts", {"org": str(org), "since": since, "limit": "1"})
            lines, size = lines + told["lines"], size + told["bytes"]
            levels.update(told["by_level"])
    return {"lines": lines, "bytes": size, "by_level": dict(levels)}


def describe_counts(told: Reply, limit: int) -> list[tuple[str, str]]:
    """The counts as lines of a table."""
    page = [*describe_sum(told)]
    streams = {name: count for name, count in told["by_stream"].items() if name not in _NOT_THE_JOBS}
    page.append(("streams", _join(streams) or "none"))
    if told["first_ms"] is not None:
        page.append(("printed over", f"{(told['last_ms'] - told['first_ms']) / 1000:.1f} s"))
    for what, (name, number) in _LISTS.items():
        listed: list[Reply] = told.get(name, [])
        most = sorted(listed, key=lambda each: -int(each["lines"]))[:limit]
        page += [(f"{what} {each[number]}", _list(each)) for each in most]
    return page


def describe_sum(told: Reply) -> list[tuple[str, str]]:
    """Lines, bytes, and what stands out."""
    page = [("lines", str(told["lines"])), ("bytes", str(told["bytes"]))]
    levels = {name: told["by_level"].get(name, 0) for name in LEVELS if name != _PLAIN}
    if any(levels.values()):
        page.append(("levels", _join(levels)))
    return page


def _list(each: Reply) -> str:
    trouble = _join({name: each["by_level"].get(name, 0) for name in _TROUBLE})
    return f"{each['lines']} lines, {each['bytes']} bytes" + (f", {trouble}" if trouble else "")


def _join(counts: dict[str, Any]) -> str:
    return ", ".join(f"{cell(name)} {count}" for name, count in counts.items() if count)
