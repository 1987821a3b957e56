"""A run that is killed or cancelled at any of its steps leaves nothing, after the reaper where it was killed."""

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
from tests.hosts import needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

POINTS = 12  # of the steps of a run, spread evenly; NIMBUS_TEST_ALL_POINTS=1 strikes at every one
ALL_POINTS = bool(os.environ.get("NIMBUS_TEST_ALL_POINTS"))


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


def sabotage(territory: Territory, mode: str, at: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.faults.one_run", territory.state_root, territory.runtime_dir, mode, at]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, check=False)


def count_steps(territory: Territory) -> int:
    whole = sabotage(territory, "count", 0)
    assert whole.returncode == 0, whole.stderr
    return int(whole.stdout)


def choose_points(steps: int) -> list[int]:
    stride = 1 if ALL_POINTS else max(1, steps // POINTS)
    return list(range(1, steps + 1, stride))


def layout_of(territory: Territory) -> HostLayout:
    return HostLayout(state=territory.state_root, runtime=territory.runtime_dir, uid_base=territory.uid_base)


@pytest.mark.slow
def test_sigkill_at_any_step_leaves_nothing_that_a_reaper_does_not_find(territory: Territory) -> None:
    for at in choose_points(count_steps(territory)):
        sabotage(territory, "kill", at)
        trio.run(_reap_careful, territory)
        assert not list((territory.state_root / "ledger").iterdir()), f"a record is left after a kill at step {at}"
        assert not list((territory.state_root / "vms").iterdir()), f"a VM's folder is left after a kill at step {at}"


async def _reap_careful(territory: Territory) -> None:
    report = await reap(layout_of(territory), living=False)
    assert report.stuck == []
    again = await reap(layout_of(territory), living=False)
    assert (again.reaped, again.alive, again.stuck) == ([], [], [])


@pytest.mark.slow
def test_cancelling_at_any_step_leaves_nothing_at_once(
    territory: Territory, capsys: pytest.CaptureFixture[str]
) -> None:
    points = choose_points(count_steps(territory))
    for at in points:
        done = sabotage(territory, "cancel", at)
        assert done.returncode == 0, f"step {at}: {done.stderr}"
        assert not list((territory.state_root / "ledger").iterdir()), f"a record is left after a cancel at step {at}"
        assert not list((territory.state_root / "vms").iterdir()), f"a VM's folder is left after a cancel at step {at}"
    if ALL_POINTS:
        with capsys.disabled():
            sys.stdout.write(f"cancellation points: {len(points)} struck, 0 leaks\n")


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
