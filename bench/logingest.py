"""The ingest part of `make bench-logs`: rows through HTTP and validation, in turn with the bare engine.

The same rows both ways: bodies of a shipper's size over a connection for each machine, and files of 50,000 rows as
JSONEachRow for logfloor.py. A round's machines are new ones, so that no row is dropped as one that is stored. What the
sender itself costs is measured beside. Called by logs.py.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from bench.loghost import CHECKOUT, DATABASE, TABLE, LogHost, Machine
from bench.logplane import ORGS_STEP
from bench.logsend import Body, Line, open_line, render_bodies, send_bodies, take_rows

FLOOR_ROWS = 50_000  # of an insert
_ORG = 900  # and the next ones are those of the rounds


class IngestRounds:
    """The measures of a round, called from a thread."""

    def __init__(self, host: LogHost, folder: Path, table_sql: str, machines: int, rows_of_each: int) -> None:
        self._host = host
        self._folder = folder
        self._numbers = itertools.count(1)
        (folder / "table.sql").write_text(table_sql)
        self._files = folder / "floor-rows"
        self._files.mkdir()
        self._bodies: list[list[Body]] = []
        floor_rows: list[str] = []
        for job in range(machines):
            rows = take_rows(7, job, rows_of_each)
            self._bodies.append(render_bodies(rows))
            floor_rows += render_stored(Machine(_ORG, _ORG * ORGS_STEP + job), rows)
        self.floor_bytes = sum(map(len, floor_rows)) + len(floor_rows)
        self.body_bytes = sum(len(body.content) for bodies in self._bodies for body in bodies)
        self.rows = len(floor_rows)
        for first in range(0, len(floor_rows), FLOOR_ROWS):
            text = "\n".join(floor_rows[first : first + FLOOR_ROWS]) + "\n"
            (self._files / f"{first:09d}").write_text(text)

    def floor(self) -> dict[str, float]:
        """The bare engine, in a new store."""
        store = self._folder / f"floor-{next(self._numbers)}"
        argv = [sys.executable, "-m", "bench.logfloor", str(store), str(self._folder / "table.sql"), str(self._files)]
        done = subprocess.run(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False)
        shutil.rmtree(store, ignore_errors=True)
        if done.returncode != 0:
            sys.exit("the floor failed")
        told: dict[str, float] = json.loads(done.stdout)
        return told

    def nimbus(self) -> dict[str, float]:
        """The pipeline."""
        told: dict[str, float] = trio.from_thread.run(self._send, _ORG + next(self._numbers))
        return told

    async def _send(self, org_id: int) -> dict[str, float]:
        machines = [Machine(org_id, org_id * ORGS_STEP + job) for job in range(len(self._bodies))]
        before = read_cpu_s(self._host)
        async with AsyncExitStack() as opened:
            lines: list[Line] = []
            for machine in machines:
                token = self._host.machine_token(machine)
                lines.append(await opened.enter_async_context(open_line(self._host.port, token)))
            began, own = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as nursery:
                for line, bodies in zip(lines, self._bodies, strict=True):
                    nursery.start_soon(send_bodies, line, bodies)
            took_s, own_s = time.perf_counter() - began, time.process_time() - own
        after = read_cpu_s(self._host)
        await check_stored(self._host, machines, self.rows)
        each = {name: (after[name] - before[name]) / self.rows * 1e6 for name in after}
        return {
            "per_s": self.rows / took_s,
            "sender_cpu_share": own_s / took_s,
            **{f"{name}_cpu_us_a_row": spent for name, spent in each.items()},
        }


def render_stored(machine: Machine, rows: Sequence[dict[str, object]]) -> list[str]:
    """The same rows as JSONEachRow of the table, with the columns that ingest fills."""
    head = {
        "org_id": machine.org_id, "machine_id": machine.machine_id, "fence": machine.fence, "agent_id": "agent-1",
    }  # fmt: skip
    return [
        json.dumps(
            {
                **head, "seq": row["seq"], "stream": row["stream"], "level": "info", "message": row["message"],
                "ts": f"{int(str(row['ts_ms'])) / 1000:.3f}",
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for row in rows
    ]  # fmt: skip


def read_cpu_s(host: LogHost) -> dict[str, float]:
    """Seconds that each process has used so far."""
    return {"service": process_cpu_s(host.pid), "engine": process_cpu_s(host.engine_pid)}


def process_cpu_s(pid: int) -> float:
    """User and system time of all its threads, to a tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def check_stored(host: LogHost, machines: Sequence[Machine], rows: int) -> None:
    """What was acknowledged is in the table, each row once."""
    org_id = machines[0].org_id
    told = await host.ask(
        f"SELECT count() AS n, uniqExact(machine_id, seq) AS each FROM {DATABASE}.{TABLE} WHERE org_id = {org_id}"  # noqa: S608 - our numbers
    )
    if int(str(told[0]["each"])) != rows:
        sys.exit(f"{rows} rows were acknowledged and {told[0]['each']} are stored")
