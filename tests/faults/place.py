"""Where struck runs happen: a state root of their own with a healthy neighbour in it, and a control plane.

Addresses, uids and slots are their own too. The neighbour is known by the name of every thing that it owns. Called by
campaign.py and by tests.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from nimbus.host import process
from nimbus.host.inventory import Territory, leftovers
from nimbus.host_agent.plan import HostLayout
from nimbus.model.errors import HostFault
from nimbus.model.ids import state_root_id
from nimbus.model.record import ProcessId
from tests.fakes.install import Fakes
from tests.faults.clones import ensure_template, install_host
from tests.faults.forks import Child, ask, fork, wait_for
from tests.faults.neighbour import NEIGHBOUR, run_neighbour
from tests.faults.plane import open_listener, serve_plane, tell_plane
from tests.faults.ways import Way
from tests.faults.witness import read_beats
from tests.oracle import open_territory

START_S = 60.0
TEMPLATE_S = 120.0
LOOK_S = 90.0
LAST_LOOK_S = 20.0  # what is left of it for the last one
STOP_S = 40.0
SLOTS = 64  # a /24 of /30s
FIRST_UID = 1_000_000  # above all uids that anybody else gives to VMs


@dataclass
class Place:
    """Where the runs of one worker happen: a state root with a neighbour in it, and a plane."""

    territory: Territory
    folder: Path  # what the campaign writes itself; no part of the state root
    port: int
    neighbour: Child
    machine: int = NEIGHBOUR
    spoiled: bool = False  # by a run whose verdict says how
    mine: frozenset[str] = frozenset()  # all that is the neighbour's, by kind and name
    beating: tuple[ProcessId, ...] = ()
    way: Way = Way.FAKE  # of the run that happens now
    fakes: Fakes | None = None  # once a way needs them

    def prepare(self, way: Way) -> None:
        """What machines of that way need below the state root: image, programs, and a sound template, or none."""
        if way is Way.FAKE:
            return
        if self.fakes is None:
            self.fakes = install_host(self.territory.state_root)
        if way.has_template:
            ask(self.folder / "template.txt", TEMPLATE_S, ensure_template, self.layout, self.fakes)
        else:
            shutil.rmtree(self.layout.templates, ignore_errors=True)

    @property
    def beat_file(self) -> Path:
        return self.folder / "beats"

    @property
    def layout(self) -> HostLayout:
        territory = self.territory
        return HostLayout(
            territory.state_root, territory.runtime_dir, find_subnet(territory), uid_base=territory.uid_base
        )

    def tell(self, **order: Any) -> dict[str, Any]:
        return tell_plane(self.port, **order)


def find_subnet(territory: Territory) -> IPv4Network:
    """Pure: addresses of this state root alone, since its slots are not the host's: a quarantine must hurt nobody."""
    number = int(state_root_id(str(territory.state_root)), 16)
    return IPv4Network((int(IPv4Address("10.224.0.0")) + number * 256, 24))


@contextmanager
def open_place() -> Iterator[Place]:
    """A place for runs; its neighbour leaves nothing at the end, or this raises."""
    with open_territory() as shared:
        folder = shared.state_root.with_name(f"{shared.state_root.name}-faults")
        folder.mkdir()
        uids = FIRST_UID + SLOTS * int(state_root_id(str(shared.state_root)), 16)
        territory = Territory(shared.state_root, folder / "run", uids)
        listener = open_listener()
        plane = fork(folder / "plane.txt", serve_plane, listener, folder / "beats")
        port = listener.getsockname()[1]
        listener.close()
        neighbour = fork(folder / "neighbour.txt", run_neighbour, territory, find_subnet(territory), folder / "beats")
        place = Place(territory, folder, port, neighbour)
        try:
            _settle(place)
            yield place
        finally:
            neighbour.send(signal.SIGTERM)
            well = neighbour.wait(STOP_S) and neighbour.status == 0
            neighbour.kill()
            plane.kill()
            left = read_leftovers(place)
            shutil.rmtree(folder)
        if not place.spoiled and (not well or left):
            raise RuntimeError(f"the neighbour did not end well, or the last run left something: {sorted(left)}")


def _settle(place: Place) -> None:
    """Wait until the neighbour beats, and remember all that it owns."""
    if not wait_for(lambda: bool(read_beats(place.beat_file)), START_S):
        raise RuntimeError(f"the neighbour does not live: {place.neighbour.told()}")
    place.mine = read_leftovers(place)
    pids = {int(name.split()[2]) for name in place.mine if name.startswith("processes: pid ")}
    place.beating = tuple(process.identify(pid) for pid in sorted(pids))


def read_leftovers(place: Place) -> frozenset[str]:
    """Everything of this state root's VMs on the host, by kind and name."""
    return frozenset(ask(place.folder / "oracle.txt", LOOK_S, _look_until_answered, place.territory))


def _look_until_answered(territory: Territory) -> list[str]:
    """A busy host may take longer to list its tables than any product waits; only what it says counts."""
    deadline = time.monotonic() + LOOK_S - LAST_LOOK_S
    while True:
        try:
            return [str(leak) for leak in leftovers(territory)]
        except HostFault:
            if time.monotonic() >= deadline:
                raise
