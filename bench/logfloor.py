"""The engine's own rate: `python -m bench.logfloor FOLDER TABLE_SQL BODIES`, in a process of its own.

Inserts what is in the folder BODIES, files of 50,000 rows as JSONEachRow, into a table that is made by the statement
in the file TABLE_SQL, by the library and nothing else, one after the other. Prints rows a second as JSON. Started by
logingest.py.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import chdb.state.sqlitelike as chdb_session

from bench.loghost import DATABASE, TABLE


def insert_all(folder: Path, table_sql: str, files: list[Path]) -> dict[str, float]:
    """How fast they went in."""
    connection = chdb_session.Connection(str(folder))
    connection.query(f"CREATE DATABASE {DATABASE} ENGINE = Atomic")
    connection.query(table_sql)
    bodies = [file.read_bytes() for file in files]
    began, cpu = time.perf_counter(), _cpu_s()
    for body in bodies:
        with connection.send_insert(f"INSERT INTO {DATABASE}.{TABLE}", "JSONEachRow") as inserter:
            inserter.append(body)
            inserter.finish()
    took_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu
    count = connection.query(f"SELECT count() FROM {DATABASE}.{TABLE}", "TSV").bytes()  # noqa: S608 - our words
    connection.close()
    return {"per_s": int(count) / took_s, "cpu_us_a_row": cpu_s / int(count) * 1e6}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    told = insert_all(Path(sys.argv[1]), Path(sys.argv[2]).read_text(), sorted(Path(sys.argv[3]).iterdir()))
    print(json.dumps(told))
