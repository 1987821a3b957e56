"""Two control planes behind one address, three agents, and somebody who kills planes and Redis while jobs run.

All are processes of the test's own; only the guests' insides are left out (the fake VMM). Judges nothing:
controlverdict.py does. One thread launches and kills, because a process ends with the thread that started it. Called
by test_control_storm.py and test_flood.py.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.acceptance.controlload import Load
from tests.acceptance.fleet import Agent, Fleet, Room, running_fleet
from tests.acceptance.relay import Relay, running_relay
from tests.acceptance.stack import LIMIT_S, wait_until
from tests.services import PostgresServer, RedisServer, free_port

AGENTS = ("north", "south", "east")
SETTLE_S = 600.0  # for all jobs of a storm, on two cores that others use as well
TICK_S = 0.05
AWAY_S, PAUSE_S = (0.0, 3.0), (0.5, 5.0)
NOT_LIMITED = "1000000000"
SETTINGS = {
    "NIMBUS_JOB_LEASE_TTL": "20",
    "NIMBUS_JOB_MAX_ATTEMPTS": "20",  # a storm is no reason to give up
    "NIMBUS_ORG_JOB_RATE_LIMIT": NOT_LIMITED,
    "NIMBUS_GITHUB_API_URL": "http://127.0.0.1:9",
}
HOST = {
    "NIMBUS_AGENT_CPU_OVERCOMMIT": "4",
    "NIMBUS_AGENT_DISK_OVERCOMMIT": "64",
    "NIMBUS_DISK_RESERVE_MIB": "256",
    "NIMBUS_VM_SHUTDOWN_GRACE": "2",
}


# Orgs come with GitHub's installations; these never had any.
_NEW_ORGS = """INSERT INTO orgs (forge, forge_id, login)
    VALUES ('github', 1, 'octo-org'), ('github', 2, 'acme'), ('github', 3, 'umbrella') RETURNING org_id"""


@dataclass
class Site:
    """All of it, running."""

    fleet: Fleet  # its address is the relay's
    planes: list[Room]
    relay: Relay
    agents: list[Agent]
    server: PostgresServer
    dsn: str
    orgs: list[int]

    def ask_database(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query, by psql: this process must not load the database bridge."""
        return query_rows(self.server, self.dsn, query)


def query_rows(server: PostgresServer, dsn: str, query: str) -> list[dict[str, Any]]:
    """What the one `json_agg` of the query holds."""
    return list(json.loads(_psql(server, dsn, query).strip() or "null") or [])


def _psql(server: PostgresServer, dsn: str, query: str) -> str:
    argv = [str(server.bin / "psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", dsn, "-c", query]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout


@contextmanager
def running_site(
    folder: Path, server: PostgresServer, dsn: str, redis_url: str, names: tuple[str, ...] = AGENTS, **host: str
) -> Iterator[Site]:
    """Two planes, a relay, these agents. At the end every agent leaves in good order, and a clean host."""
    ports = [free_port(), free_port()]
    orgs = _make_orgs(server, dsn)
    with ExitStack() as stack:
        relay = stack.enter_context(running_relay(ports))
        own = {**SETTINGS, "NIMBUS_PUBLIC_BASE_URL": relay.url}
        fleet = stack.enter_context(running_fleet(folder, dsn, redis_url, logs=False, port=str(ports[0]), **own))
        second = stack.enter_context(_running_second(fleet.plane, ports[1], folder))
        fleet = replace(fleet, env={**fleet.env, "NIMBUS_CONTROL_PLANE_URL": relay.url})
        agents = [stack.enter_context(fleet.agent(name, "fake", **{**HOST, **host})) for name in names]
        yield Site(fleet, [fleet.plane, second], relay, agents, server, dsn, orgs)


@contextmanager
def _running_second(first: Room, port: int, folder: Path) -> Iterator[Room]:
    env = {**first.env, "NIMBUS_CONTROL_PLANE_BIND": f"0.0.0.0:{port}"}
    room = Room(first.module, env, f"http://127.0.0.1:{port}/readyz", folder / "plane2.log")
    room.start()
    try:
        yield room
    finally:
        if room.is_running():
            room.stop(signal.SIGTERM)


def _make_orgs(server: PostgresServer, dsn: str) -> list[int]:
    return [int(line) for line in _psql(server, dsn, _NEW_ORGS).split()]


# --- who is killed ------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """What is killed and comes back: one process, or several in turn."""

    name: str
    kill: Callable[[], None]
    launch: Callable[[], None]
    answers: Callable[[], bool]
    rng: random.Random
    kills: int = 0
    jobs_met: list[int] = field(default_factory=list)  # unfinished ones at each kill
    _is_up: bool = True
    _launched: bool = True
    _next_at: float = field(default_factory=time.monotonic)

    @property
    def is_up(self) -> bool:
        return self._is_up

    def tend(self, unfinished: int) -> None:
        """The next step when its time has come: kill where jobs are unfinished, launch, see it answer."""
        if time.monotonic() < self._next_at:
            return
        if not self._launched:
            self.launch()
            self._launched = True
        elif not self._is_up:
            if self.answers():
                self._is_up = True
                self._next_at = time.monotonic() + self.rng.uniform(*PAUSE_S)
        elif unfinished:
            self.kill()
            self.kills += 1
            self.jobs_met.append(unfinished)
            self._is_up = self._launched = False
            self._next_at = time.monotonic() + self.rng.uniform(*AWAY_S)


def target_planes(planes: list[Room], rng: random.Random) -> Target:
    """One plane after the other: the next is killed only when the last one answers again."""
    first, *others = planes
    turn = [*others, first]

    def kill() -> None:
        turn.append(turn.pop(0))
        turn[-1].kill()

    def launch() -> None:
        turn[-1].launch()

    def answers() -> bool:
        return turn[-1].answers()

    return Target("plane", kill, launch, answers, rng)


def target_redis(redis: RedisServer, rng: random.Random) -> Target:
    """It saves nothing: each time it comes back empty."""

    def kill() -> None:
        assert redis.process is not None
        redis.process.kill()
        redis.process.wait(LIMIT_S)

    return Target("Redis", kill, redis.start, lambda: True, rng)


def rage(load: Load, targets: list[Target], kills: int) -> float:
    """Until each was killed so often and every job has ended; the seconds that took."""
    began = time.monotonic()
    while not load.is_done:
        assert time.monotonic() < began + SETTLE_S, f"{load.ended} of {len(load.plans)} ended: {dict(load.answers)}"
        for target in targets:
            target.tend(load.unfinished)
        if all(target.kills >= kills for target in targets):
            load.release()
        time.sleep(TICK_S)
    took_s = time.monotonic() - began
    for target in targets:
        while not target.is_up:
            target.tend(0)
            time.sleep(TICK_S)
    return took_s


def roll(load: Load, planes: list[Room], rounds: int) -> list[tuple[int, float]]:
    """SIGTERM for one plane after the other, each back before the next; exit status and seconds of each."""
    told = []
    for _ in range(rounds):
        for plane in planes:
            assert load.unfinished > 0
            told.append(plane.stop(signal.SIGTERM))
            plane.start()
    load.release()
    return told


def settle(site: Site) -> None:
    """Every record gone from the agents' ledgers, and no machine waits or works."""
    wait_until(lambda: not any(site.fleet.machines()[s] for s in ("queued", "leased", "running")), "an idle queue")
    for agent in site.agents:
        wait_until(lambda one=agent: not one.records(), f"the empty ledger of {agent.env['NIMBUS_AGENT_ID']}")  # type: ignore[misc]
