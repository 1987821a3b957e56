"""A slot that fails again and again is kept apart, by whomever it failed, until its time is over or it works again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from nimbus.host.quarantine import (
    FAILURES,
    QUARANTINE_S,
    lift_quarantine,
    list_quarantined,
    note_failure,
    note_success,
)
from nimbus.host.slots import claim_slot, list_slots, release_slot
from nimbus.model.errors import HostFault

OWNER, OTHER = "nb000-0000000a", "nb000-0000000b"
FREE_UIDS = 700_000  # no process of a test host runs under these


def fail(runtime: Path, times: int, act: str = "acquire network") -> list[bool]:
    (runtime / "slots").mkdir(exist_ok=True)
    return [note_failure(runtime, 0, act, "EBUSY") for _ in range(times)]


def claim(runtime: Path, owner: str = OWNER, limit: int = 2) -> int:
    return claim_slot(runtime, owner, limit, uid_base=FREE_UIDS).index


def test_only_the_third_failure_in_a_row_puts_a_slot_apart(tmp_path: Path) -> None:
    assert fail(tmp_path, FAILURES + 1) == [False, False, True, False]
    (slot,) = list_quarantined(tmp_path)
    assert (slot.index, slot.act, slot.reason) == (0, "acquire network", "EBUSY")


def test_one_success_of_the_same_act_ends_the_row(tmp_path: Path) -> None:
    fail(tmp_path, FAILURES - 1)
    note_success(tmp_path, 0, "acquire network")
    assert fail(tmp_path, FAILURES - 1) == [False, False]
    assert list_quarantined(tmp_path) == ()


def test_a_release_that_works_says_nothing_for_an_acquisition_that_fails(tmp_path: Path) -> None:
    for _ in range(FAILURES):
        fail(tmp_path, 1)
        note_success(tmp_path, 0, "release network")
    assert [slot.index for slot in list_quarantined(tmp_path)] == [0]


def test_a_slot_in_quarantine_is_given_to_nobody(tmp_path: Path) -> None:
    fail(tmp_path, FAILURES)
    assert claim(tmp_path) == 1
    with pytest.raises(HostFault, match="all 2 slots of this host are taken, 1 of them in quarantine"):
        claim(tmp_path, OTHER)


def test_whoever_holds_a_slot_in_quarantine_keeps_it_and_can_give_it_back(tmp_path: Path) -> None:
    assert claim(tmp_path) == 0
    fail(tmp_path, FAILURES)
    assert claim(tmp_path) == 0
    release_slot(tmp_path, 0, OWNER)
    assert list_slots(tmp_path) == ()
    assert claim(tmp_path, OTHER) == 1


def test_the_act_that_failed_lifts_the_quarantine_once_it_works(tmp_path: Path) -> None:
    fail(tmp_path, FAILURES, "release network")
    note_success(tmp_path, 0, "acquire network")
    assert len(list_quarantined(tmp_path)) == 1
    note_success(tmp_path, 0, "release network")
    assert list_quarantined(tmp_path) == ()
    assert os.listdir(tmp_path / "slots") == []


def test_an_operator_can_lift_it(tmp_path: Path) -> None:
    fail(tmp_path, FAILURES)
    assert lift_quarantine(tmp_path, 0)
    assert not lift_quarantine(tmp_path, 0)
    assert claim(tmp_path) == 0
    assert fail(tmp_path, 1) == [False]


@pytest.mark.parametrize("age_s", [QUARANTINE_S + 1, -60.0], ids=["an hour later", "the clock was set back"])
def test_it_is_tried_again_in_time_and_one_more_failure_puts_it_back(tmp_path: Path, age_s: float) -> None:
    fail(tmp_path, FAILURES)
    path = tmp_path / "slots" / "0.quarantine"
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": time.time() - age_s}))
    assert claim(tmp_path) == 0
    assert fail(tmp_path, 1) == [True]
    assert len(list_quarantined(tmp_path)) == 1


def test_a_file_that_a_killed_writer_tore_counts_for_nothing(tmp_path: Path) -> None:
    fail(tmp_path, FAILURES)
    for name in ("0.failures", "0.quarantine"):
        (tmp_path / "slots" / name).write_text('{"sin')
    assert claim(tmp_path) == 0
    assert fail(tmp_path, 1) == [False]


def test_files_of_a_quarantine_are_no_slots(tmp_path: Path) -> None:
    fail(tmp_path, FAILURES)
    assert list_slots(tmp_path) == ()
