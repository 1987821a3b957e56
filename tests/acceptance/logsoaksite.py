"""The processes of a log soak: the pipeline with its engine, agent-like processes, and the network between them.

The control plane is the double of the pipeline's own tests. Starts what was killed again, and counts what the pipeline
tells in its metrics across its deaths. Judges nothing. Called by logsoak.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import trio

from nimbus.runtime.serving import serve_app
from nimbus.wire.tokens import Audience, hmac_key, render_token
from tests.acceptance.fleet import Room
from tests.acceptance.logsoakagent import Assignment, Ordered
from tests.acceptance.logsoaklines import Printed
from tests.acceptance.logsoakrelay import HOST, FaultyRelay
from tests.acceptance.stack import LIMIT_S, clean_environment
from tests.unit.logging_pipeline.rig import SECRET, ControlPlane, control_app

TOKEN_S = 6 * 3600
AWAY_S = 1.0  # at most, before somebody starts what died
LOOK_S = 0.05
SCRAPE_S = 0.5
ORGS = 3
FENCE = 1
REPO = 77
MIB = 2**20
_BOUND = ("setpriv", "--pdeathsig", "KILL")  # a process ends with the soak, however that ends
_COUNTERS = ("nimbus_logs_rows_stored_total", "nimbus_logs_rows_repeated_total", "nimbus_logs_insert_failures_total")
STORED, REPEATED, FAILED_INSERTS = _COUNTERS


def org_of(job_id: int) -> int:
    return 1 + job_id % ORGS


def machine_of(job_id: int) -> int:
    return 1000 + job_id


@dataclass
class Counters:
    """The pipeline's counters over all its lives; what one counted after the last look is lost with it."""

    before: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.before.get(name, 0) + self.now.get(name, 0)

    def begin_life(self) -> None:
        self.before = {name: self[name] for name in _COUNTERS}
        self.now = {}

    def read(self, text: str) -> None:
        lines = (line.split() for line in text.splitlines() if line.startswith(_COUNTERS))
        self.now = {words[0]: int(float(words[1])) for words in lines if len(words) == 2}


class AgentProcess:
    """One agent-like process: started again by `tend` whenever it is gone."""

    def __init__(self, assignment: Assignment, log: Path) -> None:
        self._assignment, self._log = assignment, log
        self.popen: subprocess.Popen[bytes] | None = None
        self.lines = 0
        self.arrived = 0
        self.failed: list[str] = []
        self.is_killed = False  # by us

    @property
    def jobs(self) -> tuple[Ordered, ...]:
        return self._assignment.jobs

    @property
    def is_done(self) -> bool:
        return self.arrived == len(self.jobs)

    def tell(self, share: float) -> None:
        """Let it print up to this share of its jobs' output."""
        if self.popen is not None and self.popen.stdin is not None:
            with suppress(BrokenPipeError):
                self.popen.stdin.write(f"{share}\n".encode())
                self.popen.stdin.flush()

    def kill(self) -> None:
        if self.popen is not None:
            self.is_killed = True
            self.popen.kill()

    async def run_once(self, share: float) -> int:
        """One life of it: its exit status."""
        argv = [*_BOUND, sys.executable, "-m", "tests.acceptance.logsoakagent"]
        with self._log.open("ab") as log:
            # from here on, its share of a soak's folder is all that it has: cwd is where `tests` is found
            self.popen = popen = subprocess.Popen(  # noqa: ASYNC220 - a process must be the child of the main thread
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[2]
            )
        assert popen.stdin is not None
        assert popen.stdout is not None
        self.is_killed = False
        try:
            with suppress(BrokenPipeError):
                popen.stdin.write(self._assignment.render())
                popen.stdin.flush()
            self.tell(share)
            await self._listen(popen.stdout.fileno())
        finally:
            popen.kill()
            popen.stdout.close()
            with suppress(BrokenPipeError):
                popen.stdin.close()
            self.popen = None
            status = popen.wait(LIMIT_S)
        return status

    async def _listen(self, told: int) -> None:
        """What it says, until it says no more."""
        async with trio.lowlevel.FdStream(os.dup(told)) as stream:
            held = b""
            async for chunk in stream:
                *whole, held = (held + chunk).split(b"\n")
                for line in whole:
                    value = json.loads(line)
                    self.lines = max(self.lines, value["lines"])
                    self.arrived, self.failed = value["arrived"], value["failed"]


@dataclass
class Site:
    """All of it while it runs."""

    jobs: tuple[Printed, ...]
    folder: Path
    rng: random.Random
    control: ControlPlane
    service: Room
    relay: FaultyRelay
    client: httpx2.AsyncClient
    agents: list[AgentProcess] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    rss_mib: dict[str, int] = field(default_factory=dict)  # the highest that was seen, by kind of process
    faults: list[str] = field(default_factory=list)
    share: float = 0.0  # of all output that may be printed by now
    service_port: int = 0
    is_stopping: bool = False
    _is_killed: bool = False  # the service, by us

    @property
    def lines(self) -> int:
        """Printed so far."""
        return sum(agent.lines for agent in self.agents)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def allow(self, share: float) -> None:
        self.share = share
        for agent in self.agents:
            agent.tell(share)

    def read_token(self, org_id: int) -> str:
        return render_token(
            hmac_key(SECRET), subject="soak", audience=Audience.LOGS_READ, now_s=time.time(), ttl_s=TOKEN_S,
            claims={"role": "read", "org_id": org_id},
        )  # fmt: skip

    def machine_token(self, job_id: int) -> str:
        whose = {"org_id": org_of(job_id), "machine_id": machine_of(job_id), "fence": FENCE, "agent_id": "soak"}
        return render_token(
            self.control.signing_key, subject="machine", audience=Audience.LOGS, now_s=time.time(), ttl_s=TOKEN_S,
            claims=whose,
        )  # fmt: skip

    def kill_service(self) -> bool:
        """False where it is not running."""
        if not self.service.is_running():
            return False
        self._is_killed = True
        self.service.kill()
        return True

    def kill_engine(self) -> bool:
        """False where there is none."""
        pid = self.engine_pid()
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def engine_pid(self) -> int | None:
        """The engine of the pipeline that runs now."""
        if not self.service.is_running():
            return None
        with suppress(OSError):
            for task in Path(f"/proc/{self.service.pid}/task").iterdir():
                for pid in (task / "children").read_text().split():
                    if b"nimbus.logging_pipeline.engine.main" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                        return int(pid)
        return None

    async def tend_service(self) -> None:
        """Start it whenever it is gone. That it ends by itself is a fault."""
        while not self.is_stopping:
            if not self.service.is_running():
                if self.service.popen is not None and not self._is_killed:
                    self.faults.append(f"the pipeline ended by itself with {self.service.popen.poll()}")
                self._is_killed = False
                self.counters.begin_life()
                await trio.sleep(self.rng.uniform(0, AWAY_S))
                self.service.launch()
            await trio.sleep(LOOK_S)

    async def tend_agent(self, agent: AgentProcess) -> None:
        while True:
            status = await agent.run_once(self.share)
            if not agent.is_killed:
                self.faults.append(f"an agent ended by itself with {status}")
            await trio.sleep(self.rng.uniform(0, AWAY_S))

    async def scrape(self) -> None:
        """The pipeline's counters and everybody's memory, now and then."""
        while True:
            with trio.move_on_after(5), suppress(httpx2.TransportError):
                answer = await self.client.get(f"http://{HOST}:{self.service_port}/metrics")
                if answer.status_code == 200:
                    self.counters.read(answer.text)
            self._weigh("pipeline", self.service.popen.pid if self.service.popen else None)
            self._weigh("engine", self.engine_pid())
            self._weigh("soak", os.getpid())
            for agent in self.agents:
                self._weigh("agent", agent.popen.pid if agent.popen else None)
            await trio.sleep(SCRAPE_S)

    def _weigh(self, kind: str, pid: int | None) -> None:
        if pid is None:
            return
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.rss_mib[kind] = max(self.rss_mib.get(kind, 0), pages * os.sysconf("SC_PAGESIZE") // MIB)


@asynccontextmanager
async def open_site(jobs: tuple[Printed, ...], agents: int, folder: Path, rng: random.Random) -> AsyncIterator[Site]:
    """Everything running and reachable; gone with the block."""
    control, stop = ControlPlane(), trio.Event()
    for job in jobs:
        control.add_job(job.job_id, org_of(job.job_id), "in_progress", [(machine_of(job.job_id), FENCE)])
        control.add_link(machine_of(job.job_id), FENCE, org_of(job.job_id), job.job_id, REPO)
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client, trio.open_nursery() as nursery:
        binds = await nursery.start(serve_app, control_app(control), [f"{HOST}:0"], stop)
        port = find_port(rng)
        env = clean_environment(
            folder / "state",
            NIMBUS_CONTROL_PLANE_URL=binds[0],
            NIMBUS_JWT_SECRET=SECRET,
            NIMBUS_LOGGING_BIND=f"{HOST}:{port}",
            PYTHONPATH=str(Path(__file__).parents[2]),
        )
        service = Room("nimbus.logging_pipeline.main", env, f"http://{HOST}:{port}/readyz", folder / "pipeline.log")
        relay = FaultyRelay(find_port(rng), port, rng)
        site = Site(jobs, folder, rng, control, service, relay, client, service_port=port)
        try:
            nursery.start_soon(site.tend_service)
            await nursery.start(relay.serve)
            await wait_ready(site)
            for number in range(agents):
                site.agents.append(_plan_agent(site, number, agents))
                nursery.start_soon(site.tend_agent, site.agents[-1])
            nursery.start_soon(site.scrape)
            yield site
        finally:
            site.is_stopping = True
            nursery.cancel_scope.cancel()
            if site.service.is_running():
                site.service.kill()


def _plan_agent(site: Site, number: int, agents: int) -> AgentProcess:
    """Every so-many-th job, with a folder of their own."""
    folder = site.folder / f"agent{number}"
    folder.mkdir()
    mine = site.jobs[number::agents]
    ordered = tuple(Ordered(job.job_id, job.lines, site.machine_token(job.job_id)) for job in mine)
    return AgentProcess(Assignment(site.relay.url, str(folder), mine[0].seed, ordered), site.folder / "agents.log")


async def wait_ready(site: Site) -> None:
    """Until the pipeline says that it is ready."""
    while True:
        with suppress(httpx2.TransportError):
            if (await site.client.get(site.service.page)).status_code == 200:
                return
        await trio.sleep(LOOK_S)


def find_port(rng: random.Random) -> int:
    """One that no outgoing connection is given while whoever listens there is dead."""
    while True:
        port = rng.randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


async def stop_service(site: Site) -> None:
    """In good order, so that its engine is gone too."""
    site.is_stopping = True
    status, _ = await trio.to_thread.run_sync(partial(site.service.stop, signal.SIGTERM))
    if status:
        site.faults.append(f"the pipeline ended with {status}")
