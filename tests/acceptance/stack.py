"""A whole stack of one's own for acceptance tests: `nimbus up` as a user starts it, in a state folder of its own.

Drives it from outside only: by the `nimbus` command, by HTTP and by signals. conftest.py starts the one that most
tests share; test_stack_killed.py starts those that it kills; fleet.py takes the desk alone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from nimbus.host.inventory import Leak, Territory, leftovers
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.guests import count_boots
from tests.hosts import BUILT_IMAGES
from tests.oracle import RUNTIME_DIR

LIMIT_S = 120.0  # for any one thing to happen, on two cores that others use as well
POLL_S = 0.05  # HTTP pages cannot signal
T = TypeVar("T")
Json = dict[str, Any]


def wait_until(look: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """What `look` sees once it is true; fails with `what` and the last look at the limit."""
    deadline = time.monotonic() + limit_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what} (last seen: {seen!r})"
        time.sleep(POLL_S)
    return seen


def clean_environment(state: Path, **more: str) -> dict[str, str]:
    """Ours without any setting of Nimbus', and the given ones."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
    return {**env, "NIMBUS_STATE_DIR": str(state), **more}


def nimbus_argv(*words: str) -> list[str]:
    return [sys.executable, "-m", "nimbus", *words]


def prepare_state(folder: Path) -> Path:
    """A state folder that holds the images which are built already."""
    folder.mkdir(exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(BUILT_IMAGES)
    return folder


def find_leaks(state: Path) -> tuple[Leak, ...]:
    """What VMs of this state folder own on the host now, after the kernel's moment of grace."""
    territory = Territory(state, RUNTIME_DIR)
    with suppress(AssertionError):
        wait_until(lambda: not leftovers(territory), "a clean host", 2.0)
    return leftovers(territory)


@dataclass
class Desk:
    """Every way to talk to a control plane and its pipeline from outside, whoever started them."""

    env: dict[str, str]  # what it takes to run a command beside them

    # -- the command -------------------------------------------------------------------------------

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """One `nimbus` command beside the stack."""
        argv = nimbus_argv(*words)
        return subprocess.run(argv, env={**self.env, **env}, capture_output=True, text=True, timeout=LIMIT_S)  # noqa: PLW1510 - the status is the test's to judge

    def submit(self, line: str, *options: str) -> int:
        """The number of a job that runs this shell line."""
        done = self.run("jobs", "submit", "--json", "--cmd", line, *options)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["job_id"])

    # -- HTTP --------------------------------------------------------------------------------------

    def _get(self, base: str, path: str, audience: Audience) -> Json:
        key = hmac_key(self.env["NIMBUS_JWT_SECRET"])
        token = render_token(
            key, subject="acceptance", audience=audience, now_s=time.time(), ttl_s=600, claims={"role": "read"}
        )
        answer = httpx2.get(base + path, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        return dict(answer.json()) if answer.status_code == 200 else {}

    def job(self, job_id: int) -> Json:
        """The control plane's view by its number or GitHub's; empty while it knows none."""
        return self._get(self.env["NIMBUS_CONTROL_PLANE_URL"], f"/api/jobs/{job_id}", Audience.ADMIN)

    def status(self) -> Json:
        return self._get(self.env["NIMBUS_CONTROL_PLANE_URL"], "/api/status", Audience.ADMIN)

    def machines(self) -> Json:
        """How many machine requests stand in each state."""
        return dict(self.status()["machines"])

    def output(self, job_id: int) -> str:
        """What the job has written so far, as the logging pipeline has it."""
        rows, path = [], f"/logs/jobs/{job_id}?limit=10000"
        page = self._get(self.env["NIMBUS_LOGS_URL"], path, Audience.LOGS_READ)
        while page:
            rows += page["rows"]
            after = f"{path}&after={quote(page['next'])}" if page["more"] else ""
            page = self._get(self.env["NIMBUS_LOGS_URL"], after, Audience.LOGS_READ) if after else {}
        return "".join(f"{row['message']}\n" for row in rows if row["stream"] in {"stdout", "stderr"})

    def wait_output(self, job_id: int, text: str) -> None:
        wait_until(lambda: text in self.output(job_id), f"{text!r} in the output of job {job_id}")

    def wait_job(self, job_id: int, *states: str) -> Json:
        """The job once it stands in one of these states."""
        seen: list[Json] = []

        def look() -> bool:
            seen[:] = [self.job(job_id)]
            return seen[0].get("state") in states

        try:
            wait_until(look, f"job {job_id} {' or '.join(states)}")
        except AssertionError as error:
            error.add_note(f"the job was: {seen}")
            raise
        return seen[0]

    def deliver(self, event: str, body: bytes, guid: str, **headers: str) -> httpx2.Response:
        """A webhook delivery as GitHub sends it; `headers` are those that this one has beside the usual."""
        usual = {"X-GitHub-Event": event, "X-GitHub-Delivery": guid, "Content-Type": "application/json"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = self.env["NIMBUS_CONTROL_PLANE_URL"] + "/webhooks/github"
        return httpx2.post(url, content=body, headers={**usual, **named}, timeout=60)

    def vms(self) -> list[Json]:
        """What `nimbus vms list` says of this host and state folder."""
        return list(json.loads(self.run("vms", "list", "--json").stdout))


@dataclass
class Stack(Desk):
    """A `nimbus up` that says it is up, and every way to talk to it."""

    popen: subprocess.Popen[bytes]
    state: Path
    told: Path  # its events, one JSON object a line

    # -- the process -------------------------------------------------------------------------------

    def events(self) -> list[Json]:
        whole = self.told.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def pids(self) -> dict[str, int]:
        """The newest process of each service."""
        return {e["service"]: e["pid"] for e in self.events() if e["event"] == "ready"}

    def secret(self, name: str) -> str:
        lines = (self.state / "secrets.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)[name]

    @contextmanager
    def killed(self, service: str) -> Iterator[None]:
        """SIGKILL for one service; the block runs while it is away, and a new one is ready afterwards."""
        old = self.pids()[service]
        os.kill(old, signal.SIGKILL)
        yield
        wait_until(lambda: self.pids()[service] != old, f"a new {service}")

    def kill_all(self) -> None:
        """SIGKILL for the supervisor and every process that it started; the VMs' keepers are none of them."""
        victims = [os.pidfd_open(pid) for pid in (self.popen.pid, *self.pids().values())]
        for victim in victims:
            with suppress(ProcessLookupError):  # the kernel kills most of them when the supervisor goes
                signal.pidfd_send_signal(victim, signal.SIGKILL)
        for victim in victims:
            poll = select.poll()
            poll.register(victim, select.POLLIN)
            assert poll.poll(LIMIT_S * 1000), "a killed process did not end"
            os.close(victim)
        self.popen.wait(LIMIT_S)

    def count_guests(self) -> None:
        """Add the guests that said hello to the session's count; a killed one is its test's to count."""
        path = "/api/jobs/recent?limit=200"
        jobs = self._get(self.env["NIMBUS_CONTROL_PLANE_URL"], path, Audience.ADMIN)["jobs"]
        machines = [machine for job in jobs for machine in job["machines"]]
        count_boots("qemu", sum("kernel" in (machine["phases"] or {}) for machine in machines))


def wait_idle(stack: Stack) -> None:
    """Until no machine waits or works; then nothing of one may be left on the host."""
    wait_until(lambda: not any(stack.machines()[state] for state in ("queued", "leased", "running")), "an idle queue")
    assert find_leaks(stack.state) == ()


@dataclass(frozen=True)
class Github:
    """The fake GitHub as its owner drives it: start a workflow, watch it, cancel a job."""

    url: str
    token: str

    def _call(self, method: str, path: str, content: bytes | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx2.request(method, self.url + path, headers=headers, content=content, timeout=30)
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    def start(self, script: str, name: str = "acceptance") -> Json:
        """A run of one job with one step: this script."""
        step = {"name": "The step", "run": script}
        workflow = {"name": name, "jobs": {"only": {"runs-on": ["nimbus"], "steps": [step]}}}
        return self._call("POST", "/sim/workflows", json.dumps(workflow).encode())  # JSON is YAML too

    def run(self, run: Json) -> Json:
        return self._call("GET", f"/sim/runs/{run['run_id']}")

    def cancel(self, job_id: int) -> Json:
        return self._call("POST", f"/sim/jobs/{job_id}/cancel")

    def wait_end(self, run: Json) -> Json:
        """The run once GitHub calls it completed."""
        wait_until(lambda: self.run(run)["status"] == "completed", "the end of the run")
        return self.run(run)


def open_github(stack: Stack) -> Github:
    """The fake GitHub of `nimbus up --sim`."""
    return Github(stack.env["NIMBUS_SIM_URL"], stack.env["NIMBUS_SIM_CONTROL_TOKEN"])


@contextmanager
def running_stack(state: Path, *options: str, **settings: str) -> Iterator[Stack]:
    """`nimbus up` with these options and settings, ready; stopped by SIGTERM unless it has ended by then."""
    told, errors = state / "told.jsonl", state / "errors.txt"
    argv = nimbus_argv("up", "--free-ports", "--json", "--state", str(state), *options)
    with told.open("wb") as out, errors.open("wb") as err:
        popen = subprocess.Popen(argv, stdout=out, stderr=err, env=clean_environment(state, **settings))
    stack = Stack({}, popen, state, told)
    try:
        wait_until(lambda: _is_up(stack), "the stack is up")
        stack.env = clean_environment(state, **_read_env(state))
        yield stack
    finally:
        if popen.poll() is None:
            popen.send_signal(signal.SIGTERM)
        popen.wait(LIMIT_S)


def _is_up(stack: Stack) -> bool:
    assert stack.popen.poll() is None, (stack.state / "errors.txt").read_text()
    return any(event["event"] == "up" for event in stack.events())


def _read_env(state: Path) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in (state / "env").read_text().splitlines())
