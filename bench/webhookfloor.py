"""The floor of `make bench-webhook`: the bare insert of the same rows over one asyncpg pool, and nothing else.

A process of its own, started by webhook.py: arguments are the file of signed bodies, the pool's size, a prefix for the
GUIDs and how many seconds; the address of the database is in the environment. Prints one line of JSON.
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

INSERT = """
INSERT INTO deliveries (guid, event, action, body, installation_id, received_at, due_at, state)
VALUES ($1, 'workflow_job', 'queued', $2, 1, clock_timestamp(), clock_timestamp(), 'ignored')
ON CONFLICT (guid) DO NOTHING
"""  # settled from the start, so that no inbox works on it


async def measure(bodies: list[bytes], size: int, prefix: str, seconds: float) -> float:
    """Rows a second, each with a commit of its own, by as many tasks as there are connections."""
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


def main() -> int:
    file, size, prefix, seconds = sys.argv[1:]
    bodies = [line.split(b"\t", 1)[1] for line in Path(file).read_bytes().splitlines()]
    print(json.dumps({"per_s": asyncio.run(measure(bodies, int(size), prefix, float(seconds)))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
