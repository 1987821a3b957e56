"""Which backend a host takes, for every host and wish that matter, and what it says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.host.kvm import Kvm, KvmVerdict
from nimbus.host_agent.vmm import choice
from nimbus.host_agent.vmm.choice import BACKENDS, Choice, Decision, Facts, Wanted, decide
from nimbus.model.errors import HostFault, Refused

KVM = {verdict: Kvm(verdict, f"the reason of {verdict}") for verdict in KvmVerdict}
FULL = Facts(KVM[KvmVerdict.HARDWARE], Path("/qemu"), Path("/firecracker"), Path("/jailer"))
TCG = Decision("qemu", "tcg")
SLOW = choice.EMULATED


def facts(verdict: KvmVerdict, **fields: Path | None) -> Facts:
    return replace(FULL, kvm=KVM[verdict], **fields)


@pytest.mark.parametrize(
    ("found", "wanted", "decision"),
    [
        (FULL, Wanted(), Decision("firecracker", "kvm")),
        (FULL, Wanted(accel="kvm"), Decision("firecracker", "kvm")),
        (FULL, Wanted("qemu"), Decision("qemu", "kvm")),
        (FULL, Wanted("firecracker"), Decision("firecracker", "kvm")),
        (FULL, Wanted("fake", "kvm"), Decision("fake", "none")),
        (replace(FULL, qemu=None), Wanted(), Decision("firecracker", "kvm")),
        (replace(FULL, jailer=None), Wanted(), Decision("qemu", "kvm")),
        (replace(FULL, firecracker=None), Wanted(), Decision("qemu", "kvm")),
        (replace(FULL, kvm=None), Wanted(accel="tcg"), TCG),
        (FULL, Wanted(accel="tcg"), TCG),
        (facts(KvmVerdict.EMULATED), Wanted(), TCG),
        (facts(KvmVerdict.EMULATED), Wanted("qemu"), TCG),
        (facts(KvmVerdict.EMULATED), Wanted(accel="kvm"), Decision("qemu", "kvm", SLOW)),
        (facts(KvmVerdict.EMULATED), Wanted("firecracker"), Decision("firecracker", "kvm", SLOW)),
        (facts(KvmVerdict.EMULATED), Wanted("firecracker", "kvm"), Decision("firecracker", "kvm", SLOW)),
        (facts(KvmVerdict.UNUSABLE), Wanted(), TCG),
        (facts(KvmVerdict.ABSENT), Wanted(), TCG),
        (facts(KvmVerdict.DENIED), Wanted("qemu"), TCG),
    ],
)
def test_a_host_takes_the_best_that_it_has_and_what_was_named(found: Facts, wanted: Wanted, decision: Decision) -> None:
    assert decide(found, wanted) == decision


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        (facts(KvmVerdict.ABSENT), Wanted(accel="kvm"), ("no /dev/kvm", "NIMBUS_ACCEL=tcg")),
        (facts(KvmVerdict.DENIED), Wanted(accel="kvm"), ("may not open", "NIMBUS_ACCEL=tcg")),
        (facts(KvmVerdict.UNUSABLE), Wanted("qemu", "kvm"), ("the reason of unusable", "nimbus doctor")),
        (facts(KvmVerdict.ABSENT), Wanted("firecracker"), ("no /dev/kvm", "NIMBUS_VMM=qemu")),
        (facts(KvmVerdict.UNUSABLE), Wanted("firecracker"), ("the reason of unusable",)),
        (facts(KvmVerdict.HARDWARE, firecracker=None), Wanted("firecracker"), ("firecracker", "NIMBUS_FC_BIN")),
        (facts(KvmVerdict.HARDWARE, jailer=None), Wanted("firecracker"), ("jailer", "NIMBUS_JAILER_BIN")),
        (facts(KvmVerdict.EMULATED, qemu=None), Wanted(), ("qemu-system-x86_64 is missing",)),
        (facts(KvmVerdict.HARDWARE, qemu=None), Wanted("qemu"), ("qemu-system-x86_64 is missing",)),
    ],
)
def test_what_this_host_has_not_is_told_with_what_mends_it(
    found: Facts, wanted: Wanted, words: tuple[str, ...]
) -> None:
    with pytest.raises(HostFault) as told:
        decide(found, wanted)
    for word in words:
        assert word in str(told.value)


def test_firecracker_without_kvm_is_no_wish_that_can_be_granted() -> None:
    with pytest.raises(Refused, match="KVM alone"):
        decide(FULL, Wanted("firecracker", "tcg"))


@pytest.mark.parametrize(("name", "accel"), [("fake", "auto"), ("fake", "kvm"), ("auto", "tcg"), ("qemu", "tcg")])
def test_kvm_is_not_asked_where_nothing_hangs_on_it(name: str, accel: str) -> None:
    asked: list[str] = []

    def ask() -> Kvm:
        asked.append("kvm")
        return KVM[KvmVerdict.HARDWARE]

    wanted = Wanted(name, accel)
    choice.read_facts(wanted, ask)
    assert asked == []


def test_kvm_that_was_named_and_is_slow_is_said_loudly() -> None:
    slow = Choice(BACKENDS["qemu"], "kvm", Path("/qemu"), warning=choice.EMULATED)
    assert slow.label.startswith("qemu-kvm (KVM without hardware")


def test_a_program_is_where_the_operator_says_or_nowhere(tmp_path: Path) -> None:
    here = tmp_path / "sh"
    here.write_text("#!/bin/sh\n")
    assert choice.find_program("sh", here) is None, "it is no program yet"
    here.chmod(0o755)
    assert choice.find_program("sh", here) == here
    assert choice.find_program("sh", tmp_path / "absent") is None
    assert choice.find_program("sh", None) is not None
    assert choice.find_program("no-such-program-of-anyone", None) is None
