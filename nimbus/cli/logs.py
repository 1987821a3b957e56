"""`nimbus logs`: a job's output from the logging pipeline, as a page or live. Holds no rule of the business.

Output is hostile text: what could drive the terminal is taken out, colours stay. A stream that breaks (a
restart, a token that ran out) goes on from the last line that was shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import click
import httpx2
import trio

from nimbus.cli.access import choose_token
from nimbus.model.errors import NotFound, Refused, Unauthorized, Unavailable
from nimbus.runtime.http import check_status, mapped_http_errors, open_http
from nimbus.runtime.retry import Backoff
from nimbus.wire.terminaltext import show_line
from nimbus.wire.tokens import Audience

SERVICE = "the logging pipeline"
DEFAULT_URL = "http://127.0.0.1:8002"
SILENCE_S = 45.0  # three missed heartbeats: the connection is dead
MAX_TRIES = 10  # in a row, without a line between them: about a minute
_PAGE_ROWS = 1000
Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    path: str
    token: str | None = field(repr=False)
    as_json: bool


@click.command()
@click.option("--logs-url", envvar="NIMBUS_LOGS_URL", default=DEFAULT_URL, show_default=True, help="Logging pipeline.")
@click.option("--job-id", type=click.IntRange(1), default=None, help="The output of this job, all its machines.")
@click.option("--machine-id", type=click.IntRange(1), default=None, help="The output of this machine.")
@click.option("--limit", type=click.IntRange(1), default=None, help="At most this many lines, from the first.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended and all of its output is here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with time, stream and number.")
@click.option("--token", default=None, help="A JWT; left out, one is minted from NIMBUS_JWT_SECRET.")
def logs(
    *,
    logs_url: str,
    job_id: int | None,
    machine_id: int | None,
    limit: int | None,
    follow: bool,
    as_json: bool,
    token: str | None,
) -> None:
    """Read or follow the output of a job.

    \b
    Examples:
      nimbus logs --job-id 12
      nimbus logs --job-id 12 --follow
      nimbus logs --machine-id 7 --json --limit 100
    """
    if (job_id is None) == (machine_id is None):
        raise Refused("give either --job-id or --machine-id; jobs are listed by: nimbus jobs recent")
    if follow and limit is not None:
        raise Refused("--limit and --follow exclude each other")
    path = f"/logs/jobs/{job_id}" if job_id is not None else f"/logs/machines/{machine_id}"
    wanted = Wanted(path, token, as_json)
    choose_token(token, Audience.LOGS_READ)  # a missing credential is told before any connection
    if follow:
        trio.run(_follow, logs_url, wanted)
    else:
        trio.run(_print_pages, logs_url, wanted, limit)


async def _print_pages(url: str, wanted: Wanted, limit: int | None) -> None:
    left, cursor, more = limit, "", True
    async with open_http(url, token=choose_token(wanted.token, Audience.LOGS_READ)) as http:
        while more and left != 0:
            count = _PAGE_ROWS if left is None else min(_PAGE_ROWS, left)
            page = await _get_page(http, f"{wanted.path}?limit={count}&after={quote(cursor)}")
            _print_rows(page["rows"], wanted.as_json)
            cursor, more = page["next"] or "", bool(page["more"])
            left = None if left is None else left - len(page["rows"])


async def _get_page(http: httpx2.AsyncClient, path: str) -> Row:
    with _explained(http), mapped_http_errors(SERVICE):
        response = check_status(await http.get(path), SERVICE)
    page = response.json()
    if not isinstance(page, dict) or not isinstance(page.get("rows"), list):
        raise Unavailable(f"{SERVICE} gave an answer that is none of its own: is {http.base_url} really one?")
    return page


async def _follow(url: str, wanted: Wanted) -> None:
    """Print until the stream says that this was all, connecting again where it breaks."""
    cursor, tries, delays = "", 0, Backoff(base_s=0.3, max_s=10).delays_s()
    while True:
        before, complete = cursor, False
        try:
            async with (
                open_http(url, token=choose_token(wanted.token, Audience.LOGS_READ), read_s=SILENCE_S) as http,
                aclosing(_stream(http, wanted, cursor)) as events,
            ):
                async for kind, event_id, data in events:
                    cursor = event_id or cursor
                    complete = complete or (kind == "end" and data.get("why") == "complete")
                    _print_event(kind, data, wanted.as_json)
            if complete:
                return
            if wanted.token is not None and wanted.token.count(".") == 2:
                raise Unauthorized("the token given by --token ran out: mint a new one to read on")
        except Unavailable:
            tries, delays = (tries + 1, delays) if cursor == before else (1, Backoff(0.3, 10).delays_s())
            if tries >= MAX_TRIES:
                raise
            await trio.sleep(next(delays))


async def _stream(http: httpx2.AsyncClient, wanted: Wanted, cursor: str) -> AsyncGenerator[tuple[str, str, Row], None]:
    """(kind, id, data) of each event of one connection; Unavailable where it breaks."""
    headers = {"Last-Event-ID": cursor} if cursor else {}
    with _explained(http), mapped_http_errors(SERVICE):
        async with http.stream("GET", f"{wanted.path}/follow", headers=headers) as response:
            if response.status_code >= 400:
                await response.aread()
                check_status(response, SERVICE)
            kind, event_id, data, ended = "row", "", "", False
            async for line in response.aiter_lines():  # to its end: an iterator left early is never closed
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    event_id = value
                elif name == "data":
                    data = value
                elif not line and data:
                    yield kind, event_id, json.loads(data)
                    ended = ended or kind == "end"
                    kind, event_id, data = "row", "", ""
    if not ended:
        raise Unavailable(f"{SERVICE} closed the stream")


class _explained:  # noqa: N801 - reads as what it does in a with statement
    """Adds the next command to the errors that a newcomer meets."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._url = http.base_url

    def __enter__(self) -> None:
        """Nothing to open."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NotFound):
            raise NotFound(f"{error}; the newest are listed by: nimbus jobs recent") from error
        if isinstance(error, Unavailable):
            raise Unavailable(f"{error} ({self._url}; start one by: nimbus up)", error.retry_after_s) from error


def _print_event(kind: str, data: Row, as_json: bool) -> None:
    if kind == "row":
        _print_rows([data], as_json)
    elif kind == "gap" and not as_json:
        print(f"nimbus: {data.get('missing')} lines are missing here", file=sys.stderr, flush=True)


def _print_rows(rows: list[Row], as_json: bool) -> None:
    for row in rows:
        if as_json:
            sys.stdout.write(json.dumps(row) + "\n")
        elif row["stream"] == "agent":
            sys.stdout.flush()
            print(show_line(row["message"]), file=sys.stderr, flush=True)
        elif row["stream"] != "end":
            sys.stdout.write(render_line(row))
    sys.stdout.flush()


def render_line(row: Row) -> str:
    """One line of output as it is shown."""
    prefix = "[console] " if row["stream"] == "console" else ""
    return f"{prefix}{show_line(row['message'])}\n"


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["logs", *sys.argv[1:]]))
