"""What is kept of VMs that ended badly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nimbus.host_agent.postmortem import KEPT_MAX, TAIL_BYTES_MAX, keep_console, read_postmortem
from nimbus.model.errors import HostFault, NotFound
from nimbus.model.ids import VmId


def vm(number: int) -> VmId:
    return VmId(f"{number:08x}")


def test_the_end_of_a_console_and_its_facts_are_read_back_by_root_alone(tmp_path: Path) -> None:
    keep_console(tmp_path / "p", vm(1), b"x" * TAIL_BYTES_MAX + b"panic\x1b[2J", {"cause": "panic", "fence": 3})
    kept = read_postmortem(tmp_path / "p", vm(1))
    assert kept.console == b"x" * (TAIL_BYTES_MAX - 9) + b"panic\x1b[2J"
    assert kept.facts == {"version": 1, "vm": "00000001", "cause": "panic", "fence": 3}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "p").iterdir()} == {0o600}
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT_MAX + 5):
        keep_console(tmp_path, vm(number), b"%d" % number, {})
        os.utime(tmp_path / f"{vm(number)}.console", (number, number))
    assert len(list(tmp_path.iterdir())) == 2 * KEPT_MAX
    assert read_postmortem(tmp_path, vm(KEPT_MAX + 4)).console == b"%d" % (KEPT_MAX + 4)
    with pytest.raises(NotFound):
        read_postmortem(tmp_path, vm(4))


def test_facts_that_are_too_long_are_not_kept(tmp_path: Path) -> None:
    keep_console(tmp_path, vm(1), b"", {"cause": "x" * 70_000})
    assert read_postmortem(tmp_path, vm(1)).facts == {"version": 1, "vm": "00000001"}


def test_a_disk_that_takes_nothing_is_the_hosts_fault(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("no folder")
    with pytest.raises(HostFault):
        keep_console(tmp_path / "p", vm(1), b"", {})
