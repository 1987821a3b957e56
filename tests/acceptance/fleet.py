"""A control plane, a logging pipeline and agents as processes of the test's own: each is killed, frozen, cut off or
left away alone, which no supervisor mends. Used by the tests of what outlives whom; `nimbus up` has stack.py.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from nimbus.host import process
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.model.record import ProcessId, Record
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.acceptance.stack import LIMIT_S, Desk, Json, clean_environment, find_leaks, prepare_state, wait_until
from tests.forge import APP_ID, app_key
from tests.oracle import RUNTIME_DIR, open_territory
from tests.services import free_port

_BOUND = ("setpriv", "--pdeathsig", "KILL")  # a process ends with the test's, however that ends


@dataclass
class Room:
    """One process of Nimbus, started by the test and by nobody else."""

    module: str
    env: dict[str, str]
    page: str  # answers once it is ready
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, and wait until it answers."""
        self.launch()
        wait_until(self.answers, f"{self.module} answers")

    def launch(self) -> None:
        """Run it. By a thread that lives as long as it must: it ends with the one that started it."""
        argv = [*_BOUND, sys.executable, "-m", self.module]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log, cwd="/")

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.send(signal.SIGKILL)
        self._collect()

    def stop(self, how: signal.Signals) -> tuple[int, float]:
        """Its exit status and the seconds that it took after this signal."""
        began = time.monotonic()
        self.send(how)
        return self._collect(), time.monotonic() - began

    def send(self, how: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(how)

    def is_running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def events(self, name: str) -> list[Json]:
        """What it said under this name so far."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [each for each in told if each.get("event") == name]

    def _collect(self) -> int:
        assert self.popen is not None
        status = self.popen.wait(LIMIT_S)
        self.popen = None
        return status

    def answers(self) -> bool:
        assert self.popen is not None
        assert self.popen.poll() is None, self.log.read_text(errors="replace")[-4000:]
        try:
            return httpx2.get(self.page, timeout=5).status_code == 200
        except httpx2.TransportError:
            return False


@dataclass
class Agent(Room):
    """A host agent with a state root of its own."""

    state: Path = Path()

    @property
    def layout(self) -> HostLayout:
        return HostLayout(state=self.state, runtime=RUNTIME_DIR)

    def records(self) -> list[Record]:
        """Its ledger now."""
        ledger = Ledger(self.layout.ledger)
        return [record for vm in ledger.vms() if (record := ledger.read(vm)) is not None]

    def vm_processes(self) -> list[ProcessId]:
        """The keeper of its one VM, and the VMM. The keeper is PID 1 of their namespace: nothing in it outlives it."""
        (record,) = self.records()
        keeper = record.keeper
        assert keeper is not None
        first, *_ = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        return [keeper, process.identify(int(first))]


def show(figures: str) -> None:
    """What the test measured, for whoever reads its output (`pytest -rP`, or `-s`)."""
    print(f"\n{figures}")  # noqa: T201 - it is the evidence


@dataclass
class DeathWatch:
    """Notes when each of these processes ends, by the wall clock, which the database beside us shares."""

    watched: list[ProcessId]
    died_at: dict[ProcessId, float] = field(default_factory=dict)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        fds = {process.open_pidfd(one): one for one in self.watched}
        self._thread = threading.Thread(target=self._note, args=(fds,), daemon=True)
        self._thread.start()

    def wait(self) -> float:
        """When the last of them died."""
        assert self._thread is not None
        self._thread.join(LIMIT_S)
        alive = [one for one in self.watched if one not in self.died_at]
        assert not alive, f"still alive: {alive}"
        return max(self.died_at.values())

    def _note(self, fds: dict[int, ProcessId]) -> None:
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        while fds:
            for fd, _ in poll.poll():
                self.died_at[fds.pop(fd)] = time.time()
                poll.unregister(fd)
                os.close(fd)


def watch_deaths(watched: list[ProcessId]) -> DeathWatch:
    """A running watch over processes that live now."""
    watch = DeathWatch(watched)
    watch.start()
    return watch


@dataclass
class Fleet(Desk):
    """One control plane and what works for it."""

    plane: Room
    pipeline: Room | None
    secret: str  # of the agents' enrolment

    @property
    def port(self) -> str:
        """The control plane's, on every address of this host."""
        return self.env["NIMBUS_CONTROL_PLANE_URL"].rpartition(":")[2]

    def trace(self, job_id: int) -> list[Json]:
        """Every step of the job's newest machine request, in order."""
        machine_id = self.job(job_id)["machines"][0]["machine_id"]
        argv = [sys.executable, "-m", "nimbus.control_plane.trace"]
        told = subprocess.run(argv, env=self.plane.env, capture_output=True, check=True, timeout=LIMIT_S).stdout
        steps = [json.loads(line) for line in told.splitlines()]
        return [step for step in steps if step["machine_id"] == machine_id]

    @contextmanager
    def agent(self, name: str, backend: str, *, host: str = "127.0.0.1", **settings: str) -> Iterator[Agent]:
        """A running agent that reaches the control plane at `host`; at the end it leaves a clean host."""
        with open_territory() as territory:
            agent = self._plan_agent(prepare_state(territory.state_root), name, host, NIMBUS_VMM=backend, **settings)
            agent.start()
            try:
                yield agent
                if agent.is_running():
                    assert agent.stop(signal.SIGINT)[0] == 0
                assert find_leaks(agent.state) == ()
            finally:
                self._clear(agent)

    def _plan_agent(self, state: Path, name: str, host: str, **settings: str) -> Agent:
        agent_id = f"{name}-{secrets.token_hex(4)}"
        token = render_token(
            hmac_key(self.secret), subject=agent_id, audience=Audience.AGENT_ENROLMENT, now_s=time.time(), ttl_s=3600
        )
        metrics_port = free_port()
        own = {
            "NIMBUS_AGENT_ID": agent_id,
            "NIMBUS_CONTROL_PLANE_URL": f"http://{host}:{self.port}",
            "NIMBUS_CONTROL_PLANE_TOKEN": token,
            "NIMBUS_AGENT_METRICS_PORT": str(metrics_port),
            "NIMBUS_AGENT_LEASE_RETRY_MAX": "2",
        }
        env = clean_environment(state, **{**own, **settings})
        page = f"http://127.0.0.1:{metrics_port}/metrics/"
        return Agent("nimbus.host_agent.main", env, page, state / "agent.log", state=state)

    def _clear(self, agent: Agent) -> None:
        """After a failure too: no process and no kernel object stays."""
        if agent.is_running():
            agent.send(signal.SIGCONT)
            agent.kill()
        if find_leaks(agent.state):
            self.run("vms", "purge", "--all", NIMBUS_STATE_DIR=str(agent.state))


@contextmanager
def running_fleet(
    folder: Path, dsn: str, redis_url: str, *, logs: bool = True, port: str | None = None, **settings: str
) -> Iterator[Fleet]:
    """A control plane on every address of this host (on `port`, where somebody was told of it before), and a pipeline
    with its embedded store where `logs` are wanted."""
    own = {"NIMBUS_DATABASE_URL": dsn, "NIMBUS_REDIS_URL": redis_url, **settings}
    fleet = _plan_fleet(folder, own, logs, port or str(free_port()))
    rooms = [room for room in (fleet.plane, fleet.pipeline) if room is not None]
    try:
        for room in rooms:
            room.start()
        yield fleet
    finally:
        for room in reversed(rooms):
            if room.is_running():
                room.send(signal.SIGCONT)
                room.stop(signal.SIGTERM)


def _plan_fleet(folder: Path, settings: dict[str, str], logs: bool, port: str) -> Fleet:
    logs_port = free_port()
    url, logs_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{logs_port}"
    jwt_secret, agent_secret = secrets.token_hex(32), secrets.token_hex(32)
    control = {
        "NIMBUS_GITHUB_APP_ID": APP_ID,
        "NIMBUS_GITHUB_APP_PRIVATE_KEY": app_key().private_pem,
        "NIMBUS_GITHUB_WEBHOOK_SECRET": secrets.token_hex(32),
        "NIMBUS_JWT_SECRET": jwt_secret,
        "NIMBUS_AGENT_TOKEN_SECRET": agent_secret,
        "NIMBUS_AGENT_TOKEN_RATE_LIMIT": "1000",
        "NIMBUS_CACHE_SHARED_SECRET": secrets.token_hex(32),
        "NIMBUS_PUBLIC_BASE_URL": url,
        "NIMBUS_CONTROL_PLANE_BIND": f"0.0.0.0:{port}",
        **({"NIMBUS_LOG_PUBLIC_URL": logs_url} if logs else {}),
        **settings,
    }
    pipeline = {
        "NIMBUS_JWT_SECRET": jwt_secret,
        "NIMBUS_CONTROL_PLANE_URL": url,
        "NIMBUS_LOGGING_BIND": f"127.0.0.1:{logs_port}",
    }
    env = {"NIMBUS_CONTROL_PLANE_URL": url, "NIMBUS_LOGS_URL": logs_url, "NIMBUS_JWT_SECRET": jwt_secret}

    def room(name: str, module: str, page: str, own: dict[str, str]) -> Room:
        return Room(f"nimbus.{module}.main", clean_environment(folder, **own), f"{page}/readyz", folder / f"{name}.log")

    return Fleet(
        clean_environment(folder, **env),
        room("plane", "control_plane", url, control),
        room("pipeline", "logging_pipeline", logs_url, pipeline) if logs else None,
        agent_secret,
    )
