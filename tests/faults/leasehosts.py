"""The hosts of the lease machine: a state root, addresses and uids of its own for each, and a neighbour on the first.

An agent here is `nimbus.host_agent.main` in a forked process, in one life after another. Called by world.py and
lease_machine.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nimbus.host import process
from nimbus.host.inventory import Territory, leftovers
from nimbus.host_agent import main as agent_main
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.model.errors import HostFault
from nimbus.model.ids import state_root_id
from nimbus.model.record import ProcessId
from tests.faults.forks import Child, ask, fork, wait_for
from tests.faults.neighbour import run_neighbour
from tests.faults.place import FIRST_UID, SLOTS, find_subnet
from tests.faults.witness import read_beats
from tests.oracle import open_territory

START_S = 60.0
STOP_S = 40.0
JOB_TIMEOUT_S = 300.0  # no story is that long


@dataclass
class Host:
    """One host, and its agent in its present life."""

    name: str
    territory: Territory
    folder: Path  # what the machine writes itself; no part of the state root
    neighbour: Child | None = None
    mine: frozenset[str] = frozenset()  # all that is the neighbour's, by kind and name
    beating: tuple[ProcessId, ...] = ()
    agent: Child | None = None
    lives: int = 0
    frozen: bool = False
    draining: bool = False
    cut_at: float = 0.0
    frozen_at: float = 0.0
    away_at: float = 0.0  # since when it has had no agent that is ready

    @property
    def layout(self) -> HostLayout:
        held = self.territory
        return HostLayout(held.state_root, held.runtime_dir, find_subnet(held), uid_base=held.uid_base)

    @property
    def quiet_beats(self) -> Path:
        """The neighbour's."""
        return self.folder / "beats"

    def living(self) -> Iterator[tuple[int, int, int]]:
        """Machine, fence and keeper of each leased VM of its ledger whose keeper runs."""
        ledger = Ledger(self.layout.ledger)
        for vm in ledger.vms():
            with suppress(HostFault):
                record = ledger.read(vm)
                if record is not None and record.lease and record.keeper and process.is_alive(record.keeper):
                    yield record.lease.machine_id, record.lease.fence, record.keeper.pid

    def records(self) -> list[str]:
        """The VMs of its ledger that are not the neighbour's."""
        found = (str(vm) for vm in Ledger(self.layout.ledger).vms())
        return [vm for vm in found if not any(vm in name for name in self.mine)]

    def leftovers(self) -> frozenset[str]:
        """Everything of this state root's VMs on the host, by kind and name."""
        told: list[frozenset[str]] = []

        def look() -> bool:
            with suppress(RuntimeError):  # a kernel whose lock others hold may not answer
                words = self.folder / "oracle.txt"
                found = ask(words, START_S, lambda: [str(leak) for leak in leftovers(self.territory)])
                told.append(frozenset(found))
            return bool(told)

        if not wait_for(look, START_S):
            raise RuntimeError(f"this host cannot be looked at: {(self.folder / 'oracle.txt').read_text()[-2000:]}")
        return told[0]

    def is_ready(self) -> bool:
        """Whether its agent hears signals and leases."""
        return self.agent is not None and "agent.ready" in self.agent.told()

    def ready_at(self) -> float | None:
        """When its agent was ready, in monotonic seconds."""
        for line in self.agent.told().splitlines() if self.agent is not None else []:
            if "agent.ready" in line:
                said = datetime.fromisoformat(json.loads(line)["timestamp"])
                return said.timestamp() - time.time() + time.monotonic()
        return None

    def start(self, port: int) -> None:
        """The agent's next life."""
        self.lives += 1
        self.agent = fork(self.folder / f"agent{self.lives}.txt", _run_agent, self, port)


def _run_agent(host: Host, port: int) -> None:
    random.seed()  # Hypothesis has set it, for all of them alike
    os.environ.update(
        NIMBUS_AGENT_ID=host.name,
        NIMBUS_CONTROL_PLANE_URL=f"http://127.0.0.1:{port}",
        NIMBUS_CONTROL_PLANE_TOKEN=host.name,
        NIMBUS_STATE_DIR=str(host.territory.state_root),
        NIMBUS_RUNTIME_DIR=str(host.territory.runtime_dir),
        NIMBUS_VM_SUBNET=str(find_subnet(host.territory)),
        NIMBUS_VM_SLOTS=str(SLOTS),
        NIMBUS_JAILER_UID=str(host.territory.uid_base),
        NIMBUS_VMM="fake",
        NIMBUS_AGENT_METRICS_PORT="0",
        NIMBUS_AGENT_CPU_OVERCOMMIT="8",
        NIMBUS_AGENT_LEASE_RETRY_BASE="0.2",
        NIMBUS_AGENT_LEASE_RETRY_MAX="1",
        NIMBUS_JOB_TIMEOUT=str(JOB_TIMEOUT_S),
        NIMBUS_VM_SHUTDOWN_GRACE="1",
    )
    agent_main.main()


@contextmanager
def open_host(name: str, *, with_neighbour: bool) -> Iterator[Host]:
    """A host without an agent; its neighbour leaves nothing at the end, or this raises."""
    with open_territory() as shared:
        folder = shared.state_root.with_name(f"{shared.state_root.name}-machine")
        folder.mkdir()
        uids = FIRST_UID + SLOTS * int(state_root_id(str(shared.state_root)), 16)
        host = Host(name, Territory(shared.state_root, folder / "run", uids), folder)
        try:
            if with_neighbour:
                _settle(host)
            yield host
        finally:
            if host.agent is not None:
                host.agent.kill()
            left = _leave(host)
            shutil.rmtree(folder)
        if left:
            raise RuntimeError(f"host {name} was not left as it was found: {left}")


def _settle(host: Host) -> None:
    """Wait until the neighbour beats, and remember all that it owns."""
    told = (host.territory, find_subnet(host.territory), host.quiet_beats)
    host.neighbour = fork(host.folder / "neighbour.txt", run_neighbour, *told)
    if not wait_for(lambda: bool(read_beats(host.quiet_beats)), START_S):
        raise RuntimeError(f"the neighbour does not live: {host.neighbour.told()}")
    host.mine = host.leftovers()
    pids = {int(name.split()[2]) for name in host.mine if name.startswith("processes: pid ")}
    host.beating = tuple(process.identify(pid) for pid in sorted(pids))


def _leave(host: Host) -> list[str]:
    """End the neighbour; what is left then."""
    if host.neighbour is not None:
        host.neighbour.send(signal.SIGTERM)
        well = host.neighbour.wait(STOP_S) and host.neighbour.status == 0
        host.neighbour.kill()
        if not well:
            return [f"the neighbour did not end well: {host.neighbour.told()[-2000:]}"]
    return sorted(host.leftovers())
