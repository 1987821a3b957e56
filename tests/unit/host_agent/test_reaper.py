"""One bad record never keeps the others from being reaped; a release that hangs costs one thread, not one a round."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host.inventory import Territory
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import ActLimits, HostLayout
from nimbus.host_agent.reaper import reap
from nimbus.host_agent.teardown import teardown
from nimbus.model.ids import new_vm_id
from nimbus.model.record import Record
from nimbus.model.vm import Claim
from tests.hosts import needs_root
from tests.oracle import open_territory

pytestmark = [needs_root, pytest.mark.root]

PATIENCE_S = 60.0


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found:
        yield found


def layout_of(territory: Territory, runtime: Path | None = None) -> HostLayout:
    return HostLayout(state=territory.state_root, runtime=runtime or territory.runtime_dir)


def leave_record(territory: Territory, text: str | None = None, claims: tuple[Claim, ...] = (Claim.JAIL,)) -> str:
    """A dead supervisor's record, with a folder of its VM; `text` in its place where there is one."""
    vm = new_vm_id()
    ledger = Ledger(territory.state_root / "ledger")
    with ledger.create(Record(vm=vm, created_at=0, boot_id="gone", backend="fake", plan={}, claims=claims)):
        pass
    if text is not None:
        (territory.state_root / "ledger" / f"{vm}.json").write_text(text)
    (territory.state_root / "vms" / str(vm)).mkdir()
    return str(vm)


@pytest.mark.parametrize("living", [True, False])
async def test_a_record_that_a_host_crash_tore_is_reaped_by_name_and_so_are_all_others(
    territory: Territory, living: bool
) -> None:
    vms = [leave_record(territory, text) for text in (None, "", "{", None)]
    report = await reap(layout_of(territory), living=living)
    assert (sorted(report.reaped), report.stuck) == (sorted(vms), [])
    assert list((territory.state_root / "vms").iterdir()) == list((territory.state_root / "ledger").iterdir()) == []


async def test_a_record_of_a_newer_release_is_left_alone_and_told(territory: Territory) -> None:
    newer, old = leave_record(territory, '{"version": 99}'), leave_record(territory)
    report = await reap(layout_of(territory), living=True)
    assert (report.reaped, report.stuck) == ([old], [newer])
    assert (territory.state_root / "vms" / newer).is_dir()


def _answer(fifo: Path) -> None:
    """The device answers again: the hung reader gets its end of file, and the next one finds no file at all."""
    writer = os.open(fifo, os.O_RDWR)
    fifo.unlink()
    os.close(writer)


async def test_a_kind_of_object_that_the_host_does_not_list_keeps_no_record_from_being_reaped_and_is_counted(
    territory: Territory, tmp_path: Path
) -> None:
    (tmp_path / "slots").mkdir()
    os.mkfifo(tmp_path / "slots" / "0")  # who reads it waits until somebody writes
    recorded, nameless = leave_record(territory), new_vm_id()
    (territory.state_root / "vms" / str(nameless)).mkdir()
    layout = replace(layout_of(territory, tmp_path), limits=ActLimits(look_s=1.0, release_s=1.0))
    with trio.fail_after(PATIENCE_S):
        report = await reap(layout, living=True)
    assert (report.reaped, report.unseen) == ([recorded], ["slots"])
    assert report.stuck == [str(nameless)]  # its slot does not answer either
    _answer(tmp_path / "slots" / "0")
    with trio.fail_after(PATIENCE_S):
        while (report := await reap(layout, living=True)).stuck:  # noqa: ASYNC110 - the next round, only sooner
            await trio.sleep(0.05)
    assert (report.reaped, report.unseen) == ([str(nameless)], [])


async def test_a_reaper_that_is_cancelled_waits_for_no_list_that_hangs(territory: Territory, tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    os.mkfifo(tmp_path / "slots" / "0")
    layout = replace(layout_of(territory, tmp_path), limits=ActLimits(look_s=10 * PATIENCE_S))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(reap, layout, living=True))
            while True:
                with suppress(OSError):  # ENXIO: nobody reads it yet
                    writer = os.open(tmp_path / "slots" / "0", os.O_WRONLY | os.O_NONBLOCK)
                    break
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    os.close(writer)


@pytest.mark.slow
async def test_a_release_that_hangs_in_the_kernel_holds_one_thread_however_often_it_is_tried(
    territory: Territory, tmp_path: Path
) -> None:
    (tmp_path / "slots").mkdir()
    os.mkfifo(tmp_path / "slots" / "0")  # who reads it waits until somebody writes
    vm = leave_record(territory, claims=(Claim.SLOT, Claim.JAIL))
    ledger = Ledger(territory.state_root / "ledger")
    layout = layout_of(territory, tmp_path)
    with ledger.take(Ledger(ledger.folder).vms()[0]) as record:
        assert record is not None
        assert str(record.value.vm) == vm
        before = threading.active_count()
        with trio.fail_after(25):  # one limit of 10 s; the tries after it do not wait
            for _ in range(4):
                assert not await teardown(layout, record)
        assert threading.active_count() <= before + 3  # the one that hangs, and idle ones of the lane
        assert record.value.claims == (Claim.SLOT,)
        _answer(tmp_path / "slots" / "0")
        with trio.fail_after(25):
            while not await teardown(layout, record):  # noqa: ASYNC110 - a reaper's next round, only sooner
                await trio.sleep(0.05)
