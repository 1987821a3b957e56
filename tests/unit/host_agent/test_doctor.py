"""What the doctor makes of what it reads: each verdict names what is wrong and what mends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.cli.doctor import render
from nimbus.host.kvm import Kvm, KvmVerdict
from nimbus.host.quarantine import Quarantined
from nimbus.host_agent.doctor import kernel, stock
from nimbus.host_agent.doctor.finding import Finding, Patient, Verdict, broken, degraded, ok
from nimbus.host_agent.doctor.rounds import CHECKS, run_check, worst
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.sight.standing import Sight, Standing
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.model.record import Record

VM = VmId("0badcafe")
RECORD = Record(vm=VM, created_at=0, boot_id="", backend="fake", plan={}, claims=())
SLOTS = Path("/run/nimbus/slots")


def patient(tmp_path: Path, **fields: str) -> Patient:
    layout = HostLayout(state=tmp_path, runtime=tmp_path / "run")
    return replace(Patient(layout, "fake", "tcg", 2048), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("release", "verdict"),
    [("5.14.0-1", Verdict.OK), ("6.1", Verdict.OK), ("5.10.0-28-amd64", Verdict.BROKEN), ("odd", Verdict.BROKEN)],
)
def test_a_kernel_without_cgroup_kill_is_broken(release: str, verdict: Verdict) -> None:
    assert kernel.judge_kernel(release).verdict is verdict


@pytest.mark.parametrize(
    ("found", "needed", "verdict", "word"),
    [
        (KvmVerdict.HARDWARE, True, Verdict.OK, "hardware: "),
        (KvmVerdict.HARDWARE, False, Verdict.OK, "hardware: "),
        (KvmVerdict.EMULATED, False, Verdict.DEGRADED, "emulated: "),
        (KvmVerdict.EMULATED, True, Verdict.BROKEN, "emulated: "),
        (KvmVerdict.ABSENT, False, Verdict.DEGRADED, "absent: "),
        (KvmVerdict.ABSENT, True, Verdict.BROKEN, "absent: "),
        (KvmVerdict.DENIED, True, Verdict.BROKEN, "denied: "),
        (KvmVerdict.UNUSABLE, False, Verdict.DEGRADED, "unusable: "),
    ],
)
def test_kvm_is_demanded_only_where_it_was_asked_for(
    found: KvmVerdict, needed: bool, verdict: Verdict, word: str
) -> None:
    told = kernel.judge_kvm(Kvm(found, "the reason"), needed=needed)
    assert (told.verdict, told.detail.startswith(word)) == (verdict, True)
    assert bool(told.remedy) == (verdict is not Verdict.OK)


def test_a_slow_creation_of_vms_is_told_with_its_time_and_what_mends_it() -> None:
    told = kernel.judge_kvm(Kvm(KvmVerdict.HARDWARE, "fast", create_vm_ms=27.4, loop_ratio=1.0), needed=True)
    assert (told.verdict, "27.4 ms" in told.detail) == (Verdict.DEGRADED, True)
    assert "favordynmods" in told.remedy
    assert "nx_huge_pages=never" in told.remedy
    quick = kernel.judge_kvm(Kvm(KvmVerdict.HARDWARE, "fast", create_vm_ms=0.35, loop_ratio=1.0), needed=True)
    assert (quick.verdict, quick.remedy) == (Verdict.OK, "")


def test_descriptors_must_do_for_every_slot() -> None:
    assert kernel.judge_descriptors(1024, 64, "agent 1").verdict is Verdict.DEGRADED
    assert kernel.judge_descriptors(1280, 64, "agent 1").verdict is Verdict.OK
    assert kernel.judge_descriptors(-1, 4096, "agent 1").verdict is Verdict.OK


def test_a_wall_clock_that_is_years_behind_is_broken() -> None:
    assert kernel.judge_clocks(10, 12, 0).verdict is Verdict.BROKEN
    assert kernel.judge_clocks(10, 9, 2e9).verdict is Verdict.BROKEN
    assert "for 2 s" in kernel.judge_clocks(10, 12, 2e9).detail


@pytest.mark.parametrize(("free", "verdict"), [(2048, Verdict.BROKEN), (4095, Verdict.DEGRADED), (4096, Verdict.OK)])
def test_disk_is_judged_beside_the_reserve(free: int, verdict: Verdict) -> None:
    assert stock.judge_disk("/state", free, 2048).verdict is verdict


def test_memory_must_do_for_one_vm() -> None:
    text = "MemTotal: 1048576 kB\nMemAvailable: {} kB\n"
    assert stock.judge_memory(text.format(300 << 10)).verdict is Verdict.DEGRADED
    assert stock.judge_memory(text.format(400 << 10)).detail == "400 of 1024 MiB are available"


def test_a_slot_in_quarantine_is_not_free_and_names_its_cause_and_its_cure() -> None:
    apart = [Quarantined(3, 0.0, "acquire network", "busy"), Quarantined(70, 0.0, "acquire network", "busy")]
    count, third, _ = stock.judge_slots([0, 1, 80], apart, 4, SLOTS)
    assert count == ok("slots", "1 free, 2 held, 2 in quarantine, of 4")
    assert "slot 3 failed again and again (acquire network: busy)" in third.detail
    assert f"{SLOTS}/3.quarantine" in third.remedy


def test_no_free_slot_is_told() -> None:
    (told,) = stock.judge_slots([0, 1], [], 2, SLOTS)
    assert told.verdict is Verdict.DEGRADED


def test_machines_that_wait_need_an_agent_only_where_none_runs() -> None:
    for standing in (Standing.ADOPTABLE, Standing.ENDED_UNTOLD):
        sights = [Sight(VM, standing, RECORD)]
        (alone,) = stock.judge_ledger(sights, agent_runs=False)
        (seen_to,) = stock.judge_ledger(sights, agent_runs=True)
        assert (alone.verdict, seen_to.verdict) == (Verdict.DEGRADED, Verdict.OK)


def test_an_orphan_and_a_teardown_that_failed_are_told_each() -> None:
    failed = replace(RECORD, failures=("network: busy",))
    found = list(stock.judge_ledger([Sight(VM, Standing.ORPHAN, failed)], agent_runs=True))
    assert [finding.verdict for finding in found] == [Verdict.DEGRADED] * 2
    assert all(str(VM) in finding.detail for finding in found)


def test_a_unit_that_kills_its_whole_group_is_told() -> None:
    assert stock.judge_unit("a.service", {"KillMode": "control-group", "Delegate": "yes"}).verdict is Verdict.DEGRADED
    assert stock.judge_unit("a.service", {"KillMode": "process", "Delegate": "yes"}).verdict is Verdict.OK


def test_a_check_that_fails_is_broken_and_keeps_what_it_found_before(tmp_path: Path) -> None:
    def check(_: Patient):  # type: ignore[no-untyped-def]
        yield ok("first", "fine")
        raise HostFault("no tun device")

    found = run_check("network", check, patient(tmp_path))
    assert [(f.name, f.verdict) for f in found] == [("first", Verdict.OK), ("network", Verdict.BROKEN)]
    assert found[1].remedy


def test_a_missing_image_is_broken_unless_none_is_booted(tmp_path: Path) -> None:
    (real,) = stock.check_image(patient(tmp_path, vmm="auto"))
    (fake,) = stock.check_image(patient(tmp_path))
    assert (real.verdict, fake.verdict) == (Verdict.BROKEN, Verdict.OK)
    assert "nimbus assets build" in real.remedy


def test_another_root_of_the_same_name_is_broken(tmp_path: Path) -> None:
    subject = patient(tmp_path / "mine")
    rival = tmp_path / "rival"
    (rival / "ledger").mkdir(parents=True)
    (rival / "ledger" / "0badcafe.json").touch()
    (tmp_path / "mine" / "run" / "roots").mkdir(parents=True)
    (tmp_path / "mine" / "run" / "roots" / subject.layout.root_id).write_text(str(rival))
    (told,) = stock.check_name(subject)
    assert (told.verdict, str(rival) in told.detail) == (Verdict.BROKEN, True)


def test_the_worst_finding_is_the_hosts() -> None:
    findings = [ok("a", ""), broken("b", "", ""), degraded("c", "", "")]
    assert worst(findings) is Verdict.BROKEN
    assert worst([]) is Verdict.OK


def test_a_finding_is_a_line_and_its_remedy_stands_below_and_drives_no_terminal() -> None:
    assert render(ok("kernel", "Linux 6")) == "ok        kernel         Linux 6"
    lines = render(Finding("slots", Verdict.DEGRADED, "slot 3 \x1b[2Jfailed", "mend it")).splitlines()
    assert lines == ["degraded  slots          slot 3 failed", f"{'':<25}-> mend it"]


def test_every_check_has_a_short_name_of_its_own() -> None:
    assert all(len(name) <= 14 for name in CHECKS)
