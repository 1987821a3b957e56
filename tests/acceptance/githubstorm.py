"""Hundreds of jobs of several organisations while GitHub has its bad days, and what must be true afterwards.

The fake GitHub is a process of its own with its faults switched on, the control plane another, and one host runs every
job in a machine of the fake VMM: only the guest's insides are left out. test_github_storm.py sends the storms.
"""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.acceptance.fleet import Fleet, running_fleet, show
from tests.acceptance.stack import Json, clean_environment, wait_until
from tests.forge import APP_ID, app_key
from tests.services import free_port

OWNERS = ("octo-org", "acme", "umbrella")
REPOS = ("api", "web", "infra")
RUNNER = Path(__file__).with_name("stormrunner.py")
SLOTS = 64  # indexes of the whole host, which other tests use as well
SPARE = 1.10  # of the fewest calls that write
SETTLE_S = 600.0  # for all jobs of a storm, on two cores that others use as well
# GitHub's minutes are our seconds: every interval is a setting.
FASTER = {
    "NIMBUS_REDELIVERY_INTERVAL": "2",
    "NIMBUS_POLL_INTERVAL": "5",
    "NIMBUS_POLL_IDLE_INTERVAL": "15",
    "NIMBUS_INSTALLATIONS_INTERVAL": "15",
    "NIMBUS_DEMAND_INTERVAL": "1",
    "NIMBUS_DEMAND_PAUSE": "1",
    "NIMBUS_RUNNER_SWEEP_INTERVAL": "2",
    "NIMBUS_RUNNER_IDLE_LIMIT": "10",
    "NIMBUS_RUNNER_ZOMBIE_AGE": "10",
    "NIMBUS_GITHUB_WRITE_POINTS": "54000",  # a minute
    "NIMBUS_ORG_JOB_RATE_LIMIT": "10000",
    "NIMBUS_RUNNER_COMMAND": f"{sys.executable} -I -S {RUNNER}",
}


@dataclass(frozen=True)
class Weather:
    """One storm: what GitHub does to us, and by which ways we may learn of jobs."""

    name: str
    faults: Json
    settings: dict[str, str] = field(default_factory=dict)
    delivers: bool = True  # False: GitHub was never told where our webhook is


@dataclass(frozen=True)
class Planned:
    """One job as it is ordered, and how it must end."""

    owner: str
    repo: str
    labels: tuple[str, ...]
    script: str
    fate: str = "run"  # run, cancel (before it starts), gate (waits for somebody's approval)

    @property
    def conclusion(self) -> str:
        if self.fate == "cancel":
            return "cancelled"
        return "success" if self.script == "exit 0" else "failure"


@dataclass
class Found:
    """What the storm left."""

    jobs: dict[int, Json]  # GitHub's view by its ids
    wanted: dict[int, str]  # conclusions
    ours: dict[int, Json]
    machines: Json
    stats: Json
    struck: dict[str, int]
    took_s: float = 0.0


def plan_jobs(count: int, rng: random.Random) -> list[list[Planned]]:
    """Runs of one to ten jobs each, over all organisations and repositories."""
    runs: list[list[Planned]] = []
    left = count
    while left:
        size = min(left, rng.randint(1, 10))
        owner, repo = rng.choice(OWNERS), rng.choice(REPOS)
        runs.append([_plan_job(owner, repo, rng) for _ in range(size)])
        left -= size
    return runs


def _plan_job(owner: str, repo: str, rng: random.Random) -> Planned:
    labels = rng.choices([("nimbus",), ("Nimbus",), ("nimbus-1cpu-1gb",), ("nimbus-2cpu-2gb",)], [6, 1, 2, 1])[0]
    script = "exit 0" if rng.random() < 0.9 else "exit 1"
    return Planned(owner, repo, labels, script, rng.choices(["run", "cancel", "gate"], [90, 5, 5])[0])


class Outside:
    """GitHub as its users have it: they start runs, cancel and approve jobs, and look."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        answer = self._http.request(method, path, json=body)
        assert answer.status_code < 300, f"{path}: {answer.text}"
        return dict(answer.json())

    def start(self, jobs: list[Planned]) -> Json:
        """One run. A gate stands before the jobs that somebody must approve."""
        specs = {
            f"job-{number}": {
                "runs-on": list(job.labels),
                "steps": [{"name": "only", "run": job.script}],
                **({"environment": "production"} if job.fate == "gate" else {}),
            }
            for number, job in enumerate(jobs)
        }
        # JSON is YAML, too
        text = json.dumps({"name": "storm", "jobs": specs})
        path = f"/sim/workflows?owner={jobs[0].owner}&repo={jobs[0].repo}"
        answer = self._http.post(path, content=text.encode())
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    def runs(self, run_ids: list[int]) -> list[Json]:
        return [self.call("GET", f"/sim/runs/{run_id}") for run_id in run_ids]


@contextmanager
def running_world(folder: Path, weather: Weather) -> Iterator[tuple[Outside, dict[str, str], str]]:
    """The fake GitHub with these faults; what a control plane must be told of it; the port its webhooks come to."""
    port, secret, token = free_port(), secrets.token_hex(32), secrets.token_hex(32)
    url = f"http://127.0.0.1:{port}"
    plane_port = str(free_port())
    hook = {"NIMBUS_SIM_WEBHOOK_URL": f"http://127.0.0.1:{plane_port}/webhooks/github"} if weather.delivers else {}
    env = clean_environment(
        folder,
        NIMBUS_SIM_BIND=f"127.0.0.1:{port}",
        NIMBUS_SIM_PUBLIC_URL=url,  # the fake VMM's "guest" is a process of this host
        NIMBUS_SIM_WEBHOOK_SECRET=secret,
        NIMBUS_SIM_APP_ID=APP_ID,
        NIMBUS_SIM_APP_PUBLIC_KEY=app_key().public_pem,
        NIMBUS_SIM_CONTROL_TOKEN=token,
        NIMBUS_SIM_OWNERS=",".join(OWNERS),
        NIMBUS_SIM_FAULTS=json.dumps(weather.faults),
        **hook,
    )
    settings = {
        "NIMBUS_GITHUB_APP_ID": APP_ID,
        "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key().private_pem,
        "NIMBUS_GITHUB_WEBHOOK_SECRET": secret,
        "NIMBUS_GITHUB_API_URL": url,
    }
    argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "nimbus.sim.main"]
    with (
        (folder / "sim.log").open("wb") as out,
        subprocess.Popen(argv, env=env, stdout=out, stderr=out, cwd="/") as sim,
    ):
        try:
            wait_until(lambda: _answers(url), "the fake GitHub answers")
            with closing(Outside(url, token)) as outside:
                yield outside, settings, plane_port
        finally:
            sim.send_signal(signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def ride_out(weather: Weather, count: int, seed: int, folder: Path, dsn: str, redis_url: str) -> Found:
    """The storm from its first job to the last machine's end."""
    rng = random.Random(seed)
    began = time.monotonic()
    with running_world(folder, weather) as (outside, settings, plane_port):
        told = {**FASTER, **settings, **weather.settings}
        with running_fleet(folder, dsn, redis_url, logs=False, port=plane_port, **told) as fleet:
            own = {
                "NIMBUS_AGENT_CPU_OVERCOMMIT": "6",
                "NIMBUS_AGENT_DISK_OVERCOMMIT": "64",
                "NIMBUS_DISK_RESERVE_MIB": "256",
                "NIMBUS_VM_SLOTS": str(SLOTS),
                "NIMBUS_VM_SHUTDOWN_GRACE": "2",
            }
            with fleet.agent("storm", "fake", **own):
                found = _rage(outside, fleet, plan_jobs(count, rng), rng)
    found.took_s = time.monotonic() - began
    return found


def _rage(outside: Outside, fleet: Fleet, runs: list[list[Planned]], rng: random.Random) -> Found:
    wanted: dict[int, str] = {}
    gated: list[int] = []
    run_ids: list[int] = []
    for planned in runs:
        run = outside.start(planned)
        run_ids.append(run["run_id"])
        for job, plan in zip(run["jobs"], planned, strict=True):
            wanted[job["job_id"]] = plan.conclusion
            if plan.fate == "cancel":
                _cancel(outside, job["job_id"], wanted)
            if plan.fate == "gate":
                gated.append(job["job_id"])
        if gated and rng.random() < 0.5:
            outside.call("POST", f"/sim/jobs/{gated.pop()}/approve")
    for job_id in gated:
        outside.call("POST", f"/sim/jobs/{job_id}/approve")
    jobs = _wait_jobs(outside, run_ids)
    ours = _wait_ours(fleet, wanted)
    wait_until(lambda: not any(fleet.machines()[s] for s in ("queued", "leased", "running")), "an idle queue", SETTLE_S)
    wait_until(lambda: not outside.call("GET", "/sim/stats")["runners"], "no registration is left", SETTLE_S)
    stats, struck = outside.call("GET", "/sim/stats"), outside.call("GET", "/sim/faults")["struck"]
    return Found(jobs, wanted, ours, fleet.machines(), stats, struck)


def _cancel(outside: Outside, job_id: int, wanted: dict[int, str]) -> None:
    """Before it starts, or it ends as it would have."""
    try:
        outside.call("POST", f"/sim/jobs/{job_id}/cancel")
    except AssertionError:  # it was faster
        wanted[job_id] = "any"


def _wait_jobs(outside: Outside, run_ids: list[int]) -> dict[int, Json]:
    """All jobs once GitHub calls every run completed."""
    open_ids, done = set(run_ids), dict[int, Json]()

    def look() -> bool:
        for run in outside.runs(sorted(open_ids)[:20]):
            if run["status"] == "completed":
                open_ids.discard(run["run_id"])
                done.update({job["job_id"]: job for job in run["jobs"]})
        return not open_ids

    try:
        wait_until(look, "the end of every run", SETTLE_S)
    except AssertionError as error:
        left = [job for run in outside.runs(sorted(open_ids)) for job in run["jobs"] if job["status"] != "completed"]
        error.add_note(f"{len(left)} jobs are left, for example {left[:3]}")
        raise
    return done


def _wait_ours(fleet: Fleet, wanted: dict[int, str]) -> dict[int, Json]:
    """Our view of every job, once all of them are completed here too."""
    ours: dict[int, Json] = {}

    def look() -> bool:
        for job_id in [each for each in wanted if ours.get(each, {}).get("state") != "completed"][:50]:
            ours[job_id] = fleet.job(job_id)
        return all(ours.get(each, {}).get("state") == "completed" for each in wanted)

    try:
        wait_until(look, "our view of every job", SETTLE_S)
    except AssertionError as error:
        error.add_note(str(Counter(str(ours.get(each, {}).get("state")) for each in wanted)))
        raise
    return ours


def judge(found: Found) -> list[str]:
    """Everything that is not as it must be."""
    wrong = []
    for job_id, conclusion in found.wanted.items():
        there, here = found.jobs[job_id]["conclusion"], found.ours[job_id]["conclusion"]
        if there != here:
            wrong.append(f"job {job_id}: GitHub says {there}, we say {here}")
        if conclusion not in {"any", there}:
            wrong.append(f"job {job_id} should be {conclusion} and is {there}")
    return wrong


def report(weather: Weather, found: Found) -> None:
    learned = Counter(job["learned_by"] for job in found.ours.values())
    repaired = Counter(str(job["repaired_by"]) for job in found.ours.values())
    show(
        f"{weather.name}: {len(found.jobs)} jobs in {found.took_s:.0f} s; learned by {dict(learned)}; "
        f"repaired by {dict(repaired)}; machines {found.machines}; GitHub's count {found.stats['installations']}; "
        f"struck {found.struck}"
    )


def judge_calls(found: Found) -> list[str]:
    """Write calls beyond the minimum: one mint for each runner, one deletion for each that found no job.

    What GitHub's bad day refused before it had an effect is not counted: the limits' own tests hold those few.
    """
    total: Counter[str] = Counter()
    for call in found.stats["calls"]:
        writes = (
            call["method"] != "GET" and not call["route"].endswith("/access_tokens") and "/hook/" not in call["route"]
        )
        if not writes or call["status"] in {401, 403, 429} or call["status"] >= 500:
            continue
        total["writes"] += call["count"]
        total["minted"] += call["count"] if call["status"] == 201 else 0
        total["deleted"] += call["count"] if call["status"] == 204 else 0
    ran = sum(job["runner_name"] is not None for job in found.jobs.values()) + found.struck.get("runners.stolen", 0)
    wrong = []
    if total["writes"] > SPARE * (total["minted"] + total["deleted"]):
        wrong.append(f"{total['writes']} writes for {total['minted']} runners minted and {total['deleted']} deleted")
    if total["minted"] > SPARE * (ran + total["deleted"]):
        wrong.append(f"{total['minted']} runners minted: {ran} took a job, and {total['deleted']} were deleted")
    return wrong
