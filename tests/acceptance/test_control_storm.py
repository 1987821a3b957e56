"""Control planes and Redis are killed, or restarted in good order, under load: every job ends once, as it must.

`make test-control-storm` runs these and test_flood.py alone, and shows their figures; NIMBUS_TEST_CONTROL_STORM_JOBS
sends another number of jobs.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.acceptance.controlload import Load, plan_jobs
from tests.acceptance.controlstorm import (
    Site,
    Target,
    rage,
    roll,
    running_site,
    settle,
    target_planes,
    target_redis,
)
from tests.acceptance.controlverdict import describe, gather, judge
from tests.acceptance.fleet import show
from tests.acceptance.stack import wait_until
from tests.services import PostgresServer, RedisServer

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.slow]

ASKED = os.environ.get("NIMBUS_TEST_CONTROL_STORM_JOBS")
JOBS, ROLLED = int(ASKED or 500), int(ASKED or 150)
KILLS = 6  # of each kind at least
ROUNDS = 3
IN_FLIGHT = 40
SEED = 6
# what a client may see of a rolling restart; the last where a kept connection ended as its request was on the way
HEALED = {"200", "201", "503", "ConnectError", "RemoteProtocolError"}


def plan_load(site: Site, folder: Path, jobs: int, kept_back: int) -> Load:
    marks = folder / "marks"
    marks.mkdir()
    secret = site.fleet.env["NIMBUS_JWT_SECRET"]
    plans = plan_jobs(jobs, site.orgs, random.Random(SEED))
    return Load(site.relay.url, secret, plans, marks, IN_FLIGHT, kept_back)


def told_wrong(site: Site) -> list[str]:
    """What the planes and agents said that no death of others may bring about."""
    rooms = [*site.planes, *site.agents]
    lines = [line for room in rooms for line in room.log.read_text(errors="replace").splitlines()]
    return [line[:600] for line in lines if "Traceback" in line or '"level": "error"' in line]


def describe_kills(targets: list[Target]) -> str:
    return ", ".join(f"{each.name} killed {each.kills} times, with {each.jobs_met} jobs" for each in targets)


def describe_relay(site: Site) -> str:
    given = [site.relay.given.get(port, 0) for port in site.relay.ports]
    return f"connections by plane {given}, {site.relay.turned_away} met none"


def test_every_job_ends_once_and_right_while_planes_and_redis_are_killed(
    tmp_path: Path, postgres_server: PostgresServer, database_dsn: str, redis_server: RedisServer
) -> None:
    with running_site(tmp_path, postgres_server, database_dsn, redis_server.url) as site:
        load = plan_load(site, tmp_path, JOBS, JOBS // 3)
        targets = [
            target_planes(site.planes, random.Random(SEED)),
            target_redis(redis_server, random.Random(SEED + 1)),
        ]
        with load.running():
            took_s = rage(load, targets, KILLS)
            settle(site)
        found = gather(site, load)
        show(f"{took_s:.0f} s; {describe_kills(targets)}; {describe_relay(site)}; {describe(found, load)}")
        assert load.wrong == []
        assert judge(found) == []
        assert min(target.kills for target in targets) >= KILLS
        assert told_wrong(site) == []


def test_a_rolling_restart_loses_nothing_and_clients_see_nothing_that_a_retry_does_not_heal(
    tmp_path: Path, postgres_server: PostgresServer, database_dsn: str, redis_url: str
) -> None:
    with running_site(tmp_path, postgres_server, database_dsn, redis_url) as site:
        load = plan_load(site, tmp_path, ROLLED, ROLLED // 2)
        with load.running():
            wait_until(lambda: load.ended > 0, "the first job's end")
            stops = roll(load, site.planes, ROUNDS)
            wait_until(lambda: load.is_done, "the end of every job", 600)
            settle(site)
        found = gather(site, load)
        longest_s = max(took_s for _, took_s in stops)
        stopped = f"{len(stops)} restarts, the longest stop {longest_s:.1f} s"
        show(f"{stopped}; {describe_relay(site)}; {describe(found, load)}")
        assert [status for status, _ in stops] == [0] * (2 * ROUNDS)
        assert load.wrong == []
        assert {answer.rpartition(": ")[2] for answer in load.answers} <= HEALED
        assert judge(found) == []
        assert found.steps["expire"] == 0
        assert told_wrong(site) == []
