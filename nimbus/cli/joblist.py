"""`nimbus jobs list`, `why` and `events`: what there is, why a job waits, and what happened to it, over the API.

Lists come page by page, so a long one begins at once; `--json` writes one object a line. Holds no rule of the business.
Called by jobs.py, whose group these commands join.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

import click
import httpx2

from nimbus.cli.access import choose_token
from nimbus.cli.jobpage import HEAD, Job, row
from nimbus.cli.plane import call, connection_options, print_json, run_with
from nimbus.cli.tables import cell, render_table, sentence, terminal_width
from nimbus.model.errors import Refused
from nimbus.model.job import JobSource, Learned
from nimbus.runtime.retry import Backoff, retry_unavailable
from nimbus.wire.tokens import Audience

PAGE = 200  # what the API gives at once, at most
PAGE_ATTEMPTS = 5
_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command(name="list")
@connection_options
@click.option("--state", "states", multiple=True, help="waiting, queued, in_progress, completed, lost; or several.")
@click.option("--source", type=click.Choice(list(JobSource)), default=None, help="Who told us of it.")
@click.option("--org", default=None, help="Nimbus' number of the organisation, or its login.")
@click.option("--repo", default=None, help="Nimbus' number of the repository, or owner/name.")
@click.option("--label", default=None, help="One that it asks for.")
@click.option("--name", default=None, help="What its name begins with.")
@click.option("--conclusion", default=None, help="success, failure, cancelled, timed_out, ...")
@click.option("--learned-by", type=click.Choice(list(Learned)), default=None, help="How it became known.")
@click.option("--since", default=None, help="Queued then or later: 2h, 7d, or 2026-11-21T08:00:00Z.")
@click.option("--until", default=None, help="Queued before then, written alike.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, newest first.")
@click.option("--all", "whole", is_flag=True, help="All of them, page by page.")
def list_jobs(base_url: str, token: str | None, as_json: bool, limit: int, whole: bool, **filters: Any) -> None:
    """Jobs by what they are, the newest first.

    \b
    Examples:
      nimbus jobs list --state queued,in_progress
      nimbus jobs list --org octo-org --conclusion failure --since 24h
      nimbus jobs list --repo octo-org/api --label nimbus-4cpu-8gb --all --json
    """
    query = render_filters(filters, datetime.now(UTC))

    async def show(http: httpx2.AsyncClient) -> Job:
        shown = 0
        async for page in read_pages(http, "/api/jobs", query, "jobs", None if whole else limit):
            shown += len(page)
            if as_json:
                for job in page:
                    click.echo(json.dumps(job))
            elif page:
                click.echo(render_table(HEAD, map(row, page), terminal_width()))
        return {"shown": shown}

    shown = run_with(base_url, partial(choose_token, token, Audience.ADMIN), show)["shown"]
    if not shown and not as_json:
        click.echo("no such job; without filters: nimbus jobs list")


@click.command()
@connection_options
@click.argument("job_id", type=click.IntRange(1))
def why(base_url: str, token: str | None, as_json: bool, job_id: int) -> None:
    """Why a job waits: who must act, its place in the queue, and when its turn may come."""

    async def ask(http: httpx2.AsyncClient) -> Job:
        return await call(http, "GET", f"/api/jobs/{job_id}/wait")

    told = run_with(base_url, choose_token(token, Audience.ADMIN), ask)
    if as_json:
        print_json(told)
    else:
        click.echo(render_table(("JOB", str(told["job_id"])), describe_wait(told), terminal_width()))


@click.command()
@connection_options
@click.argument("job_id", type=click.IntRange(1))
def events(base_url: str, token: str | None, as_json: bool, job_id: int) -> None:
    """What happened to a job and its machines, step by step, and who told it."""

    async def show(http: httpx2.AsyncClient) -> Job:
        lines = []
        async for page in read_pages(http, f"/api/jobs/{job_id}/events", {}, "events", None):
            if as_json:
                for event in page:
                    click.echo(json.dumps(event))
            lines += [describe_event(event) for event in page]
        return {"lines": lines}

    lines = run_with(base_url, choose_token(token, Audience.ADMIN), show)["lines"]
    if not as_json:
        click.echo(render_table(("AT", "WHAT", "STEP", "TOLD BY", "CAUSE"), lines, terminal_width()))


# --- requests ------------------------------------------------------------------------------------------------------


async def read_pages(
    http: httpx2.AsyncClient, path: str, query: dict[str, str], what: str, limit: int | None
) -> AsyncIterator[list[Job]]:
    """Page by page until there are no more, or `limit` have come; a control plane that restarts is waited for."""
    left, cursor = limit, None
    while left is None or left > 0:
        count = PAGE if left is None else min(PAGE, left)
        asked = {**query, "limit": str(count)} | ({} if cursor is None else {"cursor": cursor})
        ask = partial(call, http, "GET", f"{path}?{urlencode(asked)}")
        page = await retry_unavailable(ask, Backoff(), attempts=PAGE_ATTEMPTS)
        yield page[what]
        left = None if left is None else left - len(page[what])
        cursor = page["next"]
        if cursor is None:
            return


# --- values --------------------------------------------------------------------------------------------------------


def render_filters(filters: dict[str, Any], now: datetime) -> dict[str, str]:
    """Pure: the query of a list from the options that were given."""
    query = {name: str(value) for name, value in filters.items() if value is not None and name != "states"}
    if filters["states"]:
        query["state"] = ",".join(filters["states"])
    for name in ("since", "until"):
        if name in query:
            query[name] = parse_moment(query[name], now, f"--{name}").isoformat()
    return query


def parse_moment(text: str, now: datetime, option: str) -> datetime:
    """A moment as people write it: `2h` ago, or in ISO 8601; without a time zone it is this machine's."""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{option} {text!r}: write it like 2h, 7d or 2026-11-21T08:00:00Z") from error


def describe_wait(told: Job) -> list[tuple[str, str]]:
    """The page of a wait."""
    lines = [("waits for" if told["waits"] else "waits for nothing", sentence(told["reason"])), ("code", told["code"])]
    if told["place"] is not None:
        lines.append(("place", f"{told['place']} of {told['length']} of its organisation"))
        lines.append(("ahead", f"{told['ahead']} of the whole queue"))
    if told["estimate_s"] is not None:
        lines.append(("turn comes in", f"about {describe_seconds(told['estimate_s'])}"))
    if told["basis"]:
        lines.append(("estimate", sentence(told["basis"])))
    return lines


def describe_seconds(seconds: float) -> str:
    """A stretch of time with no more digits than an estimate is worth."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def describe_event(event: Job) -> tuple[str, ...]:
    """One line of the ledger."""
    what = "job" if event["about"] == "job" else f"machine {event['machine_id']}#{event['fence']}"
    step = " -> ".join(each for each in (event["state_from"], event["state_to"]) if each)
    if event["conclusion"]:
        step += f": {cell(event['conclusion'])}"
    if event["event"] and event["state_from"] == event["state_to"]:
        step = event["event"]
    who = event["subject"] or event["learned"] or event["agent_id"]
    told = " ".join(each for each in (event["told_by"], who) if each)
    return (event["at"][:23].replace("T", " "), what, step, cell(told), sentence(event["cause"]))
