"""The word for a VM: a free lock alone makes no orphan, and an end that was not told is no VM any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.sight.standing import Moment, Standing, judge_standing, look, look_at
from nimbus.model.ids import VmId, new_vm_id
from nimbus.model.lease import LeaseKey
from nimbus.model.record import Record
from nimbus.model.vm import Claim

NOW = Moment(boot_id="this", now_ns=1000, keeper_alive=True)
LIVING = Record(
    vm=new_vm_id(),
    created_at=0,
    boot_id="this",
    backend="fake",
    plan={},
    claims=(Claim.SLOT, Claim.VMM),
    lease=LeaseKey(7, "00000000-0000-4000-8000-000000000001", 3),
    deadline_ns=2000,
)
UNTOLD = replace(LIVING, claims=(), report={"ending": "done"})


@pytest.mark.parametrize(
    ("record", "moment", "word"),
    [
        (LIVING, NOW, Standing.ADOPTABLE),
        (replace(LIVING, deadline_ns=1000), NOW, Standing.ORPHAN),
        (replace(LIVING, deadline_ns=None), NOW, Standing.ORPHAN),
        (replace(LIVING, lease=None), NOW, Standing.ORPHAN),
        (replace(LIVING, version=1), NOW, Standing.ORPHAN),
        (LIVING, replace(NOW, keeper_alive=False), Standing.ORPHAN),
        (LIVING, replace(NOW, boot_id="another"), Standing.ORPHAN),
        (UNTOLD, NOW, Standing.ENDED_UNTOLD),
        (replace(UNTOLD, deadline_ns=1000), NOW, Standing.ORPHAN),  # nobody waits for its end any more
        (replace(UNTOLD, claims=(Claim.NETWORK,), deadline_ns=0), NOW, Standing.ORPHAN),
    ],
)
def test_who_has_no_supervisor_is_judged_by_lease_keeper_and_boot(record: Record, moment: Moment, word: str) -> None:
    assert judge_standing(record, supervised=False, moment=moment) is word


def test_a_held_record_is_running_whatever_its_deadline_says() -> None:
    assert judge_standing(replace(LIVING, deadline_ns=0), supervised=True, moment=NOW) is Standing.RUNNING


def test_an_end_that_an_agent_is_just_telling_is_no_running_vm() -> None:
    assert judge_standing(UNTOLD, supervised=True, moment=NOW) is Standing.ENDED_UNTOLD


def test_a_held_record_is_seen_as_such_and_a_free_one_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.create(LIVING):
        assert [sight.standing for sight in look(ledger)] == [Standing.RUNNING]
    assert [sight.standing for sight in look(ledger)] == [Standing.ORPHAN]


def test_a_record_that_cannot_be_read_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "0badcafe.json").write_text('{"version": 99}')
    (seen,) = look(Ledger(tmp_path))
    assert (seen.standing, seen.record) == (Standing.UNREADABLE, None)
    assert "99" in seen.why


def test_a_lock_file_alone_is_no_vm_and_stays(tmp_path: Path) -> None:
    (tmp_path / "0badcafe.lock").touch()
    assert look_at(Ledger(tmp_path), VmId("0badcafe")) is None
    assert look(Ledger(tmp_path)) == ()
    assert (tmp_path / "0badcafe.lock").exists()
