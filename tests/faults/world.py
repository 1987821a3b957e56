"""Two hosts, their agents and one control plane: what a story of the lease machine happens to.

Every act is a method that a word of the story names, and does nothing where it has nothing to act upon, so any list of
words can be told again. Agents are the real ones, in forked processes; namespaces, cgroups, keepers and jobs are real,
the VMM is the fake. Called by lease_machine.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from nimbus.host import process
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from tests.faults.forks import fork, wait_for
from tests.faults.gatejob import gate_argv
from tests.faults.laws import (
    AGENT_LEFT,
    AGENT_TORE_DOWN,
    CUT,
    PURGED,
    VM_KILLED,
    Evidence,
    Hindrance,
    Patience,
    Trouble,
    find_crimes,
)
from tests.faults.leasehosts import START_S, STOP_S, Host, open_host
from tests.faults.leaseplane import serve_leases
from tests.faults.plane import open_listener, tell_plane
from tests.faults.witness import read_beats

TTL_S = 5.0  # an agent renews each third of it, and gives up after three quarters
PATIENCE = Patience(holder_s=TTL_S * 3 / 4, renews_s=TTL_S * 3 / 5, adopts_s=1.5)
STALL_S = 0.5  # a neighbour that did not beat for so long: the machine itself stood still
NAMES = ("a", "b")


class Crime(BaseException):
    """Something that must never happen. No Exception: Hypothesis would tell the story again, on a spoiled host."""


class World:
    """See the module."""

    def __init__(self, folder: Path, port: int, hosts: Iterable[Host]) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.folder = folder
        self.stories = 0
        self.account: Counter[str] = Counter()  # how the leases of all stories ended
        self._port = port
        self._numbers = 0
        self._first = 1
        self._troubles: list[Trouble] = []
        self._hindrances: list[Hindrance] = []  # that are over
        self._gates: dict[int, int] = {}

    @property
    def requests(self) -> int:
        """How many this story has."""
        return self._numbers + 1 - self._first

    def tell(self, **order: Any) -> dict[str, Any]:
        return tell_plane(self._port, **order)

    def begin(self) -> None:
        """A new story: no request, both agents about to start."""
        self.tell(reset=True)
        self._first, self._troubles, self._hindrances, self._gates = self._numbers + 1, [], [], {}
        self._beats.unlink(missing_ok=True)
        for name in NAMES:
            self.hosts[name].away_at = time.monotonic()
            self.start(name)

    # --- requests and their jobs --------------------------------------------------------------------------------

    def submit(self) -> None:
        self._numbers += 1
        gate = self._gate(self._numbers)
        self.tell(submit=self._numbers, argv=gate_argv(self._beats, self._numbers, gate))

    def end_job(self, index: int, code: int) -> None:
        """Open the gate of the story's index-th request."""
        number = self._first + index
        if number > self._numbers or number in self._gates:
            return
        self._gates[number] = code
        torn = self._gate(number).with_suffix(".new")
        torn.write_text(str(code))
        torn.rename(self._gate(number))

    def lose(self, index: int) -> None:
        """The control plane refuses the present lease from now on."""
        if self._first + index <= self._numbers:
            self.tell(lose=self._first + index)

    def kill_keeper(self, index: int) -> None:
        self._kill_of(index, lambda keeper: [keeper])

    def kill_vmm(self, index: int) -> None:
        self._kill_of(index, _children)

    def _kill_of(self, index: int, find: Callable[[int], list[int]]) -> None:
        for host in self.hosts.values():
            for machine, fence, keeper in host.living():
                if machine == self._first + index:
                    self._note(VM_KILLED, host, machine, fence)
                    for pid in find(keeper):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

    # --- agents -------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        host = self.hosts[name]
        if host.draining and host.agent is not None and host.agent.wait(0):
            self._bury(host, 0)
        if host.agent is None:
            host.start(self._port)

    def kill(self, name: str) -> None:
        host = self.hosts[name]
        if host.agent is not None:
            self._note_leaving(AGENT_LEFT, host)
            self._end_freeze(host)  # its death does not undo what the freeze before it cost
            host.agent.kill()
            self._bury(host, -signal.SIGKILL)

    def stop(self, name: str) -> None:
        """SIGTERM: the VMs whose jobs run are left to the next agent."""
        self._leave(name, signal.SIGTERM, AGENT_LEFT)

    def interrupt(self, name: str) -> None:
        """SIGINT: everything is torn down and given back."""
        self._leave(name, signal.SIGINT, AGENT_TORE_DOWN)

    def _leave(self, name: str, signum: int, kind: str) -> None:
        host = self.hosts[name]
        if host.agent is None:
            return
        self.thaw(name)
        ready = host.is_ready()
        self._note_leaving(kind, host)
        host.agent.send(signum)
        if not host.agent.wait(STOP_S):
            raise Crime(f"agent {name} did not end in {STOP_S:g} s: {host.agent.told()[-3000:]}")
        self._bury(host, 0 if ready else None)

    def _note_leaving(self, kind: str, host: Host) -> None:
        self._note(kind, host)
        if not host.away_at or host.ready_at() is not None:
            self._look_at_readiness(host)
            host.away_at = time.monotonic()

    def restart_killed(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def restart_stopped(self, name: str) -> None:
        self.stop(name)
        self.start(name)

    def drain(self, name: str) -> None:
        """SIGUSR1: the agent leaves when its last machine does."""
        host = self.hosts[name]
        if host.agent is not None and not host.frozen and wait_for(host.is_ready, START_S):
            host.draining = True
            host.agent.send(signal.SIGUSR1)

    def see_drained(self, name: str) -> None:
        """Wait for the end of an agent that drains."""
        host = self.hosts[name]
        if host.draining and host.agent is not None:
            if not host.agent.wait(START_S):
                raise Crime(f"agent {name} does not come to the end of its drain: {host.agent.told()[-3000:]}")
            self._bury(host, 0)

    def freeze(self, name: str) -> None:
        host = self.hosts[name]
        if host.agent is not None and not host.frozen:
            host.frozen, host.frozen_at = True, time.monotonic()
            host.agent.send(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        host = self.hosts[name]
        if host.agent is not None and host.frozen:
            host.agent.send(signal.SIGCONT)
        self._end_freeze(host)

    def _end_freeze(self, host: Host) -> None:
        if host.frozen:
            self._hindrances.append(Hindrance(host.name, host.frozen_at, time.monotonic()))
        host.frozen = False

    def _bury(self, host: Host, wanted: int | None) -> None:
        """An agent has ended. `wanted` None: a signal before it was ready may end it in any way."""
        assert host.agent is not None
        ended, host.agent, host.frozen, draining = host.agent, None, False, host.draining
        host.away_at = host.away_at or time.monotonic()
        host.draining = False
        if draining and wanted == -signal.SIGKILL:
            wanted = ended.status  # it may have left before
        if wanted is not None and (ended.status != wanted or "Traceback" in ended.told()):
            raise Crime(f"agent {host.name} ended with {ended.status}: {ended.told()[-4000:]}")

    # --- network, purge and time --------------------------------------------------------------------------------

    def cut(self, name: str, way: str) -> None:
        host = self.hosts[name]
        self.heal(name)
        host.cut_at = time.monotonic()
        self.tell(cut=name, way=way)

    def heal(self, name: str) -> None:
        host = self.hosts[name]
        if host.cut_at:
            self.tell(heal=name)
            self._troubles.append(Trouble(CUT, host.cut_at, name, until=time.monotonic()))
            self._hindrances.append(Hindrance(name, host.cut_at, time.monotonic()))
            host.cut_at = 0.0

    def purge(self, name: str) -> None:
        """Two thorough reapers at once, as `nimbus vms purge --all` is one."""
        host = self.hosts[name]
        if host.agent is None or not host.is_ready() or host.draining:
            self._note(PURGED, host)  # what nobody supervises; an agent that starts locks what it finds
        racers = [fork(self.folder / f"purge-{name}{n}.txt", _reap, host.layout) for n in range(2)]
        for racer in racers:
            if not racer.wait(START_S) or racer.status != 0:
                racer.kill()
                raise Crime(f"a purge ended with {racer.status}: {racer.told()[-2000:]}")

    def tick(self, tenths: int) -> None:
        time.sleep(tenths / 10)  # time is what leases are about

    # --- what must hold -----------------------------------------------------------------------------------------

    def look(self) -> Evidence:
        """All that is known now. Raises Crime."""
        for host in self.hosts.values():
            self._look_at_agent(host)
        told = self.tell()
        now = time.monotonic()
        open_cuts = [Trouble(CUT, h.cut_at, h.name, until=now) for h in self.hosts.values() if h.cut_at]
        living = [vm for host in self.hosts.values() for vm in host.living()]
        troubles = [*self._troubles, *open_cuts]
        hindrances = [*self._hindrances, *self._find_hindrances(now)]
        seen = Evidence(told, read_beats(self._beats), living, self._gates, troubles, hindrances, PATIENCE)
        crimes = find_crimes(seen)
        crimes += [f"process {p.pid} of the neighbour is gone" for p in self._hurt()]
        if crimes:
            raise Crime("\n".join(crimes))
        return seen

    def _look_at_readiness(self, host: Host) -> None:
        ready_at = host.ready_at() if host.away_at else None
        if ready_at is not None:
            self._hindrances.append(Hindrance(host.name, host.away_at, ready_at, adopts=True))
            host.away_at = 0.0

    def _find_hindrances(self, now: float) -> Iterator[Hindrance]:
        """Those that last, and the times in which not even a neighbour could beat."""
        for host in self.hosts.values():
            if host.away_at:
                yield Hindrance(host.name, host.away_at, now, adopts=True)
            if host.frozen:
                yield Hindrance(host.name, host.frozen_at, now)
            if host.cut_at:
                yield Hindrance(host.name, host.cut_at, now)
        for before, after in pairwise(read_beats(self.hosts[NAMES[0]].quiet_beats)):
            if after.at_ns - before.at_ns > STALL_S * 1e9:
                yield Hindrance("", before.at_ns / 1e9, after.at_ns / 1e9)

    def _look_at_agent(self, host: Host) -> None:
        self._look_at_readiness(host)
        if host.agent is not None and host.agent.wait(0):
            if not host.draining:
                raise Crime(f"agent {host.name} ended by itself, {host.agent.status}: {host.agent.told()[-4000:]}")
            self._bury(host, 0)

    def _hurt(self) -> Iterator[Any]:
        return (one for host in self.hosts.values() for one in host.beating if not process.is_alive(one))

    def abandon(self) -> None:
        """End whatever a story left that was not told to its end."""
        for host in self.hosts.values():
            if host.agent is not None:
                host.agent.kill()
                host.agent = None
            self.purge(host.name)

    @property
    def _beats(self) -> Path:
        return self.folder / "jobs"

    def _gate(self, number: int) -> Path:
        return self.folder / f"gate-{number}"

    def _note(self, kind: str, host: Host, machine: int = 0, fence: int = 0) -> None:
        self._troubles.append(Trouble(kind, time.monotonic(), host.name, machine, fence))


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _reap(layout: HostLayout) -> None:
    trio.run(partial(reap, layout, living=True))


@contextmanager
def open_world() -> Iterator[World]:
    """Two hosts, the first with a neighbour, and a control plane; nothing of it stays."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(open_host(name, with_neighbour=name == NAMES[0])) for name in NAMES]
        listener = open_listener()
        plane = fork(hosts[0].folder / "plane.txt", serve_leases, listener, TTL_S)
        port = listener.getsockname()[1]
        listener.close()
        world = World(hosts[0].folder, port, hosts)
        try:
            yield world
        finally:
            plane.kill()
            world.abandon()
