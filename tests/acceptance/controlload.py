"""The load of a storm on the control planes: jobs of several orgs by our API, by clients that never give up.

Each job and its end are known before it begins. Whatever is not answered is asked again with the same idempotency key;
what is answered otherwise than it may be is written down. Called by controlstorm.py and test_flood.py.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.acceptance.stack import LIMIT_S

Json = dict[str, Any]
PAUSE_S = 0.1  # before what was not answered is asked again
LOOK_S = 0.5
TOO_LONG_S = 300  # for a job that is to be cancelled
GATED = 3
GATE = "gate"
TRICKLE = GATED + 4  # jobs in flight while the rest is kept back
OPERATOR = None  # as the org of a token
SHAPE = {"cpus": 1, "mem_mib": 192, "disk_mib": 128}


@dataclass(frozen=True)
class Planned:
    """One job and its end."""

    number: int
    org: int
    lasts_s: float
    exit_code: int = 0
    priority: int = 0
    cancelled_after_s: float | None = None  # since it was confirmed
    repeated: bool = False  # submitted once more after it was confirmed
    gated: bool = False  # runs until `Load.release`: whatever happens before meets it

    @property
    def key(self) -> str:
        return f"storm-{self.number}"

    @property
    def conclusion(self) -> str:
        if self.cancelled_after_s is not None:
            return "cancelled"
        return "failure" if self.exit_code else "success"

    def command(self, marks: Path) -> str:
        """It marks its beginning and its end outside of the product."""
        lasts_s = TOO_LONG_S if self.cancelled_after_s is not None else self.lasts_s
        mark = f">> {marks}/{self.number}"
        work = f"while [ ! -e {marks / GATE} ]; do sleep 0.1; done" if self.gated else f"sleep {lasts_s:.2f}"
        return f"echo begun {mark}; {work}; echo ended {mark}; exit {self.exit_code}"


def plan_jobs(count: int, orgs: list[int], rng: random.Random) -> list[Planned]:
    """Most succeed; some fail with a status of theirs, some are cancelled, queued or running. The first are gated."""
    gated = [Planned(number, rng.choice(orgs), 0.0, gated=True) for number in range(1, GATED + 1)]
    return [*gated, *(_plan_job(number, rng.choice(orgs), rng) for number in range(GATED + 1, count + 1))]


def _plan_job(number: int, org: int, rng: random.Random) -> Planned:
    fate, lasts_s = rng.random(), rng.uniform(0.1, 3.0)
    return Planned(
        number,
        org,
        lasts_s,
        exit_code=rng.randint(1, 100) if 0.75 < fate < 0.9 else 0,
        priority=rng.choice([0, 0, 0, -20, 5, 50]),
        cancelled_after_s=rng.choice([0.0, 0.5, 3.0]) if fate >= 0.9 else None,
        repeated=rng.random() < 0.1,
    )


@dataclass
class Load:
    """Everybody who calls, what they were answered, and what they know."""

    url: str
    secret: str = field(repr=False)
    plans: list[Planned]
    marks: Path
    in_flight: int  # jobs that are confirmed and have not ended, at most
    kept_back: int  # of the jobs, until `enough` is set: what happens shall meet jobs
    answers: Counter[str] = field(default_factory=Counter)  # by what was asked and how it was answered
    wrong: list[str] = field(default_factory=list)
    job_ids: dict[int, int] = field(default_factory=dict)  # by the plan's number
    ended: int = 0
    enough: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    failed: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        return len(self.job_ids) - self.ended

    @property
    def is_done(self) -> bool:
        assert self.failed == [], self.failed[0]
        return len(self.job_ids) == self.ended == len(self.plans)

    def release(self) -> None:
        """Enough has happened: the gated jobs end, and what was kept back is submitted."""
        (self.marks / GATE).touch()
        self.enough.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A client for each org, and one that watches, for as long as the block runs."""
        orgs = sorted({plan.org for plan in self.plans})
        works = [lambda http, org=org: self._submit_all(http, org) for org in orgs]
        threads = [threading.Thread(target=self._work, args=(work,), daemon=True) for work in (*works, self._watch)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(LIMIT_S)

    def _work(self, work: Any) -> None:
        try:
            with open_client() as http:
                work(http)
        except Exception:  # noqa: BLE001 - a thread's end is seen by nobody: the test looks here
            self.failed.append(traceback.format_exc())

    def _watch(self, http: httpx2.Client) -> None:
        while not self.over.is_set():
            self.ended = self.ask(http, "status", "GET", "/api/status")["jobs"]["completed"]
            time.sleep(LOOK_S)

    def _submit_all(self, http: httpx2.Client, org: int) -> None:
        due: list[tuple[float, Planned]] = []
        for plan in [each for each in self.plans if each.org == org]:
            while not self._may_submit() and not self.over.is_set():
                self._cancel_due(http, due)
                time.sleep(PAUSE_S)
            if self.over.is_set():
                return
            self._submit(http, plan)
            if plan.cancelled_after_s is not None:
                due.append((time.monotonic() + plan.cancelled_after_s, plan))
            self._cancel_due(http, due)
        while due and not self.over.is_set():
            self._cancel_due(http, due)
            time.sleep(PAUSE_S)

    def _may_submit(self) -> bool:
        if self.enough.is_set() or len(self.job_ids) < len(self.plans) - self.kept_back:
            return self.unfinished < self.in_flight
        return self.unfinished < TRICKLE

    def _submit(self, http: httpx2.Client, plan: Planned) -> None:
        """By its org's own token, unless its priority is for the operator to give."""
        by_org = plan.priority <= 0
        job = {"cmd": plan.command(self.marks), "name": plan.key, "idempotency_key": plan.key, **SHAPE}
        body = {**job, "priority": plan.priority} | ({} if by_org else {"org_id": plan.org})
        org = plan.org if by_org else OPERATOR
        for _ in range(1 + plan.repeated):
            told = self.ask(http, "submit", "POST", "/api/jobs", org, json=body)
            if self.job_ids.setdefault(plan.number, told["job_id"]) != told["job_id"]:
                self.wrong.append(f"{plan.key} is job {self.job_ids[plan.number]} and job {told['job_id']}")

    def _cancel_due(self, http: httpx2.Client, due: list[tuple[float, Planned]]) -> None:
        for each in [each for each in due if each[0] <= time.monotonic()]:
            plan = each[1]
            self.ask(http, "cancel", "POST", f"/api/jobs/{self.job_ids[plan.number]}/cancel", plan.org)
            due.remove(each)

    def ask(
        self, http: httpx2.Client, what: str, method: str, path: str, org: int | None = OPERATOR, **more: Any
    ) -> Json:
        """The answer, asked for until there is one. What may not be answered is written down, and fails the test."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                reply = http.request(method, self.url + path, headers=self._bearer(org), **more)
            except httpx2.TransportError as error:
                self.answers[f"{what}: {type(error).__name__}"] += 1
            else:
                self.answers[f"{what}: {reply.status_code}"] += 1
                if reply.status_code < 300:
                    return dict(reply.json())
                if reply.status_code != 503:
                    self.wrong.append(f"{what}: {reply.status_code} {reply.text[:300]}")
                    raise AssertionError(self.wrong[-1])
            time.sleep(PAUSE_S)
        raise AssertionError(f"nobody answered {what}")

    def _bearer(self, org: int | None) -> dict[str, str]:
        claims = {"role": "admin"} | ({} if org is None else {"org_id": org})
        token = render_token(
            hmac_key(self.secret),
            subject="storm",
            audience=Audience.ADMIN,
            now_s=time.time(),
            ttl_s=600,
            claims=claims,
        )
        return {"Authorization": f"Bearer {token}"}


def open_client() -> httpx2.Client:
    """Each request on a connection of its own, as commands and scripts make them."""
    return httpx2.Client(timeout=60, trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0))
