"""One struck run: the real agent serves one job over real HTTP while one operation fails; then everything is counted.

The agent is `nimbus.host_agent.main` in a process of its own. If the fault ends it, a second one starts, as systemd
would do, and the job must come to its one end all the same. Afterwards two reapers race, a third looks again, and
nothing may be left but the neighbour, untouched. Called by campaign.py and by the tests beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from nimbus.host import process
from nimbus.host.inventory import Territory, leftovers
from nimbus.host_agent import main as agent_main
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from nimbus.model.record import ProcessId
from nimbus.model.vm import Ending
from tests.faults.forks import CRASHED, Child, ask, fork, wait_for
from tests.faults.neighbour import NEIGHBOUR, run_neighbour
from tests.faults.plane import ROUTES, open_listener, serve_plane, tell_plane
from tests.faults.strike import KILLS, Fault, Kind, Tracer
from tests.faults.witness import find_double_runs, find_gaps, read_beats
from tests.oracle import open_territory

BEATS = 6  # of the struck job: half a second
LIMIT_S = 60.0  # from an agent's start to its job's end; a fault costs at most some limits of ten seconds
STOP_S = 40.0
GAP_S = 15.0  # a neighbour's silence that no load of this machine explains
JOB_TIMEOUT_S = 20.0


@dataclass
class Place:
    """Where the runs of one worker happen: a state root with a neighbour in it, and a plane."""

    territory: Territory
    folder: Path  # what the campaign writes itself; no part of the state root
    port: int
    neighbour: Child
    machine: int = NEIGHBOUR
    mine: frozenset[str] = frozenset()  # all that is the neighbour's, by kind and name
    beating: tuple[ProcessId, ...] = ()

    @property
    def beat_file(self) -> Path:
        return self.folder / "beats"

    @property
    def layout(self) -> HostLayout:
        territory = self.territory
        return HostLayout(territory.state_root, territory.runtime_dir, uid_base=territory.uid_base)

    def tell(self, **order: Any) -> dict[str, Any]:
        return tell_plane(self.port, **order)


@dataclass
class Verdict:
    """How one run went. Anything in the four lists is a failure."""

    fault: str
    fired: str = ""  # "thread", "main" or "service"; empty: it did not fire
    ending: str = ""
    agents: int = 1
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)
    hurt: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return bool(self.fired) and not (self.wrong or self.leaks or self.doubles or self.hurt)


@contextmanager
def open_place() -> Iterator[Place]:
    """A place for runs; its neighbour leaves nothing at the end, or this raises."""
    with open_territory() as territory:
        folder = territory.state_root.with_name(f"{territory.state_root.name}-faults")
        folder.mkdir()
        listener = open_listener()
        plane = fork(folder / "plane.txt", serve_plane, listener, folder / "beats")
        port = listener.getsockname()[1]
        listener.close()
        neighbour = fork(folder / "neighbour.txt", run_neighbour, territory, folder / "beats")
        try:
            place = Place(territory, folder, port, neighbour)
            _settle(place)
            yield place
            neighbour.send(signal.SIGTERM)
            if not neighbour.wait(STOP_S) or neighbour.status != 0:
                raise RuntimeError(f"the neighbour did not end well: {neighbour.told()}")
            left = _ask_leftovers(place)
            if left:
                raise RuntimeError(f"left after the last run: {left}")
        finally:
            neighbour.kill()
            plane.kill()
            shutil.rmtree(folder)


def _settle(place: Place) -> None:
    """Wait until the neighbour beats, and remember all that it owns."""
    if not wait_for(lambda: bool(read_beats(place.beat_file)), LIMIT_S):
        raise RuntimeError(f"the neighbour does not live: {place.neighbour.told()}")
    place.mine = _ask_leftovers(place)
    pids = {int(name.split()[2]) for name in place.mine if name.startswith("processes: pid ")}
    place.beating = tuple(process.identify(pid) for pid in sorted(pids))


def run_case(place: Place, fault: Fault | None) -> Verdict:
    """One job under one fault, from grant to nothing left."""
    began = time.monotonic()
    place.machine += 1
    verdict = Verdict("none" if fault is None else f"{fault.operation} {fault.kind}")
    for stale in ("fired", "trace.json", "agent.txt"):
        (place.folder / stale).unlink(missing_ok=True)
    of_service = fault is not None and fault.operation in ROUTES
    wire = {"route": fault.operation, "kind": fault.kind} if fault is not None and of_service else None
    place.tell(machine=place.machine, beats=BEATS, fault=wire)
    agent = _start_agent(place, None if of_service else fault)
    try:
        _follow(place, agent, fault, verdict)
    finally:
        agent.kill()
    verdict.fired = _read_fired(place, of_service)
    if fault is not None and not verdict.fired:
        verdict.wrong.append("the fault never fired")
    _judge(place, fault, verdict)
    verdict.seconds = round(time.monotonic() - began, 1)
    return verdict


def _follow(place: Place, agent: Child, fault: Fault | None, verdict: Verdict) -> None:
    """See the job to its end, with a second agent where the first one died or froze, and stop the agent."""
    if not _wait_end(place, agent, fault):
        agent.kill()
        verdict.wrong.append(f"its job did not end in {LIMIT_S:g} s: {agent.told()[-2000:]}")
    if agent.status is None and fault is not None and fault.kind is Kind.HANG:
        _try_another(place, agent, verdict)
    if agent.status is not None or _is_frozen(place, fault):
        _note_death(place, agent, fault, verdict)
        verdict.agents = 2
        second = _start_agent(place, None)
        try:
            if not _wait_end(place, second, None) or second.status is not None:
                verdict.wrong.append(f"nor with a second agent: {second.told()[-2000:]}")
            _stop(second, verdict)
        finally:
            second.kill()
    else:
        _stop(agent, verdict)


def _note_death(place: Place, agent: Child, fault: Fault | None, verdict: Verdict) -> None:
    frozen = agent.status is None
    agent.kill()
    if frozen:
        verdict.notes.append("agent frozen and killed")
    elif fault is None or fault.kind not in KILLS:
        verdict.notes.append(f"agent ended with {agent.status}")
        if agent.status == CRASHED or "Traceback" in agent.told():
            verdict.wrong.append(f"the agent crashed: {agent.told()[-3000:]}")


def _try_another(place: Place, agent: Child, verdict: Verdict) -> None:
    """Something hangs for good, and other machines must go on."""
    place.machine += 1
    place.tell(machine=place.machine, beats=1)
    if not _wait_end(place, agent, None) or _ends(place) != [Ending.DONE]:
        verdict.wrong.append(f"the next job did not get through: {agent.told()[-2000:]}")


def _stop(agent: Child, verdict: Verdict) -> None:
    agent.send(signal.SIGINT)
    if not agent.wait(STOP_S):
        agent.kill()
        verdict.wrong.append(f"the agent did not stop in {STOP_S:g} s: {agent.told()[-2000:]}")
    elif agent.status != 0:
        verdict.wrong.append(f"the agent stopped with {agent.status}: {agent.told()[-2000:]}")


def _start_agent(place: Place, fault: Fault | None) -> Child:
    """The agent in a process of its own, which waits until the plane knows whom to kill."""
    go, gone = os.pipe()
    agent = fork(place.folder / "agent.txt", _run_agent, place, fault, go)
    place.tell(agent=agent.pid)
    os.close(go)
    os.write(gone, b".") if agent.status is None else None
    os.close(gone)
    return agent


def _run_agent(place: Place, fault: Fault | None, go: int) -> None:
    os.read(go, 1)
    os.close(go)
    os.environ.update(
        NIMBUS_AGENT_ID="struck",
        NIMBUS_CONTROL_PLANE_URL=f"http://127.0.0.1:{place.port}",
        NIMBUS_CONTROL_PLANE_TOKEN="enrolment",
        NIMBUS_STATE_DIR=str(place.territory.state_root),
        NIMBUS_RUNTIME_DIR=str(place.territory.runtime_dir),
        NIMBUS_VMM="fake",
        NIMBUS_AGENT_METRICS_PORT="0",
        NIMBUS_JOB_TIMEOUT=str(JOB_TIMEOUT_S),
        NIMBUS_VM_SHUTDOWN_GRACE="1",
        NIMBUS_AGENT_LEASE_RETRY_BASE="0.2",
    )
    tracer = Tracer(fault, place.folder / "fired")
    tracer.install()
    try:
        agent_main.main()
    finally:
        (place.folder / "trace.json").write_text(json.dumps([tracer.seen, tracer.is_async]))


def _wait_end(place: Place, agent: Child, fault: Fault | None) -> bool:
    """True once the job has its end, or the agent has its own, or the agent is known to be frozen."""
    return wait_for(lambda: agent.wait(0.05) or bool(_ends(place)) or _is_frozen(place, fault), LIMIT_S, 0.05)


def _is_frozen(place: Place, fault: Fault | None) -> bool:
    """Trio's own thread hangs, and with it the agent: only its death can help, which is its operator's to give."""
    fired = place.folder / "fired"
    return fault is not None and fault.kind is Kind.HANG and fired.exists() and fired.read_text() == "main"


def _ends(place: Place) -> list[str]:
    return [end["ending"] for end in place.tell()["machine"]["ends"]]


def _read_fired(place: Place, of_service: bool) -> str:
    if of_service:
        return "service" if place.tell()["struck"] else ""
    fired = place.folder / "fired"
    return fired.read_text() if fired.exists() else ""


def _judge(place: Place, fault: Fault | None, verdict: Verdict) -> None:
    machine = place.tell(fault=None)["machine"]
    ends = [end["ending"] for end in machine["ends"]]
    verdict.ending = f"{'+'.join(ends)} fence {machine['fence']}"
    if len(ends) != 1:
        verdict.wrong.append(f"{len(ends)} ends were accepted")
    if ends != [Ending.DONE] and (fault is None or fault.kind in (Kind.DELAY, *KILLS)):
        verdict.wrong.append(f"the job should have been done: {machine['ends']}")
    verdict.wrong += machine["clashes"]
    try:
        _reap_all(place, verdict)
    except RuntimeError as error:
        verdict.wrong.append(f"reaping: {error}")
    beats = read_beats(place.beat_file)
    verdict.doubles += find_double_runs(beats)
    verdict.hurt += find_gaps([beat for beat in beats if beat.machine == NEIGHBOUR], GAP_S)
    verdict.hurt += [
        f"process {one.pid} of the neighbour is gone" for one in place.beating if not process.is_alive(one)
    ]


def _reap_all(place: Place, verdict: Verdict) -> None:
    """Two reapers race, a third finds nothing more; the oracle looks after each."""
    racers = [fork(place.folder / f"reaper{n}.txt", _reap, place) for n in range(2)]
    for racer in racers:
        if not racer.wait(LIMIT_S) or racer.status != 0:
            racer.kill()
            verdict.wrong.append(f"a reaper ended with {racer.status}: {racer.told()[-2000:]}")
    verdict.leaks += _find_leaks(place)
    again = ask(place.folder / "reaper.txt", LIMIT_S, partial(_reap, place))
    if again != [0, 0]:
        verdict.leaks.append(f"a third reaper found {again[0]} to reap and {again[1]} stuck")
    now = _ask_leftovers(place)
    verdict.leaks += sorted(now - place.mine)
    verdict.hurt += [f"lost: {name}" for name in sorted(place.mine - now)]


def _reap(place: Place) -> tuple[int, int]:
    report = trio.run(partial(reap, place.layout, living=True))
    return len(report.reaped), len(report.stuck)


def _find_leaks(place: Place) -> list[str]:
    return sorted(_ask_leftovers(place) - place.mine)


def _ask_leftovers(place: Place) -> frozenset[str]:
    names = ask(place.folder / "oracle.txt", LIMIT_S, lambda: [str(leak) for leak in leftovers(place.territory)])
    return frozenset(names)
