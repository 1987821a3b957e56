"""A storm of SIGKILLs over real processes: jobs by the API, two agents, one control plane, each killed again and again.

    python -m tests.faults.storm --jobs 100 --vmm fake --every 5 --kills 8 [--seed N] [--json]

Ends when every process was killed so often and every job has its end; then all that was seen is judged (reckoning.py):
the control plane's trace, replayed through the lease's model too, the jobs' own marks, the stored output and what is
left on the host. The last line says it; exit status 1 where anything is otherwise. Logs stay where something was.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.acceptance.fleet import Fleet, running_fleet
from tests.acceptance.gate import GUEST_PORT
from tests.faults.aftermath import Found, judge, render_table, stop_and_look, summarize, to_json
from tests.faults.marks import listening_witness
from tests.faults.office import Office
from tests.faults.raging import Storm, StormOrder, say
from tests.faults.reckoning import PLANE
from tests.faults.victims import Victim, plan_absences
from tests.faults.workload import plan_jobs
from tests.services import PostgresServer, open_postgres, open_redis, open_schema

TTL_S = 20.0
OVERCOMMIT = {"fake": "2", "qemu": "1"}  # a guest under software emulation wants a CPU of its own to boot
LONGEST_S = {"fake": 12.0, "qemu": 40.0}  # few jobs and many kills: each kill shall meet jobs at work
ATTEMPTS = 20  # a storm is no reason to give up: each job may lose its host as often as the storm likes


def run_storm(order: StormOrder, folder: Path) -> Found:
    """Everything from empty servers to the verdict. Leaves logs and evidence in `folder`."""
    with open_fleet(order, folder) as (server, dsn, fleet), ExitStack() as agents:
        marks = folder / "marks"
        port = agents.enter_context(listening_witness(marks))
        settings = {
            "NIMBUS_AGENT_CPU_OVERCOMMIT": OVERCOMMIT[order.backend],
            "NIMBUS_AGENT_DISK_OVERCOMMIT": "64",
            "NIMBUS_DISK_RESERVE_MIB": "256",
            "NIMBUS_VM_SHUTDOWN_GRACE": "2",
            "NIMBUS_GUEST_PORTS": f"{GUEST_PORT}=127.0.0.1:{port}",
        }
        rooms = [agents.enter_context(fleet.agent(name, order.backend, **settings)) for name in ("north", "south")]
        rng = random.Random(order.seed)
        named = [(PLANE, fleet.plane), *((room.env["NIMBUS_AGENT_ID"], room) for room in rooms)]
        victims = [Victim(name, room, plan_absences(order.kills, TTL_S, rng)) for name, room in named]
        office = Office(
            fleet.env["NIMBUS_CONTROL_PLANE_URL"], fleet.env["NIMBUS_LOGS_URL"], fleet.env["NIMBUS_JWT_SECRET"]
        )
        storm = Storm(order, fleet, office, victims, marks, rng, plan_jobs(order.jobs, LONGEST_S[order.backend], rng))
        try:
            storm.rage()
            storm.settle()
            storm.look()
            found = judge(storm, server, dsn, folder, TTL_S)
        finally:
            for room in rooms:
                shutil.copy(room.log, folder / f"{room.env['NIMBUS_AGENT_ID']}.log")
        found.leaks = [f"{room.env['NIMBUS_AGENT_ID']}: {leak}" for room in rooms for leak in stop_and_look(room)]
        return found


@contextmanager
def open_fleet(order: StormOrder, folder: Path) -> Iterator[tuple[PostgresServer, str, Fleet]]:
    """Servers, control plane and pipeline of the storm's own."""
    settings = {
        "NIMBUS_JOB_LEASE_TTL": f"{TTL_S:g}",
        "NIMBUS_JOB_MAX_ATTEMPTS": str(ATTEMPTS),
        "NIMBUS_ORG_JOB_RATE_LIMIT": "10000",
    }
    with (
        open_postgres() as server,
        open_redis() as redis,
        open_schema(server) as dsn,
        running_fleet(folder, dsn, redis.url, logs=True, **settings) as fleet,
    ):
        yield server, dsn, fleet


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.faults.storm")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--vmm", choices=("fake", "qemu"), default="fake")
    parser.add_argument("--every", type=float, default=5.0, help="seconds from one SIGKILL to the next")
    parser.add_argument("--kills", type=int, default=8, help="of each process at least")
    parser.add_argument("--seed", type=int, help="the same jobs, victims and absences again")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    order = StormOrder(asked.jobs, asked.vmm, asked.every, asked.kills, seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of all that is open
    folder = Path(tempfile.mkdtemp(prefix="nimbus-storm-"))
    say(f"storm: seed {seed}, evidence in {folder}")
    found = run_storm(order, folder)
    for line in [json.dumps(to_json(found))] if asked.json else [*render_table(found), summarize(found)]:
        say(line)
    if found.good:
        shutil.rmtree(folder)
    sys.exit(0 if found.good else 1)


if __name__ == "__main__":
    main()
