"""The rows that `make bench-control` works on: a queue, and a history of jobs that ended.

Both are as the control plane leaves them, step by step. A process of its own, because a million rows take longer than
any transaction of the control plane may: arguments are how many ended jobs (negative: leave what is there) and how many
queued ones; the address of the database is in the environment. Started by control.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence

import asyncpg

from nimbus.model.vm import Command, Shape
from nimbus.runtime.postgres import Transaction
from nimbus.wire.vmjson import render_command, render_shape

ORGS = 4
FEW = 100  # ended jobs of a control plane that was started today
FIRST_FENCE, FIRST_MACHINE = 10**9, 2 * 10**9  # unlike any other number in a statement: controlcycles.py relies on it
COMMAND, SHAPE = render_command(Command(("true",))), render_shape(Shape())

_ADD_ORGS = "INSERT INTO orgs (forge, forge_id, login) SELECT 'bench', n, 'org-' || n FROM generate_series(1, $1) n"
_ADD_AGENTS = """
INSERT INTO agents (agent_id, version, boot_id, cpus, mem_mib, labels)
SELECT unnest($1::text[]), '0.1.0', 'bench', 64, 1048576, '{nimbus}'
"""
_CLEAR = "TRUNCATE job_events, machine_events, machines, jobs, offers"

_ENDED_JOBS = """
INSERT INTO jobs (org_id, source, name, state, conclusion, queued_at, started_at, completed_at, learned_by, command)
SELECT (SELECT min(org_id) FROM orgs WHERE forge = 'bench') + n % $2, 'api', 'true', 'completed', 'success',
       t.at, t.at + interval '1 s', t.at + interval '9 s', 'api', $3::jsonb
FROM generate_series(1, $1::bigint) n, LATERAL (SELECT now() - make_interval(secs => 3600 + $1 - n) AS at) t
"""
_ENDED_MACHINES = """
INSERT INTO machines (org_id, kind, job_id, shape, image, command, state, fence, lease_id, agent_id, leased_at,
                      attempts, ending, exit_code, phases, created_at, turn_at, finished_at)
SELECT org_id, 'command', job_id, $1::jsonb, 'base', command, 'done', 1, gen_random_uuid(), 'host-' || job_id % 100,
       queued_at, 1, 'done', 0, '{}', queued_at, queued_at, completed_at
FROM jobs ORDER BY job_id
"""
_MACHINE_STEPS = """
INSERT INTO machine_events (machine_id, at, state_from, state_to, event, fence, agent_id, told_by)
SELECT m.machine_id, m.created_at, s.state_from, s.state_to, s.event, s.fence, m.agent_id, 'agent'
FROM machines m, (VALUES (NULL, 'queued', 'queue', 0), ('queued', 'leased', 'lease', 1),
                         ('leased', 'running', 'start', 1), ('running', 'done', 'finish', 1)
) AS s (state_from, state_to, event, fence)
"""
_JOB_STEPS = """
INSERT INTO job_events (job_id, at, state_from, state_to, conclusion)
SELECT j.job_id, j.queued_at, s.state_from, s.state_to, s.conclusion
FROM jobs j, (VALUES (NULL, 'queued', NULL), ('queued', 'in_progress', NULL), ('in_progress', 'completed', 'success')
) AS s (state_from, state_to, conclusion)
"""
_QUEUE = """
WITH made AS (
    INSERT INTO jobs (org_id, source, name, state, learned_by, command)
    SELECT (SELECT min(org_id) FROM orgs WHERE forge = 'bench') + n % $2, 'api', 'true', 'queued', 'api', $3::jsonb
    FROM generate_series(1, $1::bigint) n
    RETURNING job_id, org_id
), asked AS (
    INSERT INTO machines (org_id, kind, job_id, shape, image, command, fence)
    SELECT org_id, 'command', job_id, $4::jsonb, 'base', $3::jsonb, $5::bigint FROM made ORDER BY job_id
    RETURNING machine_id, fence
)
INSERT INTO machine_events (machine_id, state_to, event, fence) SELECT machine_id, 'queued', 'queue', fence FROM asked
"""


async def add_people(transaction: Transaction, agents: Sequence[str]) -> None:
    """Who asks and who is asked, in an empty database: organisations without caps, hosts with room for everything."""
    await transaction.execute(_ADD_ORGS, ORGS)
    await transaction.execute(_ADD_AGENTS, list(agents))
    await transaction.execute(f"ALTER TABLE machines ALTER machine_id RESTART WITH {FIRST_MACHINE}")


async def fill_history(transaction: Transaction, jobs: int) -> None:
    """So many ended jobs in place of whatever there was, each with its machine and all steps of both.

    Triggers and foreign keys rest meanwhile: they would look at each of some ten million rows.
    """
    await transaction.execute("SET LOCAL session_replication_role = replica")
    await transaction.execute(_CLEAR)
    await transaction.execute(_ENDED_JOBS, jobs, ORGS, COMMAND)
    await transaction.execute(_ENDED_MACHINES, SHAPE)
    await transaction.execute(_MACHINE_STEPS)
    await transaction.execute(_JOB_STEPS)


async def queue_jobs(transaction: Transaction, jobs: int) -> None:
    """So many commands that wait, in turn of all organisations."""
    await transaction.execute(_QUEUE, jobs, ORGS, COMMAND, SHAPE, FIRST_FENCE)


async def prepare(dsn: str, history: int, queued: int) -> None:
    """The tables as a round begins: that history where it is not negative, and a queue."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        if history >= 0:
            async with connection.transaction():
                await fill_history(connection, history)
            await connection.execute("VACUUM (ANALYZE) jobs, machines, machine_events, job_events")
        await queue_jobs(connection, queued)
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def main() -> int:
    asyncio.run(prepare(os.environ["NIMBUS_DATABASE_URL"], int(sys.argv[1]), int(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
