"""What a heartbeat tells is what stands in the ledger and what the host has left, read without a lock."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host import process
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.poller import Capacity, Room
from nimbus.host_agent.survey import Survey, describe_record, name_doing, name_state
from nimbus.host_agent.vmm import Vmm
from nimbus.host_agent.vmm.choice import BACKENDS, EMULATED, Choice
from nimbus.host_agent.wish import Pulse, Wish
from nimbus.model.ids import VmId
from nimbus.model.lease import LeaseKey
from nimbus.model.record import POOL_KEY, Record
from nimbus.model.vm import Claim, ExitReason, GuestExit, Shape
from nimbus.wire.heartbeat import Doing, Heartbeat, RecordLine, Wanted, parse_heartbeat, render_heartbeat

KEY = LeaseKey(12, "00000000-0000-4000-8000-000000000001", 3)
BOOT = process.boot_id()
RECORD = Record(
    VmId("0a1b2c3d"), 1e9, BOOT, "fake", {}, (Claim.SLOT, Claim.VMM), lease=KEY, deadline_ns=100_000_000_000
)
ENDED = GuestExit(0, None, ExitReason.EXITED, "")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "booting"),
        ({"session": {"nonce": "x"}}, "running"),
        ({"session": {"nonce": "x"}, "exit": ENDED}, "ended"),
        ({"report": {"ending": "done"}}, "ended"),
        ({"report": {"ending": "done"}, "claims": ()}, "untold"),
        ({"lease": None, "plan": {POOL_KEY: "warm"}}, "waiting"),
        ({"lease": None}, "local"),
    ],
)
def test_each_record_has_one_word_for_how_far_its_vm_is(changes: dict[str, object], state: str) -> None:
    assert name_state(replace(RECORD, **changes)) == state  # type: ignore[arg-type]


def test_a_line_names_the_lease_and_its_time_but_no_plan_no_session_and_no_lease_id() -> None:
    line = describe_record(RECORD, boot_id=BOOT, now_ns=40_000_000_000)
    assert line == RecordLine("0a1b2c3d", "booting", 12, 3, ("slot", "vmm"), 60.0)


def test_a_deadline_of_an_earlier_boot_says_nothing_now() -> None:
    assert describe_record(RECORD, boot_id="another", now_ns=0).left_s is None


@pytest.mark.parametrize(
    ("wanted", "leasing", "busy", "doing"),
    [
        (Wanted.WORKING, True, True, Doing.WORKING),
        (Wanted.CORDONED, True, True, Doing.CORDONED),
        (Wanted.DRAINED, True, True, Doing.DRAINING),
        (Wanted.DRAINED, True, False, Doing.DRAINED),
        (Wanted.WORKING, False, True, Doing.DRAINING),
        (Wanted.DRAINED, False, False, Doing.DRAINING),
    ],
)
def test_what_an_agent_does_follows_from_its_two_operators(
    wanted: Wanted, leasing: bool, busy: bool, doing: Doing
) -> None:
    assert name_doing(wanted, leasing=leasing, busy=busy) is doing


def make_survey(tmp_path: Path, room: Room) -> Survey:
    layout = HostLayout(state=tmp_path / "state", runtime=tmp_path / "run")
    layout.state.mkdir(exist_ok=True)
    return Survey(
        layout=layout,
        room=room,
        total=Capacity(4, 4096, 8),
        vmm="fake",
        labels=("nimbus",),
        start=5,
        wish=Wish(Pulse()),
        is_leasing=lambda: True,
        is_pooling=lambda: False,
    )


async def take(survey: Survey) -> Heartbeat:
    with trio.fail_after(60):
        return await survey.take()


async def test_the_ledger_is_told_as_it_stands_with_what_cannot_be_read(tmp_path: Path) -> None:
    survey = make_survey(tmp_path, Room(Capacity(4, 4096, 8)))
    ledger = Ledger(survey.layout.ledger)
    waiting = replace(RECORD, vm=VmId("ffffffff"), lease=None, plan={POOL_KEY: "warm"})
    with ledger.create(RECORD), ledger.create(waiting):
        (survey.layout.ledger / "00000000.json").write_text("torn")
        beat = await take(survey)
    assert {line.vm: line.state for line in beat.records or ()} == {
        "00000000": "unreadable",
        "0a1b2c3d": "booting",
        "ffffffff": "waiting",
    }
    assert beat.pool == {"warm": 1}


@pytest.mark.parametrize("vmm", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize(("accel", "warning"), [("tcg", ""), ("kvm", ""), ("kvm", EMULATED)])
async def test_whatever_runs_the_vms_of_a_host_its_heartbeat_is_one_that_is_heard(
    vmm: Vmm, accel: str, warning: str, tmp_path: Path
) -> None:
    choice = Choice(vmm, accel, tmp_path, warning=warning)
    survey = replace(make_survey(tmp_path, Room(Capacity(4, 4096, 8))), vmm=choice.label)
    beat = await take(survey)
    assert parse_heartbeat(json.dumps(render_heartbeat(beat)).encode()).vmm == choice.label


async def test_heartbeats_are_numbered_within_a_start(tmp_path: Path) -> None:
    survey = make_survey(tmp_path, Room(Capacity(4, 4096, 8)))
    beats = [await take(survey), await take(survey)]
    assert [(beat.start, beat.beat) for beat in beats] == [(5, 1), (5, 2)]


async def test_what_machines_take_is_not_free_and_a_host_that_gave_too_much_has_nothing_left(tmp_path: Path) -> None:
    room = Room(Capacity(4, 4096, 8))
    survey = make_survey(tmp_path, room)
    room.take(Shape(cpus=3, mem_mib=1024))
    some = (await take(survey)).free
    room.take(Shape(cpus=3, mem_mib=4096))
    none = (await take(survey)).free
    assert (some.cpus, some.mem_mib, some.slots) == (1, 3072, 7)
    assert (none.cpus, none.mem_mib, none.slots) == (0, 0, 6)
    assert some.disk_mib is not None


async def test_a_host_that_cannot_be_read_is_told_of_without_its_ledger(tmp_path: Path) -> None:
    survey = make_survey(tmp_path, Room(Capacity(4, 4096, 8)))
    survey.layout.state.rmdir()
    beat = await take(survey)
    assert beat.records is None
    assert (beat.free.cpus, beat.free.disk_mib) == (4, None)


def test_every_change_of_the_room_is_heard() -> None:
    changes: list[bool] = []
    room = Room(Capacity(4, 4096, 8), on_change=lambda: changes.append(room.is_taken))
    room.take(Shape())
    room.give_back(Shape())
    assert changes == [True, False]
