"""An org floods the queue with thousands of jobs: another org's single job waits for one machine's turn at most.

And whoever asks of any of the thousands why it waits is told so, with its place. All by HTTP, as orgs have it, with
two agents of the fake VMM; NIMBUS_TEST_FLOOD_JOBS sends another number.
"""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.controlload import SHAPE, Load, open_client
from tests.acceptance.controlstorm import HOST, Site, running_site
from tests.acceptance.fleet import show
from tests.acceptance.stack import LIMIT_S, wait_until
from tests.services import PostgresServer

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.slow]

FLOOD = int(os.environ.get("NIMBUS_TEST_FLOOD_JOBS") or 5000)
CLIENTS = 4
SINGLES = 5  # one after the other
ASKED = 200
LASTS_S = 3  # a job of the flood: so many at once leave cores to those who are measured
HOSTS = ("north", "south")
CPUS = max(1, len(os.sched_getaffinity(0)) // 2)  # two of them fill a host: a turn is one machine's end, nothing less
FULL = {**HOST, "NIMBUS_AGENT_CPU_OVERCOMMIT": "1", "NIMBUS_CPU_PINNING": "off"}
_GRANTS = """SELECT json_agg(g) FROM
    (SELECT m.job_id, extract(epoch FROM e.at)::float8 AS at
     FROM machine_events e JOIN machines m USING (machine_id) WHERE e.event = 'lease' ORDER BY e.event_id) g"""


@dataclass
class Flood:
    """One org's clients, who all submit at once."""

    load: Load
    org: int
    left: list[int]
    job_ids: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def send(self) -> float:
        """All of it; the seconds that took."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._submit, daemon=True) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5 * LIMIT_S)
        assert self.failed == []
        return time.monotonic() - began

    def _submit(self) -> None:
        try:
            with open_client() as http:
                while self.left:
                    body = {
                        "cmd": f"sleep {LASTS_S}",
                        "idempotency_key": f"flood-{self.left.pop()}",
                        **SHAPE,
                        "cpus": CPUS,
                    }
                    told = self.load.ask(http, "submit", "POST", "/api/jobs", self.org, json=body)
                    self.job_ids.append(told["job_id"])
        except Exception:  # noqa: BLE001 - a thread's end is seen by nobody: the test looks here
            self.failed.append(traceback.format_exc())


@dataclass(frozen=True)
class Single:
    """A job of another org, and when its org was told that it is queued."""

    job_id: int
    confirmed_at: float


def run_single(site: Site, load: Load, org: int, busy: int) -> Single:
    """Submitted when so many machines are held, until it has ended."""
    wait_until(lambda: sum(site.fleet.machines()[state] for state in ("leased", "running")) >= busy, "full hosts")
    with open_client() as http:
        job = {"cmd": "true", **SHAPE, "cpus": CPUS}
        single = Single(load.ask(http, "submit", "POST", "/api/jobs", org, json=job)["job_id"], time.time())
    ended = site.fleet.wait_job(single.job_id, "completed")
    assert ended["conclusion"] == "success", ended
    return single


def count_ahead(grants: list[dict[str, Any]], single: Single) -> tuple[int, float]:
    """How many machines were granted between its confirmation and its own grant, and those seconds."""
    place = [grant["job_id"] for grant in grants].index(single.job_id)
    ahead = [grant for grant in grants[:place] if grant["at"] > single.confirmed_at]
    return len(ahead), max(0.0, grants[place]["at"] - single.confirmed_at)


def ask_waits(load: Load, org: int, job_ids: list[int]) -> tuple[list[dict[str, Any]], list[float]]:
    """What each of these jobs waits for, and the seconds that each answer took."""
    answers, took_s = [], []
    with open_client() as http:
        for job_id in job_ids:
            began = time.monotonic()
            answers.append(load.ask(http, "wait", "GET", f"/api/jobs/{job_id}/wait", org))
            took_s.append(time.monotonic() - began)
    return answers, sorted(took_s)


def test_a_flood_of_one_org_delays_another_by_one_turn_and_any_job_of_it_can_say_why_it_waits(
    tmp_path: Path, postgres_server: PostgresServer, database_dsn: str, redis_url: str
) -> None:
    with running_site(tmp_path, postgres_server, database_dsn, redis_url, ()) as site, ExitStack() as hosts:
        flooding, other, _ = site.orgs
        load = Load(site.relay.url, site.fleet.env["NIMBUS_JWT_SECRET"], [], tmp_path, 0, 0)
        flood = Flood(load, flooding, list(range(FLOOD)))
        sent_s = flood.send()
        for name in HOSTS:  # the cores are the flood's until now
            hosts.enter_context(site.fleet.agent(name, "fake", **FULL))
        room = sum(agent["cpus"] // CPUS for agent in site.fleet.status()["agents"])

        singles = [run_single(site, load, other, room) for _ in range(SINGLES)]
        grants = site.ask_database(_GRANTS)
        turns = [count_ahead(grants, single) for single in singles]
        newest = sorted(flood.job_ids)[FLOOD // 2 :]  # of these none begins meanwhile
        answers, took_s = ask_waits(load, flooding, random.Random(6).sample(newest, ASKED))
        left = site.fleet.machines()["queued"]

    ahead = ", ".join(f"{count} in {waited_s:.2f} s" for count, waited_s in turns)
    p50_ms, p95_ms = (took_s[ASKED * percent // 100] * 1000 for percent in (50, 95))
    show(
        f"{FLOOD} jobs sent in {sent_s:.0f} s, {left} still queued at the end; hosts for {room} machines, all full:"
        f" granted to the flood before the other org's single job: {ahead}; {ASKED} waits explained:"
        f" p50 {p50_ms:.0f} ms, p95 {p95_ms:.0f} ms; for example: {answers[0]}"
    )
    assert load.wrong == []
    assert left >= FLOOD // 2
    assert max(count for count, _ in turns) <= 1
    assert [answer for answer in answers if not (answer["waits"] and answer["reason"] and answer["place"])] == []
    assert {answer["code"] for answer in answers} == {"turn"}
    assert len({answer["place"] for answer in answers}) > ASKED // 2  # others of the org begin between two answers
