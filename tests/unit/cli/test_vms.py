"""`nimbus vms` on records without a VM: what it shows, what it never shows, and what it does to hostile text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nimbus.cli.command import cli
from nimbus.cli.vmconsole import MAX_LINE_CHARS, Lines
from nimbus.cli.vmpage import render
from nimbus.cli.vms import _describe
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.reaper import ReapReport
from nimbus.model.errors import NotFound, Refused
from nimbus.model.ids import VmId
from nimbus.model.lease import LeaseKey
from nimbus.model.record import Record
from nimbus.model.vm import Claim, Slot

VM = VmId("0badcafe")
SECRET = "hunter2-do-not-show"
RECORD = Record(
    vm=VM,
    created_at=0,
    boot_id="of another boot",
    backend="fake",
    plan={"shape": {"cpus": 1, "mem_mib": 256, "disk_mib": 2048}, "image": "none", "accel": "none", "env": SECRET},
    claims=(Claim.SLOT, Claim.NETWORK),
    slot=Slot(5, 200_005, 200_005, 8),
    lease=LeaseKey(7, "00000000-0000-4000-8000-000000000001", 3),
    deadline_ns=1,
    session={"nonce": SECRET, "command": {"argv": [SECRET], "env": {"TOKEN": SECRET}}},
    report={"ending": "done", "cause": SECRET},
    failures=("network: HostFault: \x1b]0;owned\x07busy",),
)


def nimbus(state: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["vms", *words], env={"NIMBUS_STATE_DIR": str(state)})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with Ledger(tmp_path / "ledger").create(RECORD):
        pass
    return tmp_path


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("command", ["list", "inspect"])
def test_no_secret_of_a_session_is_ever_shown(state: Path, command: str, form: tuple[str, ...]) -> None:
    words = (command, *(["0badcafe"] if command == "inspect" else []), *form)
    shown = nimbus(state, *words)
    assert shown.exit_code == 0, shown.output
    assert "0badcafe" in shown.output
    assert SECRET not in shown.output
    assert "nonce" not in shown.output


def test_a_page_tells_the_lease_the_slot_its_addresses_and_what_failed(state: Path) -> None:
    told = json.loads(nimbus(state, "inspect", "0badcafe", "--json").output)
    assert told["state"] == "orphan"
    assert told["lease"]["fence"] == 3
    assert (told["slot"]["index"], told["addresses"]["host"]) == (5, "172.30.0.21/30")
    assert (told["this_boot"], told["deadline_left_s"]) == (False, None)
    assert (told["claims"], told["untold_ending"]) == (["slot", "network"], "done")
    assert told["paths"] == {"record": str(state / "ledger" / "0badcafe.json")}


def test_a_page_drives_no_terminal(state: Path) -> None:
    page = nimbus(state, "inspect", "0badcafe").output
    assert "busy" in page
    assert "\x1b" not in page


def test_a_record_of_a_newer_release_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "0badcafe.json").write_text('{"version": 99}')
    page = nimbus(tmp_path, "inspect", "0badcafe").output
    assert "unreadable" in page
    assert "99" in page


@pytest.mark.parametrize("command", ["inspect", "logs"])
def test_a_vm_that_is_not_here_is_said_to_be_so(tmp_path: Path, command: str) -> None:
    assert isinstance(nimbus(tmp_path, command, "0badcafe").exception, NotFound)
    assert isinstance(nimbus(tmp_path, command, "../../etc").exception, Refused)


def test_looking_takes_no_name_and_makes_no_file(tmp_path: Path) -> None:
    nimbus(tmp_path, "list")
    nimbus(tmp_path, "inspect", "0badcafe")
    assert list(tmp_path.iterdir()) == []


def test_the_list_says_what_to_do_about_an_orphan(state: Path) -> None:
    listed = nimbus(state, "list").output
    assert "orphan: `nimbus vms purge --all`" in listed


def test_a_purge_says_which_ends_wait_for_the_agent() -> None:
    report = ReapReport(reaped=["11111111"], untold=["0badcafe"])
    assert _describe(report).splitlines() == [
        "torn down: 11111111",
        "over, but the control plane has not heard how: 0badcafe; start the agent",
    ]


def test_a_purge_says_what_it_could_not_look_at() -> None:
    assert _describe(ReapReport(unseen=["tables"])).splitlines() == [
        "torn down: nothing was left",
        "NOT looked at, this host did not list them: tables; run this again",
    ]


@pytest.mark.parametrize("place", ["vms/0badcafe/console.tail", "postmortems/0badcafe.console"])
def test_the_console_of_a_dead_vm_is_shown_harmless_from_wherever_it_is_kept(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(b"panic\x1b[2J\r\n\x1b]0;owned\x07\xff no end of line")
    shown = nimbus(tmp_path, "logs", "0badcafe")
    assert shown.output == "panic\n� no end of line\n"


def test_a_line_is_shown_when_it_ends_and_a_character_that_was_cut_in_two_is_whole() -> None:
    lines = Lines()
    assert lines.feed("one\nzw\u00f6".encode()[:-1]) == "one\n"
    assert lines.feed("\u00f6".encode()[-1:] + b"lf\n") == "zw\u00f6lf\n"
    assert lines.feed(b"rest", final=True) == "rest\n"


def test_a_guest_that_never_ends_its_line_fills_no_memory() -> None:
    assert len(Lines().feed(b"x" * (MAX_LINE_CHARS + 1))) == MAX_LINE_CHARS + 2


def test_units_stand_with_the_values() -> None:
    page = list(render({"deadline_left_s": -2.5, "usage": {"disk_bytes": 3 << 20, "cpu_ms": 4, "sent_bytes": None}}))
    assert page == [
        "deadline left           passed 2.5 s ago",
        "usage",
        "  disk                  3.0 MiB",
        "  cpu                   4 ms",
    ]
