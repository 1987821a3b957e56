"""`python -m bench.controlwait`: what agents cost that wait, and how soon one of them has what was queued.

Each agent is a connection of its own that asks for work and waits for 20 s, as host_agent/poller.py does, and a second
one for heartbeats, as often as it is told (an agent keeps its own for longer than that); the client beside them does as
little as can be. `measure_idle` gives the control plane's share of a core while nothing is queued, `measure_wakes` the
time from the answer to a submission until the answer to the one poll that it woke, over all control planes, and
`measure_passes` the same where the one that was woken first leases nothing. All work on what is running already, so
that another bench may open it. control.py does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families

from bench.controlhost import PlaneProcess, mint_admin, mint_enrolment, open_control_host
from bench.frame import percentile
from nimbus import __version__
from nimbus.runtime.http import open_http
from nimbus.runtime.postgres import open_database

AGENTS, WAIT_S, BEAT_S = 1000, 20.0, 15.0
IDLE_S = 60.0  # each agent asks three times and tells of itself twice
WAKES = 200
SETTLE_S = BEAT_S + WAIT_S  # by then each has asked and told twice: it is known that nothing runs there
PASSES = 10
PATIENCE_S = 1.0  # LeaseTerms.patience_s: nothing here sets another
PAUSE_S = 0.05  # an agent ends what it had and waits again: a quiet moment between two requests
ENROL_AT_ONCE = 8
CHUNK = 65536
_OFFER = "INSERT INTO offers VALUES ($1, 0, clock_timestamp() + make_interval(secs => $2::double precision))"
_COUNTED = {
    "nimbus_control_plane_queue_looks": "looks",
    "nimbus_control_plane_agents_woken": "woken",
    "nimbus_control_plane_leases_granted": "granted",
}


class Line:
    """One connection that is kept: a request, then its answer."""

    def __init__(self, stream: trio.SocketStream, token: str) -> None:
        self._stream = stream
        self._token = token
        self._read = b""

    async def post(self, path: str, body: object, *expected: int) -> tuple[int, bytes]:
        """Status and body of the answer, which must be one of those that are expected."""
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        await self._stream.send_all(head.encode() + raw)
        while b"\r\n\r\n" not in self._read:
            await self._receive()
        answered, _, self._read = self._read.partition(b"\r\n\r\n")
        length = 0
        for line in answered.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(self._read) < length:
            await self._receive()
        answer, self._read = self._read[:length], self._read[length:]
        status = int(answered.split(b" ", 2)[1])
        if status not in expected:
            raise RuntimeError(f"{path} answered {status}: {answer[:500]!r}")
        return status, answer

    async def _receive(self) -> None:
        chunk = await self._stream.receive_some(CHUNK)
        if not chunk:
            raise ConnectionResetError
        self._read += chunk


@asynccontextmanager
async def open_line(port: int, token: str) -> AsyncIterator[Line]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        yield Line(stream, token)


@dataclass(frozen=True)
class Idle:
    """What so many waiting agents cost one process."""

    agents: int
    seconds: float
    cpu_share: float  # of one core
    polls_per_s: float
    beats_per_s: float


@dataclass
class Crowd:
    """Agents that wait, and what they were granted when."""

    polls: int = 0
    beats: int = 0
    granted: dict[int, list[float]] = field(default_factory=dict)  # by machine
    _news: trio.Event = field(default_factory=trio.Event)

    def note(self, machine_id: int, at_s: float) -> None:
        self.granted.setdefault(machine_id, []).append(at_s)
        self._news.set()

    async def wait_granted(self, machine_id: int) -> float:
        while machine_id not in self.granted:
            self._news = trio.Event()
            await self._news.wait()
        return self.granted[machine_id][0]


async def enrol(port: int, agent_ids: Sequence[str]) -> dict[str, str]:
    """Each agent's own token."""
    tokens: dict[str, str] = {}
    places = trio.CapacityLimiter(ENROL_AT_ONCE)

    async def one(agent_id: str) -> None:
        async with places, open_line(port, mint_enrolment(agent_id)) as line:
            asked = {"version": "0.1.0", "boot_id": agent_id, "cpus": 8, "mem_mib": 16384}
            _, answer = await line.post("/api/agents/enrol", asked, 200)
            tokens[agent_id] = json.loads(answer)["token"]

    async with trio.open_nursery() as nursery:
        for agent_id in agent_ids:
            nursery.start_soon(one, agent_id)
    return tokens


async def run_agent(port: int, token: str, crowd: Crowd, first_after_s: float) -> None:
    """Ask, wait, and end at once whatever was granted, until cancelled."""
    await trio.sleep(first_after_s)
    asked = {"wait_s": WAIT_S, "free": {"cpus": 8, "mem_mib": 16384, "slots": 8}, "labels": ["nimbus"]}
    async with open_line(port, token) as line:
        while True:
            status, answer = await line.post("/api/agents/lease", asked, 200, 204)
            crowd.polls += 1
            if status == 200:
                grant = json.loads(answer)
                crowd.note(grant["machine_id"], time.monotonic())
                ended = {"lease_id": grant["lease_id"], "fence": grant["fence"], "ending": "done", "exit_code": 0}
                await line.post(f"/api/machines/{grant['machine_id']}/finish", ended, 200)


async def run_heart(port: int, token: str, crowd: Crowd, first_after_s: float) -> None:
    """Tell of an idle host again and again, until cancelled."""
    await trio.sleep(first_after_s)
    room = {"cpus": 8, "mem_mib": 16384, "slots": 8, "disk_mib": 200_000}
    told: dict[str, object] = {
        "version": __version__, "boot_id": "bench", "start": 1, "doing": "working", "vmm": "qemu", "arch": "x64",
        "labels": ["nimbus"], "total": room, "free": room, "pool": {}, "records": [],
    }  # fmt: skip
    async with open_line(port, token) as line:
        for beat in itertools.count(1):
            began_s = trio.current_time()
            _, answer = await line.post("/api/agents/heartbeat", told | {"beat": beat}, 200)
            crowd.beats += 1
            await trio.sleep_until(began_s + json.loads(answer)["interval_s"])


@asynccontextmanager
async def open_crowd(
    planes: Sequence[PlaneProcess], agents: int, settle_s: float = SETTLE_S, *, hearts: bool = True
) -> AsyncIterator[Crowd]:
    """So many agents that wait at these planes in turn; each has asked by now, and told of itself if it has a heart."""
    names = [f"bench-{number}" for number in range(agents)]
    tokens = await enrol(planes[0].port, names)
    crowd = Crowd()
    async with trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            plane = planes[number % len(planes)]
            spread = min(1.0, settle_s / SETTLE_S) * number / agents
            nursery.start_soon(run_agent, plane.port, tokens[name], crowd, spread * WAIT_S)
            if hearts:
                nursery.start_soon(run_heart, plane.port, tokens[name], crowd, spread * BEAT_S)
        await trio.sleep(settle_s)
        yield crowd
        nursery.cancel_scope.cancel()


async def measure_idle(plane: PlaneProcess, crowd: Crowd, agents: int, seconds: float = IDLE_S) -> Idle:
    """The plane's share of one core while its crowd waits."""
    began_s, cpu_s, polls, beats = time.monotonic(), plane.cpu_s(), crowd.polls, crowd.beats
    await trio.sleep(seconds)
    spent_s = time.monotonic() - began_s
    share = (plane.cpu_s() - cpu_s) / spent_s
    return Idle(agents, spent_s, share, (crowd.polls - polls) / spent_s, (crowd.beats - beats) / spent_s)


async def measure_wakes(planes: Sequence[PlaneProcess], crowd: Crowd, count: int = WAKES) -> list[float]:
    """Milliseconds from the answer to each submission, at these planes in turn, to the answer of the poll it woke."""
    taken_ms = []
    for number in range(count):
        _, wait_ms = await _submit(planes[number % len(planes)], crowd)
        taken_ms.append(wait_ms)
        await trio.sleep(PAUSE_S)
    return taken_ms


async def measure_passes(
    planes: Sequence[PlaneProcess], dsn: str, crowd: Crowd, count: int = PASSES, patience_s: float = PATIENCE_S
) -> list[float]:
    """Milliseconds as of `measure_wakes`, where each request has been offered to an agent that never leases it.

    A look for work is made by the control plane for its agent: one that dies meanwhile, and all of its agents with it,
    is the one whose agent leases nothing. What it leaves is an offer, so that is what is written here, ahead.
    """
    taken_ms = []
    async with open_database(dsn, 1) as database:
        machine_id, _ = await _submit(planes[0], crowd)
        for number in range(count):
            await trio.sleep(PAUSE_S)
            await database.fetch(_OFFER, machine_id + 1, patience_s)
            last = machine_id
            machine_id, wait_ms = await _submit(planes[number % len(planes)], crowd)
            if machine_id != last + 1:
                raise RuntimeError(f"machine {machine_id} was not the one after {last}: somebody else submits")
            taken_ms.append(wait_ms)
    return taken_ms


async def _submit(plane: PlaneProcess, crowd: Crowd) -> tuple[int, float]:
    """The machine, and the milliseconds until somebody had it."""
    async with open_line(plane.port, mint_admin()) as line:
        _, answer = await line.post("/api/jobs", {"argv": ["true"]}, 201)
    answered_s = time.monotonic()
    machine_id: int = json.loads(answer)["machine_id"]
    granted_s = await crowd.wait_granted(machine_id)
    return machine_id, max(0.0, (granted_s - answered_s) * 1000)


async def read_counters(planes: Sequence[PlaneProcess]) -> dict[str, float]:
    """How often all of these control planes looked, woke and granted."""
    sums = dict.fromkeys(("looks", "woken", "granted"), 0.0)
    for plane in planes:
        async with open_http(f"http://127.0.0.1:{plane.port}") as http:
            text = (await http.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            if family.name in _COUNTED:
                counted = (s.value for s in family.samples if not s.name.endswith("_created"))
                sums[_COUNTED[family.name]] += sum(counted)
    return sums


async def _run(folder: Path, agents: int, seconds: float, wakes: int) -> None:
    async with open_control_host(folder, planes=2) as host:
        for hearts in (False, True):
            async with open_crowd(host.planes[:1], agents, hearts=hearts) as crowd:
                print(asdict(await measure_idle(host.planes[0], crowd, agents, seconds)))
        async with open_crowd(host.planes, 100) as crowd:
            taken_ms = await measure_wakes(host.planes, crowd, wakes)
            print({f"p{percent}_ms": round(percentile(taken_ms, percent), 2) for percent in (50, 95, 99, 100)})
            print({"granted more than once": sum(len(times) > 1 for times in crowd.granted.values())})
            print({"passed on, ms": [round(ms) for ms in await measure_passes(host.planes, host.dsn, crowd)]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--seconds", type=float, default=IDLE_S)
    parser.add_argument("--wakes", type=int, default=WAKES)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nimbus-bench-wait-"))
    try:
        trio.run(_run, folder, asked.agents, asked.seconds, asked.wakes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
