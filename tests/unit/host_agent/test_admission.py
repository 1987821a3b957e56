"""What a host can still give is counted from the host itself: no promise is made twice, and the reserve is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimbus.host.quarantine import FAILURES, note_failure
from nimbus.host_agent.admission import DiskPolicy, Supply, count_cpus, count_disk_mib, count_slots, read_supply
from nimbus.host_agent.plan import HostLayout
from nimbus.model.errors import HostFault

POLICY = DiskPolicy(reserve_mib=2048)


def supply(*, held: int = 0, elsewhere: int = 0, free: int = 10240, promised: int = 0, written: int = 0) -> Supply:
    return Supply(held, elsewhere, free, promised, written)


@pytest.fixture
def layout(tmp_path: Path) -> HostLayout:
    (tmp_path / "run" / "slots").mkdir(parents=True)
    return HostLayout(state=tmp_path, runtime=tmp_path / "run", slot_limit=8)


def hold(layout: HostLayout, index: int, owner: str) -> None:
    (layout.runtime / "slots" / str(index)).write_text(owner)


def quarantine(layout: HostLayout, index: int) -> None:
    for _ in range(FAILURES):
        note_failure(layout.runtime, index, "acquire network", "EBUSY")


def test_slots_of_others_and_slots_in_quarantine_are_not_ours_to_give(layout: HostLayout) -> None:
    hold(layout, 0, f"nb{layout.root_id}-00000001")
    hold(layout, 1, "nbfff-00000001")
    quarantine(layout, 1)  # and held: it counts once
    quarantine(layout, 2)
    found = read_supply(layout)
    assert (found.slots_held, found.slots_elsewhere) == (1, 2)
    assert count_slots(found, limit=8, taken=1) == 5


def test_slots_beyond_our_own_limit_are_not_counted(layout: HostLayout) -> None:
    hold(layout, 20, "nbfff-00000001")
    quarantine(layout, 21)
    assert read_supply(layout).slots_elsewhere == 0


def test_a_machine_that_was_accepted_needs_its_slot_before_it_holds_one() -> None:
    assert count_slots(supply(held=1), limit=4, taken=3) == 1
    assert count_slots(supply(held=3), limit=4, taken=1) == 1  # two runs of `nimbus run` beside it


def test_cpus_that_are_anothers_own_are_not_ours_to_give(layout: HostLayout) -> None:
    (layout.runtime / "cpus").mkdir()
    (layout.runtime / "cpus" / f"nb{layout.root_id}-00000001").write_text("2-3")
    (layout.runtime / "cpus" / "nbfff-00000001").write_text("4,8")
    (layout.runtime / "cpus" / "nbfff-00000002").write_text("5")
    found = read_supply(layout)
    assert found.cpus_elsewhere == 3
    assert count_cpus(found, cpus=10, taken=4) == 3
    assert count_cpus(found, cpus=10, taken=0) == 7  # ours waits in the pool


def test_no_disk_is_promised_out_of_the_reserve() -> None:
    assert count_disk_mib(supply(free=4096), POLICY, taken_mib=0) == 2048
    assert count_disk_mib(supply(free=2048), POLICY, taken_mib=0) == 0
    assert count_disk_mib(supply(free=1000), POLICY, taken_mib=0) < 0


def test_what_vms_may_still_write_is_promised_and_what_they_wrote_is_gone_already() -> None:
    assert count_disk_mib(supply(promised=4096, written=0), POLICY, taken_mib=4096) == 4096
    assert count_disk_mib(supply(free=9240, promised=4096, written=1000), POLICY, taken_mib=4096) == 4096


def test_a_machine_that_was_accepted_has_its_disk_promised_before_it_is_made() -> None:
    assert count_disk_mib(supply(), POLICY, taken_mib=8000) == 192


def test_an_operator_may_bet_that_vms_do_not_fill_their_disks() -> None:
    bet = DiskPolicy(reserve_mib=2048, overcommit=4.0)
    assert count_disk_mib(supply(promised=8000), bet, taken_mib=8000) == 10240 - 2048 - 2000


def test_the_disks_of_all_vms_of_the_state_root_are_found(layout: HostLayout) -> None:
    for number, written in enumerate((0, 3 << 20)):
        overlay = layout.state / "vms" / f"0000000{number}" / "disk" / "overlay.img"
        overlay.parent.mkdir(parents=True)
        overlay.write_bytes(b"x" * written)
        with overlay.open("r+b") as file:
            file.truncate(64 << 20)
    (layout.state / "vms" / "00000002").mkdir()  # its disk is not made yet
    found = read_supply(layout)
    assert (found.promised_mib, found.written_mib) == (128, 3)
    assert found.free_mib > 0


def test_a_disk_that_cannot_be_asked_is_the_hosts_fault(layout: HostLayout) -> None:
    with pytest.raises(HostFault, match="cannot be read"):
        read_supply(HostLayout(state=layout.state / "absent", runtime=layout.runtime))
