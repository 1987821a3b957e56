"""Which vCPU a VMM's thread is, by the names that VMMs give, and how a page shows it."""

from __future__ import annotations

import pytest

from nimbus.cli.vmpage import render
from nimbus.host_agent.sight.bounds import number_vcpu


@pytest.mark.parametrize(
    ("name", "vcpu"),
    [
        ("CPU 0/TCG", 0),
        ("CPU 12/KVM", 12),
        ("fc_vcpu 3", 3),
        ("qemu-system-x86", None),
        ("fc_api", None),
        ("CPU 0/TCG and more", None),
    ],
)
def test_a_thread_is_known_as_a_vcpu_by_its_whole_name(name: str, vcpu: int | None) -> None:
    assert number_vcpu(name) == vcpu


def test_a_page_shows_the_facts_of_one_thing_side_by_side_and_leaves_out_what_is_absent() -> None:
    facts = {"limits": [{"file": "cpu.max", "asked": "100000 100000", "held": None}, {"file": "io.max", "held": "x"}]}
    first, second = "\n".join(render(facts)).splitlines()
    assert first.split(maxsplit=1) == ["limits", "file cpu.max, asked 100000 100000"]
    assert second.strip() == "file io.max, held x"
