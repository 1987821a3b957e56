"""The judging and the tables of `make bench-boot`; the boots themselves are not for tests."""

from __future__ import annotations

import os

from bench.boot import Found, find_obstacle, judge, judge_hardware, render_kinds, render_phases
from bench.bootmemory import read_private_kib, read_ram_dirty_kib
from nimbus.host.kvm import KvmVerdict

GOOD = {
    "raw_restored.ready_ms": [100.0, 100.0],
    "slots.ready_ms": [110.0, 110.0],
    "slots.own_ms": [10.0, 12.0],
    "restored.ready_ms": [140.0],
    "prespawned.ready_ms": [70.0],
    "warm.ready_ms": [20.0],
    "cold.ready_ms": [1500.0],
}
MEMORY = {"clone_dirty_mib": 6.0, "template_mib": 60.0}


def broken(**changed: list[float]) -> set[str]:
    samples = {**GOOD, **{name.replace("__", "."): values for name, values in changed.items()}}
    return {bound.name for bound in judge(Found(samples), MEMORY) if not bound.holds}


def test_a_run_within_all_bounds_breaks_none() -> None:
    assert not broken()


def test_each_ratio_is_taken_against_the_floor_of_the_same_run() -> None:
    assert len(broken(raw_restored__ready_ms=[50.0])) == 4


def test_a_slow_agent_breaks_its_own_share() -> None:
    assert broken(slots__own_ms=[16.0, 16.0]) == {"agent's own share with slots, ms, p50"}
    assert broken(slots__own_ms=[1.0] * 90 + [50.0] * 10) == {"agent's own share with slots, ms, p99"}


def test_restoring_must_be_worth_it() -> None:
    assert broken(cold__ready_ms=[500.0]) == {"cold / restored with slots, p50"}


def test_milliseconds_are_judged_on_hardware_alone() -> None:
    assert [bound.holds for bound in judge_hardware(Found(dict(GOOD)))] == [False, False]


def test_firecracker_is_measured_on_hardware_kvm_alone() -> None:
    assert "emulated" in find_obstacle("firecracker", KvmVerdict.EMULATED)
    assert not find_obstacle("qemu", KvmVerdict.EMULATED)


def test_a_crowd_is_compared_with_a_crowd() -> None:
    table = render_kinds({**GOOD, "raw_restored_4.ready_ms": [400.0], "warm_4.ready_ms": [100.0]})
    (line,) = (line for line in table.splitlines() if line.startswith("warm, 4 at once"))
    assert line.split()[-1] == "0.25"


def test_a_phase_that_a_kind_has_not_is_left_blank() -> None:
    table = render_phases({"raw_restored": {"ready": 90.0}, "slots": {"keeper": 4.0, "ready": 99.0}})
    (line,) = (line for line in table.splitlines() if line.startswith("keeper"))
    assert line.split() == ["keeper", "4.0"]


def test_a_process_without_a_templates_memory_has_none_dirty() -> None:
    assert read_ram_dirty_kib(os.getpid()) is None
    assert read_private_kib(os.getpid()) > 0
