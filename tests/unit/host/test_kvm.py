"""What one trial of /dev/kvm proves, how a program that hangs or lies is taken, and what is remembered of it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nimbus.host import kvm
from nimbus.host.kvm import Kvm, KvmVerdict, Trial

GOOD = Trial("", errno=0, exit_reason=2, api=12, create_ns=350_000, host_ns=100, guest_ns=105, counted=90, loop=90)
HAS_KVM = os.access(kvm.DEVICE, os.R_OK | os.W_OK)


def program(tmp_path: Path, script: str) -> Path:
    """Stands in for nimbus-kvm."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("trial", "verdict", "word"),
    [
        (GOOD, KvmVerdict.HARDWARE, "1.05"),
        (replace(GOOD, guest_ns=2000), KvmVerdict.HARDWARE, "20.00"),
        (replace(GOOD, guest_ns=2001), KvmVerdict.EMULATED, "20 times"),
        (replace(GOOD, guest_ns=2000, counted=1), KvmVerdict.EMULATED, "1800 times"),
        (replace(GOOD, guest_ns=2000, counted=0), KvmVerdict.EMULATED, "times"),
        (replace(GOOD, guest_ns=50, counted=45), KvmVerdict.HARDWARE, "1.00"),
        (replace(GOOD, step="api", api=13), KvmVerdict.UNUSABLE, "API 13"),
        (replace(GOOD, step="create", errno=errno.ENOMEM), KvmVerdict.UNUSABLE, "no VM can be made (Cannot allocate"),
        (replace(GOOD, step="machine", errno=errno.EINVAL), KvmVerdict.UNUSABLE, "no VM can be made (Invalid"),
        (replace(GOOD, step="boot", exit_reason=17), KvmVerdict.UNUSABLE, "KVM exit 17"),
        (replace(GOOD, step="count", errno=errno.EFAULT), KvmVerdict.UNUSABLE, "Bad address"),
        (replace(GOOD, step="image", errno=errno.ENOENT), KvmVerdict.UNUSABLE, "could not be tried: image"),
    ],
)
def test_a_trial_is_judged_by_what_its_guest_came_to(trial: Trial, verdict: KvmVerdict, word: str) -> None:
    found = kvm.judge(trial)
    assert (found.verdict, word in found.why) == (verdict, True), found.why


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (errno.ENOENT, KvmVerdict.ABSENT),
        (errno.ENXIO, KvmVerdict.ABSENT),
        (errno.EACCES, KvmVerdict.DENIED),
        (errno.EPERM, KvmVerdict.DENIED),
        (errno.EMFILE, KvmVerdict.UNUSABLE),
    ],
)
def test_a_device_that_does_not_open_is_judged_by_why(number: int, verdict: KvmVerdict) -> None:
    assert kvm.judge_open(OSError(number, os.strerror(number))).verdict is verdict


def test_a_device_that_is_not_there_is_absent(tmp_path: Path) -> None:
    assert kvm.probe_kvm(tmp_path / "kvm").verdict is KvmVerdict.ABSENT


def test_a_device_that_is_no_kvm_is_unusable() -> None:
    found = kvm.probe_kvm(Path("/dev/null"))
    assert (found.verdict, found.tried) == (KvmVerdict.UNUSABLE, True)
    assert "API -1" in found.why


def test_a_trial_that_hangs_is_killed_and_its_kvm_unusable(tmp_path: Path) -> None:
    hangs = program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    found = kvm.probe_kvm(Path("/dev/null"), program=hangs, limit_s=3)
    assert (found.verdict, found.tried) == (KvmVerdict.UNUSABLE, True)
    assert "hung for 3 s" in found.why
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize("script", ["exit 1", "echo '[1]'", "echo '{\"step\": 1}'", "kill -9 $$"])
def test_a_program_that_says_nothing_sensible_proves_nothing(tmp_path: Path, script: str) -> None:
    found = kvm.probe_kvm(Path("/dev/null"), program=program(tmp_path, script))
    assert (found.verdict, found.tried) == (KvmVerdict.UNUSABLE, False)


def test_a_program_that_is_not_built_proves_nothing(tmp_path: Path) -> None:
    found = kvm.probe_kvm(Path("/dev/null"), program=tmp_path / "absent")
    assert (found.verdict, found.tried) == (KvmVerdict.UNUSABLE, False)
    assert "absent does not start" in found.why


def test_hardware_is_what_the_program_reports_of_it(tmp_path: Path) -> None:
    told = program(tmp_path, f"echo '{json.dumps(asdict(GOOD))}'")
    found = kvm.probe_kvm(Path("/dev/null"), program=told)
    assert found == Kvm(KvmVerdict.HARDWARE, "a guest counts as fast as the host (1.05 of its time)", 0.35, 1.05)


def test_what_was_seen_is_remembered_under_its_key_alone(tmp_path: Path) -> None:
    seen = kvm.judge(GOOD)
    kvm.remember(tmp_path, "this boot", seen)
    assert kvm.recall(tmp_path, "this boot") == seen
    assert kvm.recall(tmp_path, "another boot") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"key": "k"}', '{"key": "k", "kvm": {}}', '{"key": "k", "kvm": {"verdict": "fast"}}']
)
def test_a_torn_memory_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / kvm.REMEMBERED).write_text(text)
    assert kvm.recall(tmp_path, "k") is None


def test_a_runtime_folder_that_is_not_there_yet_is_no_failure(tmp_path: Path) -> None:
    kvm.remember(tmp_path / "absent", "k", kvm.judge(GOOD))
    assert kvm.recall(tmp_path / "absent", "k") is None


@pytest.mark.skipif(not HAS_KVM, reason="needs a /dev/kvm that this user may open")
def test_this_hosts_own_kvm_gets_a_verdict_that_is_remembered(tmp_path: Path) -> None:
    found = kvm.find_kvm(tmp_path)
    assert found.tried, found.why
    assert kvm.find_kvm(tmp_path) == found
    assert json.loads((tmp_path / kvm.REMEMBERED).read_text())["kvm"]["verdict"] == found.verdict


@pytest.mark.skipif(not HAS_KVM, reason="needs a /dev/kvm that this user may open")
@pytest.mark.skipif(
    any(Path("/sys/module", module).exists() for module in ("kvm_intel", "kvm_amd")),
    reason="needs a host whose KVM has no hardware below it",
)
def test_a_kvm_without_hardware_below_it_is_told_apart() -> None:
    found = kvm.probe_kvm()
    assert found.verdict is KvmVerdict.EMULATED, found.why
    assert found.create_vm_ms is not None
    assert found.loop_ratio is not None
