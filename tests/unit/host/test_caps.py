"""What a host lacks is said as a sentence about who must do what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nimbus.host.caps import HostFacts, judge, parse_capabilities, read_facts

ALL = HostFacts(
    capabilities=(1 << 41) - 1,
    tools=frozenset({"qemu-system-x86_64"}),
    has_tun=True,
    has_cgroup2=True,
    has_nftables=True,
    can_write_run=True,
)


def test_a_complete_host_lacks_nothing() -> None:
    assert judge(ALL) == ()


def test_an_ordinary_user_is_told_to_become_root_in_one_sentence() -> None:
    (sentence,) = judge(replace(ALL, capabilities=0, can_write_run=False))
    assert sentence.startswith("run nimbus as root (sudo)")
    assert "CAP_NET_ADMIN (to make links and firewall rules)" in sentence


@pytest.mark.parametrize(
    ("lack", "word"),
    [
        ({"has_tun": False}, "modprobe tun"),
        ({"has_cgroup2": False}, "mount -t cgroup2"),
        ({"can_write_run": False}, "/run/nimbus"),
        ({"has_nftables": False}, "Debian package libnftables1"),
        ({"tools": frozenset()}, "Debian package qemu-system-x86"),
    ],
)
def test_each_lack_names_its_remedy(lack: dict[str, object], word: str) -> None:
    (sentence,) = judge(replace(ALL, **lack))  # type: ignore[arg-type]  # one field of several types
    assert word in sentence


def test_a_backend_that_is_not_qemu_needs_all_that_a_vm_needs_but_qemu() -> None:
    without_qemu = replace(ALL, tools=frozenset())
    assert judge(without_qemu, qemu=False) == ()
    (sentence,) = judge(replace(without_qemu, has_tun=False), qemu=False)
    assert "modprobe tun" in sentence
    (sentence,) = judge(replace(without_qemu, capabilities=1 << 5 | 1 << 21), qemu=False)
    assert "CAP_NET_ADMIN" in sentence


def test_the_effective_set_is_read_from_the_status_of_a_process() -> None:
    assert parse_capabilities("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n") == 1 << 21 | 1 << 12


def test_the_facts_of_this_very_host_can_be_read() -> None:
    assert isinstance(read_facts().capabilities, int)
