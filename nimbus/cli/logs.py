"""`nimbus logs`: output of jobs from the logging pipeline: as pages, live, searched, downloaded. No rule lives here.

Options become one request, which `logreading` makes and `logview` shows. Output is hostile text: what could drive the
terminal is taken out, colours stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, ClassVar

import click
import trio

from nimbus.cli.command import LazyGroup
from nimbus.cli.logfile import save_output
from nimbus.cli.logreading import DEFAULT_URL, LogReader
from nimbus.cli.logrequest import SEARCH, SHOWN_STREAMS, Wanted, check_together, plan_request, render_form
from nimbus.cli.logview import AGENT_STREAM, Row, View, render_hit
from nimbus.cli.plane import check_text
from nimbus.wire.joboutput import LEVELS, Annotation
from nimbus.wire.terminaltext import plain_text, show_line

MAX_TAIL = 10_000
NOTHING_FOUND = "nimbus: no such line; to look inside words too: --substring"


class LogsGroup(LazyGroup):
    """`nimbus logs` reads; what else can be done with output is listed here."""

    listed: ClassVar[Mapping[str, tuple[str, str]]] = {
        "migrate": ("nimbus.cli.logmigrate:migrate", "Bring the log store's schema up to date."),
    }


@click.group(cls=LogsGroup, invoke_without_command=True)
@click.option("--logs-url", envvar="NIMBUS_LOGS_URL", default=DEFAULT_URL, show_default=True, help="Logging pipeline.")
@click.option("--job-id", type=click.IntRange(1), help="The output of this job, all its machines.")
@click.option("--machine-id", type=click.IntRange(1), help="The output of this machine.")
@click.option("--repo", type=click.IntRange(1), help="With --search: in this repository, by Nimbus' number.")
@click.option("--org", type=click.IntRange(1), help="With --search: in this organisation, by Nimbus' number.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended and all of its output is here.")
@click.option("--tail", type=click.IntRange(1, MAX_TAIL), help="Begin with the last so many lines.")
@click.option("--limit", type=click.IntRange(1), help="At most this many lines, from the first.")
@click.option("--search", "-s", metavar="TEXT", help="Lines that hold these words, in whatever case.")
@click.option("--substring", is_flag=True, help="With --search: TEXT anywhere in a line, also inside a word.")
@click.option("--since", metavar="WHEN", help="Printed then or later: 20m, 2h, or 2026-11-21T08:00:00Z.")
@click.option("--until", metavar="WHEN", help="Printed before then, written alike.")
@click.option("--level", multiple=True, type=click.Choice(LEVELS), help="Only lines of this level; or of several.")
@click.option("--stream", multiple=True, type=click.Choice(SHOWN_STREAMS), help="Only lines of this stream.")
@click.option("--step", type=click.IntRange(0), help="Only what its Nth group holds; 0: before the first.")
@click.option("--annotations", is_flag=True, help="Errors, warnings and notices, with their files and lines.")
@click.option("--download", metavar="FILE", help="All of it into a file; - is stdout.")
@click.option("--gzip", "zipped", is_flag=True, help="With --download: compressed.")
@click.option("--timestamps", "-t", is_flag=True, help="When each line was printed, in UTC.")
@click.option("--color/--no-color", default=None, help="Colours; left out, on a terminal and nowhere else.")
@click.option("--raw", is_flag=True, help="Each line exactly as it is stored; not on a terminal, which it could drive.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with time, stream, level and number.")
@click.option("--token", help="A JWT; left out, one is minted from NIMBUS_JWT_SECRET.")
@click.pass_context
def logs(context: click.Context, /, **given: Any) -> None:
    """Read, follow, search or download the output of jobs.

    \b
    Examples:
      nimbus logs --job-id 12                         all that it printed
      nimbus logs --job-id 12 --follow                live, until it ends
      nimbus logs --job-id 12 --tail 50 --timestamps
      nimbus logs --job-id 12 --level error --level warning
      nimbus logs --job-id 12 --annotations           what it says is wrong, file by file
      nimbus logs --job-id 12 --search "permission denied"
      nimbus logs --org 3 --search ENOSPC --since 2h  in all jobs of an organisation
      nimbus logs --job-id 12 --download job-12.log
      nimbus logs --machine-id 7 --json --limit 100

    On a terminal groups (::group::) are headings, and errors, warnings and notices stand out. In a pipe each line is as
    the job printed it, without colours.
    """
    if context.invoked_subcommand is not None:
        return
    for name, value in given.items():
        check_text(f"--{name}", value)
    check_together(given)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a line that the terminal's encoding lacks
    reader, wanted = LogReader(given["logs_url"], given["token"]), plan_request(given, datetime.now(UTC))
    if given["download"] is not None:
        plain = given["color"] is False
        trio.run(save_output, reader, wanted.path, given["download"], render_form(given, plain=plain))
    elif given["follow"]:
        trio.run(_follow, reader, wanted)
    elif given["annotations"]:
        trio.run(_show_annotations, reader, wanted)
    elif wanted.path == SEARCH:
        trio.run(_show_hits, reader, wanted)
    else:
        trio.run(_show_pages, reader, wanted)


async def _show_pages(reader: LogReader, wanted: Wanted) -> None:
    view = View(wanted.look)
    if wanted.tail:
        await _show_tail(reader, wanted, view)
        return
    found = 0
    async with aclosing(reader.pages(wanted.path, wanted.query, "rows", wanted.limit)) as pages:
        async for page in pages:
            show_rows(page["rows"], wanted, view)
            found += len(page["rows"])
    if "q" in wanted.query and not found and not wanted.as_json:
        print(NOTHING_FOUND, file=sys.stderr)


async def _show_tail(reader: LogReader, wanted: Wanted, view: View) -> str:
    """The last lines; the place behind them."""
    async with reader.open() as http:
        page = await reader.get(http, wanted.path, wanted.query | {"tail": str(wanted.tail)})
    show_rows(page["rows"], wanted, view)
    return page["next"] or ""


async def _follow(reader: LogReader, wanted: Wanted) -> None:
    """The last lines first, where they were asked for; then all that comes."""
    view = View(wanted.look)
    cursor = await _show_tail(reader, wanted, view) if wanted.tail else ""
    async with aclosing(reader.follow(wanted.path, cursor)) as events:
        async for kind, data in events:
            if kind == "row" and wanted.shows(data):
                show_rows([data], wanted, view)
            elif kind == "gap" and not wanted.as_json:
                print(f"nimbus: {int(data['missing'])} lines are missing here", file=sys.stderr, flush=True)


async def _show_hits(reader: LogReader, wanted: Wanted) -> None:
    found, more, view = 0, False, View(wanted.look)
    before: object = None
    async with aclosing(reader.pages(wanted.path, wanted.query, "hits", wanted.limit)) as pages:
        async for page in pages:
            for hit in page["hits"]:
                if wanted.as_json:
                    sys.stdout.write(json.dumps(hit) + "\n")
                else:
                    before = _show_hit(hit, view, before)
            sys.stdout.flush()
            found, more = found + len(page["hits"]), bool(page["more"])
    if wanted.as_json:
        return
    if not found:
        print(NOTHING_FOUND, file=sys.stderr)
    elif more:
        print(f"nimbus: the newest {found}; older ones: --limit N, --until WHEN", file=sys.stderr)


def _show_hit(hit: Row, view: View, before: object) -> object:
    heading, line = render_hit(hit, view)
    if heading is not None and heading != before:
        sys.stdout.write(f"{heading}\n")
    sys.stdout.write(f"{line}\n")
    return heading


async def _show_annotations(reader: LogReader, wanted: Wanted) -> None:
    view, found = View(wanted.look), 0
    async with aclosing(reader.pages(f"{wanted.path}/annotations", {}, "annotations", wanted.limit)) as pages:
        async for page in pages:
            for entry in page["annotations"]:
                if wanted.as_json:
                    sys.stdout.write(json.dumps(entry) + "\n")
                else:
                    sys.stdout.write("".join(f"{line}\n" for line in view.annotation(parse_entry(entry))))
            sys.stdout.flush()
            found += len(page["annotations"])
    if not found and not wanted.as_json:
        print("nimbus: the job printed no error, warning or notice of its own", file=sys.stderr)


def parse_entry(entry: Row) -> Annotation:
    """An annotation as the pipeline tells it."""
    places = (entry[name] for name in ("line", "end_line", "col", "end_col"))
    return Annotation(entry["level"], entry["message"], entry["title"] or "", entry["file"] or "", *places)


def show_rows(rows: list[Row], wanted: Wanted, view: View) -> None:
    """Rows on stdout; what the agent says about them on stderr."""
    for row in rows:
        if wanted.as_json:
            sys.stdout.write(json.dumps(row) + "\n")
        elif row["stream"] == AGENT_STREAM and not wanted.raw:
            sys.stdout.flush()
            show = show_line if sys.stderr.isatty() else plain_text
            print(show(row["message"]), file=sys.stderr, flush=True)
        else:
            sys.stdout.writelines(f"{line}\n" for line in _lines(row, wanted, view))
    sys.stdout.flush()


def _lines(row: Row, wanted: Wanted, view: View) -> Iterator[str]:
    if not wanted.raw:
        yield from view.lines(row)
    elif row["stream"] in ("stdout", "stderr", "console"):
        yield row["message"]


if __name__ == "__main__":
    from nimbus.cli.command import run_command

    sys.exit(run_command(["logs", *sys.argv[1:]]))
