"""The floors of `make bench-webhook`: the bare insert of the same rows, each with a commit of its own.

`pool` inserts over the pool that a worker has (`runtime/postgres.py`), `asyncpg` over that driver's own on stock
asyncio: what Trio costs lies between them. A process of its own, started by webhook.py: arguments are which, the file
of signed bodies, the pool's size, a prefix for the GUIDs and how many seconds; the address of the database is in the
environment. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

import asyncpg
import trio

from nimbus.runtime.postgres import open_database

INSERT = """
INSERT INTO deliveries (guid, event, action, body, installation_id, received_at, due_at, state)
VALUES ($1, 'workflow_job', 'queued', $2, 1, clock_timestamp(), clock_timestamp(), 'ignored')
ON CONFLICT (guid) DO NOTHING
"""  # settled from the start, so that no inbox works on it


async def insert_by_asyncpg(bodies: list[bytes], size: int, prefix: str, seconds: float) -> float:
    """Rows a second, by as many tasks as there are connections."""
    numbers = itertools.count()
    async with asyncpg.create_pool(os.environ["NIMBUS_DATABASE_URL"], min_size=size, max_size=size) as pool:

        async def insert(until: float) -> int:
            done = 0
            while time.monotonic() < until:
                number = next(numbers)
                await pool.execute(INSERT, f"{prefix}-{number}", bodies[number % len(bodies)])
                done += 1
            return done

        began = time.monotonic()
        done = await asyncio.gather(*(insert(began + seconds) for _ in range(size)))
        return sum(done) / (time.monotonic() - began)


async def insert_by_pool(bodies: list[bytes], size: int, prefix: str, seconds: float) -> float:
    """The same over a pool of Nimbus's own."""
    numbers, done = itertools.count(), itertools.count()
    async with open_database(os.environ["NIMBUS_DATABASE_URL"], size) as database:

        async def insert(until: float) -> None:
            while time.monotonic() < until:
                number = next(numbers)
                await database.fetch(INSERT, f"{prefix}-{number}", bodies[number % len(bodies)])
                next(done)

        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(insert, began + seconds)
        return next(done) / (time.monotonic() - began)


def main() -> int:
    which, file, size, prefix, seconds = sys.argv[1:]
    bodies = [line.split(b"\t", 1)[1] for line in Path(file).read_bytes().splitlines()]
    how = (bodies, int(size), prefix, float(seconds))
    per_s = trio.run(insert_by_pool, *how) if which == "pool" else asyncio.run(insert_by_asyncpg(*how))
    print(json.dumps({"per_s": per_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
