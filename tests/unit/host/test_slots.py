"""Slots: one owner each, given back by their owner only, never two tenants under one uid."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nimbus.host.slots import claim_slot, count_slots, list_slots, release_slot, release_slots_of
from nimbus.model.errors import HostFault
from nimbus.model.vm import Slot

FREE_UIDS = 700_000  # no process of a test host runs under these


def claim(runtime: Path, owner: str, limit: int = 4) -> Slot:
    return claim_slot(runtime, owner, limit, uid_base=FREE_UIDS)


def test_slots_are_given_out_from_the_lowest_and_decide_uid_gid_and_cid(tmp_path: Path) -> None:
    assert claim(tmp_path, "nb000-0000000a") == Slot(0, FREE_UIDS, FREE_UIDS, 3)
    assert claim(tmp_path, "nb000-0000000b") == Slot(1, FREE_UIDS + 1, FREE_UIDS + 1, 4)


def test_groups_are_counted_from_a_base_of_their_own_where_there_is_one(tmp_path: Path) -> None:
    slot = claim_slot(tmp_path, "nb000-0000000a", 4, uid_base=FREE_UIDS, gid_base=90_000)
    assert (slot.uid, slot.gid) == (FREE_UIDS, 90_000)


def test_an_owner_that_asks_again_gets_the_slot_it_holds(tmp_path: Path) -> None:
    assert claim(tmp_path, "nb000-0000000a") == claim(tmp_path, "nb000-0000000a")
    assert count_slots(tmp_path) == 1


def test_a_host_without_a_free_slot_says_so(tmp_path: Path) -> None:
    claim(tmp_path, "nb000-0000000a", limit=1)
    with pytest.raises(HostFault, match="all 1 slots"):
        claim(tmp_path, "nb000-0000000b", limit=1)


def test_a_released_slot_is_given_out_again(tmp_path: Path) -> None:
    first = claim(tmp_path, "nb000-0000000a")
    release_slot(tmp_path, first.index, "nb000-0000000a")
    release_slot(tmp_path, first.index, "nb000-0000000a")
    assert claim(tmp_path, "nb000-0000000b") == first


def test_only_the_owner_can_release_a_slot(tmp_path: Path) -> None:
    slot = claim(tmp_path, "nb000-0000000a")
    release_slot(tmp_path, slot.index, "nb000-0000000b")
    release_slots_of(tmp_path, "nb000-0000000b")
    assert [held.owner for held in list_slots(tmp_path)] == ["nb000-0000000a"]


def test_all_slots_of_an_owner_are_released_without_knowing_their_index(tmp_path: Path) -> None:
    claim(tmp_path, "nb000-0000000a")
    claim(tmp_path, "nb000-0000000b")
    release_slots_of(tmp_path, "nb000-0000000a")
    assert [held.owner for held in list_slots(tmp_path)] == ["nb000-0000000b"]


def test_a_host_where_nothing_was_claimed_yet_has_no_slots(tmp_path: Path) -> None:
    assert list_slots(tmp_path / "absent") == ()
    release_slots_of(tmp_path / "absent", "nb000-0000000a")


def test_a_slot_whose_uid_has_a_live_process_is_passed_over(tmp_path: Path) -> None:
    assert claim_slot(tmp_path, "nb000-0000000a", 4, uid_base=os.getuid()).index > 0


def test_a_host_whose_last_uids_have_live_processes_refuses_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="all 1 slots of this host are taken, 1 of them by processes"):
        claim_slot(tmp_path, "nb000-0000000a", 1, uid_base=os.getuid())
    assert list_slots(tmp_path) == ()


def test_claims_leave_no_file_but_the_slots(tmp_path: Path) -> None:
    claim(tmp_path, "nb000-0000000a")
    assert os.listdir(tmp_path / "slots") == ["0"]


def test_racing_threads_never_share_a_slot(tmp_path: Path) -> None:
    owners = [f"nb000-{number:08x}" for number in range(32)]
    with ThreadPoolExecutor(8) as threads:
        slots = list(threads.map(lambda owner: claim(tmp_path, owner, limit=32), owners))
    assert sorted(slot.index for slot in slots) == list(range(32))
    assert {held.index: held.owner for held in list_slots(tmp_path)} == {
        slot.index: owner for slot, owner in zip(slots, owners, strict=True)
    }


def test_racing_processes_never_share_a_slot(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from nimbus.host.slots import claim_slot\n"
        "runtime, owner, base = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "for n in range(8): print(claim_slot(runtime, f'{owner}-{n}', 32, uid_base=base).index)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), f"racer{n}", str(FREE_UIDS)], stdout=subprocess.PIPE
        )
        for n in range(4)
    ]
    told = [int(word) for racer in racers for word in racer.communicate()[0].split()]
    assert sorted(told) == list(range(32))
