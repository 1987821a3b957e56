"""The ledger: a record before anything else, one supervisor at a time, nothing lost by a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.host_agent.ledger import Ledger, parse_record, render_record
from nimbus.model.attestation import Attestation
from nimbus.model.errors import Conflict, HostFault
from nimbus.model.ids import VmId, new_vm_id
from nimbus.model.lease import LeaseKey
from nimbus.model.record import ProcessId, Record
from nimbus.model.vm import Claim, ExitReason, GuestExit, Slot


def make_record(vm: VmId | None = None) -> Record:
    return Record(
        vm=vm or new_vm_id(),
        created_at=1.5,
        boot_id="b" * 36,
        backend="fake",
        plan={"image": "base"},
        claims=tuple(Claim),
    )


records = st.builds(
    Record,
    vm=st.builds(VmId, st.from_regex(r"[0-9a-f]{8}", fullmatch=True)),
    created_at=st.floats(0, 1e10),
    boot_id=st.text(max_size=36),
    backend=st.sampled_from(["fake", "qemu"]),
    plan=st.just({"image": "base", "shape": {"cpus": 1}}),
    claims=st.lists(st.sampled_from(list(Claim)), unique=True).map(tuple),
    slot=st.none() | st.builds(Slot, st.integers(0, 9), st.integers(), st.integers(), st.integers()),
    keeper=st.none() | st.builds(ProcessId, st.integers(1, 1 << 22), st.integers(0, 1 << 60), st.text(max_size=36)),
    lease=st.none() | st.builds(LeaseKey, st.integers(1, 1 << 60), st.uuids().map(str), st.integers(1, 1 << 60)),
    deadline_ns=st.none() | st.integers(0, 1 << 63),
    exit=st.none() | st.builds(GuestExit, st.integers(0, 255), st.none(), st.sampled_from(ExitReason), st.text()),
    attestation=st.none()
    | st.builds(
        Attestation, *([st.just("base")] + [st.from_regex("[0-9a-f]{64}", fullmatch=True)] * 4), st.floats(0, 1e10)
    ),
    failures=st.lists(st.text(), max_size=3).map(tuple),
)


@given(records)
def test_a_record_survives_the_way_to_the_disk_and_back(record: Record) -> None:
    assert parse_record(render_record(record)) == record


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version":1}', '{"version":2}', '"x"'])
def test_a_torn_or_foreign_record_is_a_host_fault(text: str) -> None:
    with pytest.raises(HostFault):
        parse_record(text)


def test_a_record_is_on_disk_before_its_block_begins(tmp_path: Path) -> None:
    value = make_record()
    with Ledger(tmp_path / "ledger").create(value):
        seen = Ledger(tmp_path / "ledger").read(value.vm)
    assert seen == value


def test_a_second_supervisor_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    ledger, value = Ledger(tmp_path), make_record()
    with ledger.create(value), pytest.raises(Conflict), ledger.create(value):
        pass


def test_a_reaper_gets_nothing_while_the_supervisor_lives_and_the_record_afterwards(tmp_path: Path) -> None:
    ledger, value = Ledger(tmp_path), make_record()
    with ledger.create(value), ledger.take(value.vm) as during:
        assert during is None
    with ledger.take(value.vm) as after:
        assert after is not None
        assert after.value == value


def test_a_strike_is_what_the_next_reader_sees(tmp_path: Path) -> None:
    ledger, value = Ledger(tmp_path), make_record()
    with ledger.create(value) as record:
        record.write(record.value.strike(Claim.VMM))
    assert ledger.read(value.vm) == replace(value, claims=tuple(c for c in Claim if c is not Claim.VMM))


def test_a_removed_record_leaves_no_file_and_removing_it_again_is_no_error(tmp_path: Path) -> None:
    ledger, value = Ledger(tmp_path), make_record()
    with ledger.create(value):
        ledger.remove(value.vm)
    ledger.remove(value.vm)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_without_a_record_is_cleared_by_whoever_takes_it(tmp_path: Path) -> None:
    vm = new_vm_id()
    (tmp_path / f"{vm}.lock").touch()
    with Ledger(tmp_path).take(vm) as record:
        assert record is None
    assert Ledger(tmp_path).vms() == []


def test_a_ledger_that_was_never_made_holds_nobody(tmp_path: Path) -> None:
    with Ledger(tmp_path / "absent").take(new_vm_id()) as record:
        assert record is None
    assert list(tmp_path.iterdir()) == []


def test_sigkill_frees_the_lock_and_keeps_the_record(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path\n"
        "from tests.unit.host_agent.test_ledger import make_record\n"
        "from nimbus.host_agent.ledger import Ledger; from nimbus.model.ids import VmId\n"
        "with Ledger(Path(sys.argv[1])).create(make_record(VmId('0badcafe'))):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=os.getcwd(), check=False)
    assert died.returncode == -9
    with Ledger(tmp_path).take(VmId("0badcafe")) as record:
        assert record is not None


def test_a_ledger_that_cannot_be_written_is_a_host_fault_and_leaves_no_lock(tmp_path: Path) -> None:
    value = make_record()
    (tmp_path / f"{value.vm}.json").mkdir()  # a rename onto a folder fails as a full or broken disk would
    with pytest.raises(HostFault), Ledger(tmp_path).create(value):
        pass
    assert not (tmp_path / f"{value.vm}.lock").exists()


class SlowLedger(Ledger):
    """A disk that takes its time with the first write."""

    begun, go_on = threading.Event(), threading.Event()

    def write(self, value: Record, *, fsync: bool) -> None:
        if value.deadline_ns == 5:
            self.begun.set()
            self.go_on.wait(10)
        super().write(value, fsync=fsync)


def test_two_threads_that_change_a_record_at_once_lose_nothing(tmp_path: Path) -> None:
    ledger, told = SlowLedger(tmp_path), GuestExit(0, None)
    with ledger.create(make_record()) as record:
        first = threading.Thread(target=record.change, kwargs={"deadline_ns": 5})
        second = threading.Thread(target=record.change, kwargs={"exit": told})
        first.start()
        assert ledger.begun.wait(10)
        second.start()
        ledger.go_on.set()
        first.join()
        second.join()
        stored = ledger.read(record.value.vm)
    assert stored is not None
    assert (stored.deadline_ns, stored.exit) == (5, told)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_write_that_a_kill_cut_short_goes_with_its_vm(tmp_path: Path, recorded: bool) -> None:
    ledger, value = Ledger(tmp_path), make_record()
    with ledger.create(value):
        (tmp_path / f".{value.vm}.json.x1y2z3").write_text("{")
    if not recorded:
        (tmp_path / f"{value.vm}.json").unlink()
    with ledger.take(value.vm) as record:
        if record is not None:
            ledger.remove(value.vm)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b'{"version":2,"vm":"not a vm"}', b"[" * 100_000])
def test_bytes_that_no_release_wrote_are_a_host_fault(tmp_path: Path, text: bytes) -> None:
    vm = new_vm_id()
    (tmp_path / f"{vm}.json").write_bytes(text)
    with pytest.raises(HostFault):
        Ledger(tmp_path).read(vm)


def test_a_record_under_another_vms_name_is_torn(tmp_path: Path) -> None:
    (tmp_path / "0123abcd.json").write_text(render_record(make_record(VmId("0123abce"))))
    with pytest.raises(HostFault):
        Ledger(tmp_path).read(VmId("0123abcd"))


def test_a_file_of_somebody_else_in_the_ledgers_folder_is_no_vm(tmp_path: Path) -> None:
    (tmp_path / "note-123.json").touch()
    (tmp_path / "READMEFI.lock").touch()
    assert Ledger(tmp_path).vms() == []
    assert not Ledger(tmp_path).names("READMEFI")
