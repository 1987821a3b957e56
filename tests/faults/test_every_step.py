"""A run that is killed or cancelled at any of its steps leaves nothing, after the reaper where it was killed.

So does a clone's, and a job's that claims a machine of the pool; and none of it is ever blamed on the template.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from nimbus.host.inventory import Territory
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from nimbus.storage.templates import TemplateStore
from tests.faults.clones import ensure_template, install_host
from tests.faults.one_run import WHATS
from tests.hosts import needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

POINTS = 12  # of the steps of a run, spread evenly; NIMBUS_TEST_ALL_POINTS=1 strikes at every one
CLONE_POINTS = 6  # the same of a clone's, on which most steps are a cold machine's too
ALL_POINTS = bool(os.environ.get("NIMBUS_TEST_ALL_POINTS"))


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


def sabotage(territory: Territory, mode: str, at: int, what: str = "run") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.faults.one_run", territory.state_root, territory.runtime_dir, mode, at, what]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, check=False)


def count_steps(territory: Territory, what: str = "run") -> int:
    whole = sabotage(territory, "count", 0, what)
    assert whole.returncode == 0, whole.stderr
    return int(whole.stdout)


def choose_points(steps: int, points: int = POINTS) -> list[int]:
    stride = 1 if ALL_POINTS else max(1, steps // points)
    return list(range(1, steps + 1, stride))


def layout_of(territory: Territory) -> HostLayout:
    return HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)


def prepare(territory: Territory, what: str) -> list[int]:
    """The points of that kind of run, on a host that is ready for it."""
    if what != "run":
        ensure_template(layout_of(territory), install_host(territory.state_root))
    return choose_points(count_steps(territory, what), POINTS if what == "run" else CLONE_POINTS)


def check_nothing_left(territory: Territory, what: str, after: str) -> None:
    for name in ("ledger", "vms"):
        assert not list((territory.state_root / name).iterdir()), f"something is left in {name} after {after}"
    if what != "run":
        store = TemplateStore(layout_of(territory).templates)
        assert len(store.list_templates()) == 1, f"its template was taken away after {after}"


@pytest.mark.slow
@pytest.mark.parametrize("what", WHATS)
def test_sigkill_at_any_step_leaves_nothing_that_a_reaper_does_not_find(territory: Territory, what: str) -> None:
    for at in prepare(territory, what):
        sabotage(territory, "kill", at, what)
        trio.run(_reap_careful, territory)
        check_nothing_left(territory, what, f"a kill at step {at}")


async def _reap_careful(territory: Territory) -> None:
    report = await reap(layout_of(territory), living=False)
    assert report.stuck == []
    again = await reap(layout_of(territory), living=False)
    assert (again.reaped, again.alive, again.stuck) == ([], [], [])


@pytest.mark.slow
@pytest.mark.parametrize("what", WHATS)
def test_cancelling_at_any_step_leaves_nothing_at_once(
    territory: Territory, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    points = prepare(territory, what)
    for at in points:
        done = sabotage(territory, "cancel", at, what)
        assert done.returncode == 0, f"step {at}: {done.stderr}"
        if what.startswith("pool"):  # its process ends while a thread may still write the page of the next machine
            trio.run(_reap_careful, territory)
        check_nothing_left(territory, what, f"a cancel at step {at}")
    if ALL_POINTS:
        with capsys.disabled():
            sys.stdout.write(f"cancellation points of {what}: {len(points)} struck, 0 leaks\n")


def test_two_reapers_at_once_do_not_disturb_each_other(territory: Territory) -> None:
    steps = count_steps(territory)
    for at in (steps // 3, steps // 2, steps * 2 // 3):
        sabotage(territory, "kill", at)
        trio.run(_reap_twice_at_once, territory)


async def _reap_twice_at_once(territory: Territory) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_reap, territory)
        nursery.start_soon(_reap, territory)
    report = await reap(layout_of(territory), living=False)
    assert report.reaped == report.stuck == []


async def _reap(territory: Territory) -> None:
    await reap(layout_of(territory), living=False)
