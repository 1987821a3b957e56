"""The leak oracle: a test that leaves anything of a VM on the host fails, and says what by name.

`watch_leaks(territory)` around a piece of a test, or the fixture `leak_oracle` around all of it
(`from tests.oracle import leak_oracle` in a conftest). The reading is nimbus.host.inventory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from nimbus.host.disk import remove_tree
from nimbus.host.inventory import Inventory, Leak, Territory, diff, read_inventory
from nimbus.model.ids import state_root_id
from tests.secretwatch import look_into

RUNTIME_DIR = Path("/run/nimbus")  # slots are host-wide: a test's VM must not share one with a neighbour's
ROOTS_TOLD = "NIMBUS_TEST_ROOTS_TOLD"  # the file that every state root of a test is written to
GRACE_S = 1.0  # the kernel lets go of a dead process and of its sockets a moment after the kill is seen
_LOOK_AGAIN_S = 0.02
_OWN_THREAD = "leak oracle"


def find_leaks(before: Inventory, territory: Territory, grace_s: float = GRACE_S) -> tuple[Leak, ...]:
    """What stays when the grace is over; looks again until nothing is left, and returns at once then."""
    deadline = time.monotonic() + grace_s
    while leaks := tuple(leak for leak in diff(before, read_inventory(territory)) if not _is_anothers(leak, before)):
        if time.monotonic() >= deadline:
            return leaks
        time.sleep(_LOOK_AGAIN_S)
    return ()


def _is_anothers(leak: Leak, before: Inventory) -> bool:
    """A child of a process that was there before: a session's PostgreSQL starts and ends its backends as it likes."""
    if leak.kind != "processes":
        return False
    try:
        stat = Path(f"/proc/{leak.name.split()[1]}/stat").read_text()
    except OSError:
        return False  # it has gone meanwhile: the next look says so
    parent = int(stat.rpartition(")")[2].split()[1])
    return parent != os.getpid() and any(name.startswith(f"pid {parent} ") for name in before.processes)


@contextmanager
def watch_leaks(territory: Territory) -> Iterator[None]:
    """Fail when the block leaves something behind. A failure inside the block is the one that is shown."""
    before = read_inventory(territory)
    yield
    leaks = find_leaks(before, territory)
    assert not leaks, "left behind:\n" + "\n".join(f"  {leak}" for leak in leaks)


@asynccontextmanager
async def watch_leaks_inside(territory: Territory) -> AsyncIterator[None]:
    """The same for a part of an async test: netlink and Trio share no thread once trio_asyncio was imported."""
    before = await trio.to_thread.run_sync(read_inventory, territory, thread_name=_OWN_THREAD)
    yield
    found = await trio.to_thread.run_sync(find_leaks, before, territory, thread_name=_OWN_THREAD)
    leaks = [leak for leak in found if not (leak.kind == "threads" and leak.name.endswith(_OWN_THREAD))]
    assert not leaks, "left behind:\n" + "\n".join(f"  {leak}" for leak in leaks)


def _make_root() -> Path:
    """A folder whose three-digit name no other test's has: of 4096 names, two runs at once sooner or later share one,
    and each would take the other's VMs for leftovers.
    """
    while True:
        root = Path(tempfile.mkdtemp(prefix="nb", dir="/tmp"))
        others = (other for other in Path("/tmp").glob("nb*") if other != root)
        if state_root_id(str(root)) not in {state_root_id(str(other)) for other in others}:
            _tell(root)
            return root
        root.rmdir()


def _tell(root: Path) -> None:
    """For whoever runs tests that are meant to leave something, and has to clear it away: the roots they had."""
    told = os.environ.get(ROOTS_TOLD)
    if told:
        with Path(told).open("a") as file:
            file.write(f"{root}\n")


@contextmanager
def open_territory() -> Iterator[Territory]:
    """A state root of one's own, with a path short enough for unix sockets in it."""
    root = _make_root()
    (root / "vms").mkdir()
    (root / "ledger").mkdir()
    try:
        yield Territory(root, RUNTIME_DIR)
    finally:
        look_into(root)
        remove_tree(root)


@pytest.fixture
def leak_oracle() -> Iterator[Territory]:
    """A territory for one test, which must leave nothing in it."""
    with open_territory() as territory, watch_leaks(territory):
        yield territory
