"""The reading part of `make bench-logs`: pages of a job's log and searches of an org, over millions of rows.

The rows come in as all do, by POST /ingest, and nothing comes in while reading is measured, by GET as well. What is
searched for is drawn from the rows of the one large org: words that stand in one line, in some, in many, and in none.
Called by logs.py.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlencode

import trio

from bench.loghost import DATABASE, ENGINE_PASSWORD, ENGINE_USER, TABLE, LogHost, Machine
from bench.logingest import render_stored
from bench.loglines import JobOutput
from bench.logplane import ORGS_STEP
from bench.logsend import Line, Reply, number_lines, open_line, render_bodies, send_bodies
from nimbus.logging_pipeline.reading.cursor import parse_cursor
from nimbus.logging_pipeline.reading.scopes import DEFAULT_ROWS
from nimbus.logging_pipeline.rows import ReadScope
from nimbus.logging_pipeline.store.pages import plan_page

ORG = 1  # the one that is searched
SEED = 11
_AT_ONCE = 8
_SETTLE_S = 180.0
_OTHERS = 8  # orgs that share what is not the large one's


@dataclass
class Loaded:
    """What is in the store, and what it was as JSON."""

    machines: list[Machine]
    job_rows: int
    wire_bytes: int = 0
    stored_json_bytes: int = 0
    took_s: float = 0.0
    disk_bytes: int = 0
    parts: int = 0

    @property
    def rows(self) -> int:
        return len(self.machines) * self.job_rows


def plan_machines(rows: int, org_rows: int, job_rows: int) -> list[Machine]:
    """The large org's machines and the others', mixed as they come in."""
    large = [Machine(ORG, ORG * ORGS_STEP + job) for job in range(org_rows // job_rows)]
    others = [
        Machine(org_id := ORG + 1 + job % _OTHERS, org_id * ORGS_STEP + job)
        for job in range((rows - org_rows) // job_rows)
    ]
    machines = large + others
    random.Random(SEED).shuffle(machines)  # noqa: S311 - the same order each time
    return machines


async def load(host: LogHost, rows: int, org_rows: int, job_rows: int) -> Loaded:
    """Bring the rows in, and wait until the engine has merged what it wants to merge."""
    machines = plan_machines(rows, org_rows, job_rows)
    loaded = Loaded(machines, job_rows)
    waiting = iter(machines)
    began = time.perf_counter()

    async def work() -> None:
        for machine in waiting:
            await _load_one(host, machine, loaded)

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(work)
    loaded.took_s = time.perf_counter() - began
    await _settle(host)
    where = f"database = '{DATABASE}' AND table = '{TABLE}' AND active"
    sql = f"SELECT sum(bytes_on_disk) AS disk, count() AS parts, sum(rows) AS n FROM system.parts WHERE {where}"  # noqa: S608 - our words
    told = (await host.ask(sql))[0]
    loaded.disk_bytes, loaded.parts = int(str(told["disk"])), int(str(told["parts"]))
    if int(str(told["n"])) < loaded.rows:
        sys.exit(f"{loaded.rows} rows were acknowledged and {told['n']} are stored")
    return loaded


async def _load_one(host: LogHost, machine: Machine, loaded: Loaded) -> None:
    rows = await trio.to_thread.run_sync(take_job, machine, loaded.job_rows)
    bodies = await trio.to_thread.run_sync(render_bodies, rows)
    async with open_line(host.port, host.machine_token(machine)) as line:
        await send_bodies(line, bodies)
    wire_row = json.dumps(rows[0], ensure_ascii=False, separators=(",", ":"))
    longer = len(render_stored(machine, rows[:1])[0]) - len(wire_row)  # the same for each row of this machine
    wire_bytes = sum(len(body.content) for body in bodies)
    loaded.wire_bytes += wire_bytes
    loaded.stored_json_bytes += wire_bytes + longer * len(rows)


def take_job(machine: Machine, job_rows: int) -> list[dict[str, object]]:
    """All rows of a machine's one job."""
    lines = JobOutput(SEED, machine.machine_id).take(job_rows)
    return list(number_lines(lines, time.time_ns() // 1_000_000 - job_rows * 8))


async def _settle(host: LogHost) -> None:
    """Return once no merge runs: reading is to be measured, not merging."""
    with trio.move_on_after(_SETTLE_S):
        quiet = 0
        while quiet < 5:
            await trio.sleep(1.0)
            merges = await host.ask("SELECT count() AS n FROM system.merges")
            quiet = quiet + 1 if merges[0]["n"] in (0, "0") else 0


def draw_terms(loaded: Loaded, count: int) -> dict[str, list[str]]:
    """What to search for, by kind. Tokens are whole words of letters and digits; the others are parts of such words."""
    draw = random.Random(SEED)  # noqa: S311 - the same terms each time
    mine = [machine for machine in loaded.machines if machine.org_id == ORG]
    traces: list[str] = []
    while len(traces) < count:
        lines = JobOutput(SEED, draw.choice(mine).machine_id).take(loaded.job_rows)
        traces += [line.rpartition("trace=")[2] for line in draw.sample(lines, len(lines)) if "trace=" in line][:8]
    absent = [f"{draw.getrandbits(64):016x}" for _ in range(count)]
    cut = [draw.randrange(9) for _ in range(count)]
    return {
        "token.rare": traces[:count],
        "token.some": ["rustls", "semver", "assertion", "Digest", "Receiving", "revalidated"][:count],
        "token.common": ["deprecated", "GET", "tests", "PASSED", "error", "timeout"][:count],
        "token.absent": absent,
        "substring.rare": [trace[at : at + 8] for trace, at in zip(traces[:count], cut, strict=True)],
        "substring.four": [trace[at : at + 4] for trace, at in zip(traces[:count], cut, strict=True)],
        "substring.common": ["eprecat", "ASSED", "ssert", "imeout", "uild_", "/regi"][:count],
        "substring.absent": ["zq" + each[:6] for each in absent],
        "substring.absent_four": [f"{each[0]}zqx" for each in absent],
    }


async def measure_reading(host: LogHost, loaded: Loaded, pages: int, terms: int) -> dict[str, list[float]]:
    """Milliseconds of each request, by what was asked."""
    samples: dict[str, list[float]] = {}
    async with AsyncExitStack() as opened:
        lines: dict[int, Line] = {}
        for org_id in {machine.org_id for machine in loaded.machines}:
            lines[org_id] = await opened.enter_async_context(open_line(host.port, host.read_token(org_id)))
        login = base64.b64encode(f"{ENGINE_USER}:{ENGINE_PASSWORD}".encode()).decode()
        engine = await opened.enter_async_context(open_line(host.engine_port, login, "Basic"))
        await _read_pages(lines, engine, loaded, pages, samples)
        await _search(lines[ORG], draw_terms(loaded, terms), samples)
    return samples


async def _read_pages(
    lines: Mapping[int, Line], engine: Line, loaded: Loaded, pages: int, samples: dict[str, list[float]]
) -> None:
    """Each job's first page, three that follow by its cursor, a long one, and its end; the first jobs do not count."""
    draw = random.Random(SEED)  # noqa: S311 - the same jobs each time
    for number in range(-5, pages // 4):
        machine = draw.choice(loaded.machines)
        line, after = lines[machine.org_id], ""
        for _ in range(4):
            told = await _get(line, f"/logs/jobs/{machine.machine_id}", {"after": after} if after else {})
            _keep(samples, "page.ms", told.ms, number)
            floor = await _ask_engine(engine, machine, after)
            if floor.content.count(b"\n") != told.content.count(b'"seq":'):
                sys.exit(f"the page after {after!r} is not what the engine tells")
            _keep(samples, "page.floor_ms", floor.ms, number)
            after = str(json.loads(told.content)["next"])
        told = await _get(line, f"/logs/jobs/{machine.machine_id}", {"after": after, "limit": "1000"})
        _keep(samples, "page_of_1000.ms", told.ms, number)
        told = await _get(line, f"/logs/jobs/{machine.machine_id}", {"tail": "200"})
        _keep(samples, "tail.ms", told.ms, number)


async def _ask_engine(engine: Line, machine: Machine, after: str) -> Reply:
    """The same page by the bare engine, which has just read it; nothing else is between."""
    scope = ReadScope(machine.org_id, (machine.machine_id,))
    wanted = plan_page(f"{DATABASE}.{TABLE}", scope, parse_cursor(after), DEFAULT_ROWS).select
    given = {f"param_{name}": str(value) for name, value in wanted.parameters.items()}
    sql = f"{wanted.sql} SETTINGS {', '.join(wanted.settings)}"
    query = urlencode({"default_format": "JSONEachRow", **given})
    told = await engine.post(f"/?{query}", sql.encode())
    if told.status != 200:
        sys.exit(f"the engine refused a page: {told.content[:300]!r}")
    return told


async def _search(line: Line, terms: Mapping[str, Sequence[str]], samples: dict[str, list[float]]) -> None:
    """All kinds in turn, twice, of which the first is not counted: one look would do to have read the disk."""
    longest = max(map(len, terms.values()))
    for number in (-1, 0):
        for index in range(longest):
            for kind, words in terms.items():
                match = kind.partition(".")[0]
                told = await _get(line, "/logs/search", {"q": words[index % len(words)], "match": match})
                found = bool(json.loads(told.content)["hits"])
                if (found and "absent" in kind) or (not found and "rare" in kind):
                    sys.exit(f"a search for {kind} {words[index % len(words)]!r} was answered {told.content[:200]!r}")
                _keep(samples, f"{kind}.ms", told.ms, number)


async def _get(line: Line, path: str, query: Mapping[str, str]):  # type: ignore[no-untyped-def]
    told = await line.get(f"{path}?{urlencode(query)}" if query else path)
    if told.status != 200:
        sys.exit(f"{path} {dict(query)} was answered {told.status}: {told.content[:300]!r}")
    return told


def _keep(samples: dict[str, list[float]], name: str, value: float, number: int) -> None:
    if number >= 0:
        samples.setdefault(name, []).append(value)
