"""One struck run: the real agent serves one job over real HTTP while one operation fails; then everything is counted.

The agent is `nimbus.host_agent.main` in a process of its own. If the fault ends it, a second one starts, as systemd
would do, and the job must come to its one end all the same. Afterwards two reapers race, a third looks again, and
nothing may be left but the neighbour, untouched. Called by campaign.py and by the tests beside it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from nimbus.host import process
from nimbus.host_agent import main as agent_main
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.reaper import reap
from nimbus.model.vm import Ending
from tests.faults.clones import run_clone_agent
from tests.faults.forks import CRASHED, Child, ask, fork, wait_for
from tests.faults.neighbour import NEIGHBOUR
from tests.faults.place import SLOTS, STOP_S, Place, find_subnet, read_leftovers
from tests.faults.plane import ROUTES, SECRET
from tests.faults.strike import KILLS, Fault, Kind, Tracer
from tests.faults.ways import Way
from tests.faults.witness import find_double_runs, find_gaps, read_beats

BEATS = 6  # of the struck job: half a second
LIMIT_S = 100.0  # from an agent's start to its job's end; at worst a lease is asked for, and READ_S waited in vain
SETTLE_S = 20.0
LATE_KILL_S = 3.0  # after its job's end: a kill may be meant for what the agent does then
FILL_S = 90.0  # a pool's first machine, of a host whose acts may hang
HUNG_START_S = 30.0  # nothing of an agent lives while it starts: nobody waits for it longer than its operator does
GAP_S = 15.0  # a neighbour's silence that no load of this machine explains
JOB_TIMEOUT_S = 20.0
ACT_LIMIT_S = 6.0  # what hangs is waited for that long


@dataclass
class Verdict:
    """How one run went. Anything in the four lists is a failure."""

    fault: str
    fired: str = ""  # "thread", "main", "peer" or "service"; empty: it did not fire
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


def run_case(place: Place, fault: Fault | None, way: Way = Way.FAKE) -> Verdict:
    """One job under one fault, from grant to nothing left; `way` is that of a run without a fault."""
    began = time.monotonic()
    place.way = way if fault is None else fault.way
    place.prepare(place.way)
    place.machine += 1
    verdict = Verdict(str(fault))
    for stale in ("fired", "trace.json", "agent1.txt", "agent2.txt"):
        (place.folder / stale).unlink(missing_ok=True)
    of_service = fault is not None and fault.operation in ROUTES
    wire = {"route": fault.operation, "kind": fault.kind} if fault is not None and of_service else None
    place.tell(machine=None if place.way.pool else place.machine, beats=BEATS, fault=wire)
    agent = _start_agent(place, 1, None if of_service else fault)
    try:
        if place.way.pool:
            _fill_pool(place, agent, fault)
            place.tell(machine=place.machine, beats=BEATS)
        _follow(place, agent, fault, verdict)
    finally:
        agent.kill()
    verdict.fired = _read_fired(place, of_service)
    if fault is not None and not verdict.fired:
        verdict.wrong.append("the fault never fired")
    _judge(place, fault, verdict)
    verdict.seconds = round(time.monotonic() - began, 1)
    return verdict


def _fill_pool(place: Place, agent: Child, fault: Fault | None) -> None:
    """The job comes once a machine waits for it, or the agent has said that it could make none."""
    said = ("pool.machine_waits", "pool.not_filled")
    wait_for(lambda: agent.wait(0.05) or any(word in agent.told() for word in said) or _is_frozen(place, fault), FILL_S)


def _follow(place: Place, agent: Child, fault: Fault | None, verdict: Verdict) -> None:
    """See the job to its end, with a second agent where the first one died or froze, and stop the agent."""
    hung_start = fault is not None and fault.at_start and fault.kind is Kind.HANG
    if not _wait_end(place, agent, fault, HUNG_START_S if hung_start else LIMIT_S):
        agent.kill()
        if hung_start:
            verdict.notes.append("an agent that hung at its start was killed by its operator")
        else:
            verdict.wrong.append(f"its job did not end in {LIMIT_S:g} s: {agent.told()[-2000:]}")
    verdict.ending = "+".join(_ends(place))
    if agent.status is None and fault is not None and fault.kind is Kind.HANG and not _is_frozen(place, fault):
        _try_another(place, agent, verdict)
    if fault is not None and fault.kind in KILLS:
        agent.wait(LATE_KILL_S)
    if agent.status is None and not _is_frozen(place, fault):
        _settle(place, agent, fault)
        _stop(agent, verdict, fault)
    died = agent.status != 0 or _is_frozen(place, fault)
    if died:
        _note_death(place, agent, fault, verdict)
    hung = fault is not None and fault.kind is Kind.HANG
    if died or (hung and _has_records(place)):  # what could not be removed says an end: the next agent tells it again
        verdict.agents = 2
        second = _start_agent(place, 2, None)
        try:
            if not _wait_end(place, second, None) or second.status is not None:
                verdict.wrong.append(f"nor with a second agent: {second.told()[-2000:]}")
            _settle(place, second, None)
            _stop(second, verdict, None)
        finally:
            second.kill()


def _note_death(place: Place, agent: Child, fault: Fault | None, verdict: Verdict) -> None:
    frozen = agent.status is None
    agent.kill()
    if frozen:
        verdict.notes.append("agent frozen and killed")
    elif fault is None or fault.kind not in KILLS:
        verdict.notes.append(f"agent ended with {agent.status}")
        # At its start an agent may give up in any way, loudly: nothing of it lives yet.
        if not (fault and fault.at_start) and (agent.status == CRASHED or "Traceback" in agent.told()):
            verdict.wrong.append(f"the agent crashed: {agent.told()[-3000:]}")


def _try_another(place: Place, agent: Child, verdict: Verdict) -> None:
    """Something hangs for good, and other machines must go on."""
    place.machine += 1
    place.tell(machine=place.machine, beats=1)
    if not _wait_end(place, agent, None) or _ends(place) != [Ending.DONE]:
        verdict.wrong.append(f"the next job did not get through: {agent.told()[-2000:]}")


def _settle(place: Place, agent: Child, fault: Fault | None) -> None:
    """A record stays until its end was told: give the agent the time to tell it. What stays for good is a leak."""
    if fault is None or fault.kind is not Kind.HANG:
        wait_for(lambda: agent.wait(0) or not _has_records(place), SETTLE_S)
    if place.way.pool and not (fault is not None and (place.folder / "fired").exists()):
        # the pool makes another one: that is a part of the run, or a fault that is meant for it would miss it
        wait_for(lambda: agent.wait(0) or agent.told().count("pool.machine_waits") > 1, SETTLE_S)


def _has_records(place: Place) -> bool:
    """Beside the neighbour's."""
    known = {name.removeprefix("ledger: ") for name in place.mine}
    folder = place.territory.state_root / "ledger"
    if place.way.pool:  # what waits there for the next job is no leftover of the last
        ledger = Ledger(folder)
        return any(record is not None and record.lease is not None for record in map(ledger.read, ledger.vms()))
    return not {str(file) for file in folder.iterdir()} <= known


def _stop(agent: Child, verdict: Verdict, fault: Fault | None) -> None:
    wait_for(lambda: agent.wait(0) or "agent.ready" in agent.told(), LIMIT_S)  # until then a signal ends it at once
    agent.send(signal.SIGINT)
    if not agent.wait(STOP_S):
        agent.kill()
        verdict.wrong.append(f"the agent did not stop in {STOP_S:g} s: {agent.told()[-2000:]}")
    elif agent.status != 0 and not (fault and fault.kind in KILLS):
        verdict.wrong.append(f"the agent stopped with {agent.status}: {agent.told()[-2000:]}")


def _start_agent(place: Place, number: int, fault: Fault | None) -> Child:
    """The agent in a process of its own, which waits until the plane knows whom to kill."""
    go, gone = os.pipe()
    agent = fork(place.folder / f"agent{number}.txt", _run_agent, place, fault, go)
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
        NIMBUS_CONTROL_PLANE_TOKEN=f"enrolment-{SECRET}",
        NIMBUS_STATE_DIR=str(place.territory.state_root),
        NIMBUS_RUNTIME_DIR=str(place.territory.runtime_dir),
        NIMBUS_VM_SUBNET=str(find_subnet(place.territory)),
        NIMBUS_VM_SLOTS=str(SLOTS),
        NIMBUS_JAILER_UID=str(place.territory.uid_base),
        NIMBUS_VMM="fake",
        NIMBUS_AGENT_METRICS_PORT="0",
        NIMBUS_JOB_TIMEOUT=str(JOB_TIMEOUT_S),
        NIMBUS_VM_SHUTDOWN_GRACE="1",
        NIMBUS_AGENT_LEASE_RETRY_BASE="0.2",
        NIMBUS_HOST_ACT_LIMIT=str(ACT_LIMIT_S),
        NIMBUS_POOL=place.way.pool,
    )
    tracer = Tracer(fault, place.folder / "fired")
    tracer.install()
    try:
        if place.fakes is None or place.way is Way.FAKE:
            agent_main.main()
        else:
            run_clone_agent(place.fakes, templates=place.way is not Way.BOOT)
    finally:
        seen = [tracer.seen, tracer.at_start, sorted(tracer.returned), tracer.is_async, tracer.at_claim]
        (place.folder / "trace.json").write_text(json.dumps(seen))


def _wait_end(place: Place, agent: Child, fault: Fault | None, limit_s: float = LIMIT_S) -> bool:
    """True once the job has its end, or the agent has its own, or the agent is known to be frozen."""
    return wait_for(lambda: agent.wait(0.05) or bool(_ends(place)) or _is_frozen(place, fault), limit_s)


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
    first = f"{verdict.ending}, then " if verdict.ending and verdict.ending != "+".join(ends) else ""
    verdict.ending = f"{first}{'+'.join(ends)} fence {machine['fence']}"
    verdict.notes += [f"tried again: {cause}" for cause in machine["retried"]]
    if len(ends) != 1:
        verdict.wrong.append(f"{len(ends)} ends were accepted")
    if ends != [Ending.DONE] and (fault is None or fault.kind in (Kind.DELAY, *KILLS)):
        verdict.wrong.append(f"the job should have been done: {machine['ends']}")
    if place.way is not Way.FAKE:
        verdict.wrong += _find_bad_ends(machine["ends"])
    verdict.wrong += machine["clashes"]
    verdict.wrong += [f"a secret stands in {file}" for file in _find_secret(place)]
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


def _find_bad_ends(ends: list[dict[str, Any]]) -> list[str]:
    """Whatever a host's operations do, a sound job is done, or its host says what was wrong with itself."""
    good = (Ending.DONE, Ending.HOST_FAULT)
    return [f"an end that is not the job's: {end}" for end in ends if end["ending"] not in good or not _is_named(end)]


def _is_named(end: dict[str, Any]) -> bool:
    return end["ending"] == Ending.DONE or bool(end["cause"])


def _find_secret(place: Place) -> Iterator[Path]:
    """Files that an agent wrote, its own words among them, and that hold what nobody may read later."""
    kept = [file for folder in ("ledger", "vms", "spools") for file in (place.territory.state_root / folder).rglob("*")]
    for file in (*kept, *place.folder.glob("agent?.txt")):
        if file.is_file() and file.suffix != ".img" and SECRET.encode() in file.read_bytes():
            yield file


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
    now = read_leftovers(place)
    verdict.leaks += sorted(now - place.mine)
    verdict.hurt += [f"lost: {name}" for name in sorted(place.mine - now)]


def _reap(place: Place) -> tuple[int, int]:
    report = trio.run(partial(reap, place.layout, living=True))
    return len(report.reaped), len(report.stuck)


def _find_leaks(place: Place) -> list[str]:
    return sorted(read_leftovers(place) - place.mine)
