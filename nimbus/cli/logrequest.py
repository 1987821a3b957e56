"""The options of `nimbus logs` as one request: what goes together, its path and query, how it is shown. Asks nobody."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nimbus.cli.joblist import parse_moment
from nimbus.cli.logview import Look, Row
from nimbus.model.errors import Refused

SEARCH = "/logs/search"
SHOWN_STREAMS = ("stdout", "stderr", "console", "agent")  # the row that ends a machine's output is no line
HITS = 100  # of a search that names no job and no limit


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    path: str  # of a job's or a machine's output; of the search without either
    query: dict[str, str]
    limit: int | None
    as_json: bool
    raw: bool
    look: Look
    kept: dict[str, frozenset[str]] = field(default_factory=dict)  # what of a followed stream is shown
    tail: int | None = None

    def shows(self, row: Row) -> bool:
        return all(str(row.get(name)) in values for name, values in self.kept.items())


def check_together(given: Mapping[str, Any]) -> None:
    """Refused for options that do not go together, with what to do instead."""
    named = [name for name in ("job_id", "machine_id") if given[name] is not None]
    if len(named) == 2:
        raise Refused("give either --job-id or --machine-id")
    if not named and given["search"] is None:
        raise Refused(
            "give --job-id or --machine-id; jobs are listed by: nimbus jobs recent; or search in all jobs: "
            "nimbus logs --org N --search TEXT"
        )
    if named and (given["repo"] or given["org"]):
        raise Refused("--repo and --org are for a search in all jobs: leave them out, or leave out the job")
    if not named and not (given["repo"] or given["org"] or given["token"]):
        raise Refused("a search in all jobs needs --org N or --repo N; organisations are listed by: nimbus orgs list")
    ways = [name for name in ("follow", "annotations", "download") if given[name]]
    if len(ways) > 1:
        raise Refused(" and ".join(f"--{way}" for way in ways) + " exclude each other")
    if ways:
        _check_way(ways[0], given, bool(named))
    for name, needed in _BELONGS:
        if given[name] and given[needed] is None:
            raise Refused(f"--{_spell(name)} belongs to --{needed}")
    for one, other in _EXCLUSIVE:
        if given[one] and given[other]:
            raise Refused(f"--{_spell(one)} and --{_spell(other)} exclude each other")
    if given["raw"] and sys.stdout.isatty():
        raise Refused("--raw is not for a terminal, which a job's output could drive: pipe it into a program")


_FITTING = {
    "follow": {"tail", "level", "stream", "step", "timestamps", "color", "raw", "as_json"},
    "annotations": {"color", "as_json", "limit"},
    "download": {"zipped", "timestamps", "color", "as_json"},
}
_ALWAYS = {"logs_url", "job_id", "machine_id", "token", "follow", "annotations", "download"}
_BELONGS = (("substring", "search"), ("zipped", "download"))
_EXCLUSIVE = (("tail", "limit"), ("zipped", "as_json"), ("raw", "as_json"))


def _spell(name: str) -> str:
    return {"as_json": "json", "zipped": "gzip", "job_id": "job-id"}.get(name, name)


def _check_way(way: str, given: Mapping[str, Any], named: bool) -> None:
    if not named or (way == "annotations" and given["job_id"] is None):
        raise Refused(f"--{way} needs --job-id; jobs are listed by: nimbus jobs recent")
    for name, value in given.items():
        if name not in _FITTING[way] | _ALWAYS and value not in (None, False, ()):
            raise Refused(f"--{_spell(name)} and --{way} exclude each other")


def plan_request(given: Mapping[str, Any], now: datetime) -> Wanted:
    """The path and the query of what was asked for, and how it is shown."""
    path, limit = SEARCH, given["limit"]
    if given["job_id"] is not None:
        path = f"/logs/jobs/{given['job_id']}"
    elif given["machine_id"] is not None:
        path = f"/logs/machines/{given['machine_id']}"
    else:
        limit = limit or HITS
    query = {name: str(given[name]) for name in ("repo", "org", "step") if given[name] is not None}
    query |= {name: ",".join(given[name]) for name in ("level", "stream") if given[name]}
    for name in ("since", "until"):
        if given[name] is not None:
            query[name] = parse_moment(given[name], now, f"--{name}").isoformat().replace("+00:00", "Z")
    if given["tail"] is not None and not given["stream"] and not given["as_json"]:
        query["stream"] = ",".join(SHOWN_STREAMS)
    if given["search"] is not None:
        query |= {"q": given["search"], "match": "substring" if given["substring"] else "token"}
    kept = {name: frozenset(given[name]) for name in ("level", "stream") if given[name]}
    if given["step"] is not None:
        kept["step"] = frozenset({str(given["step"])})
    look = choose_look(given["color"], timestamps=given["timestamps"])
    return Wanted(path, query, limit, given["as_json"], given["raw"], look, kept, given["tail"])


def choose_look(colour: bool | None, *, timestamps: bool = False) -> Look:
    """Headings on a terminal or where colours are asked for; colours as told, else where a terminal can show them."""
    terminal = sys.stdout.isatty()
    able = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Look(terminal or bool(colour), able if colour is None else colour, timestamps)


def render_form(given: Mapping[str, Any], *, plain: bool) -> dict[str, str]:
    """The query of a download."""
    form = "jsonl" if given["as_json"] else "gz" if given["zipped"] else "text"
    flags = {"timestamps": given["timestamps"], "plain": plain}
    return {"format": form} | {name: "1" for name, wanted in flags.items() if wanted}
