"""The tiny guest of native/probe under QEMU's software emulation: what its users rely on, seen on its serial port."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

PROBE = Path(__file__).resolve().parents[2] / "nimbus/host/bin/nimbus-probe.elf"
QEMU = shutil.which("qemu-system-x86_64")
LIMIT_S = 120.0
MACHINE = "microvm,accel=tcg,acpi=on,rtc=on,pit=on,pic=on,x-option-roms=off,isa-serial=on"

pytestmark = pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")


def command(line: str) -> list[str]:
    return [
        str(QEMU),
        *("-M", MACHINE, "-m", "32M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-kernel", str(PROBE), "-append", line),
    ]


def run_guest(line: str) -> list[str]:
    """The lines of a guest that ends by itself."""
    ran = subprocess.run(
        command(line), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    return ran.stdout.splitlines()


@contextmanager
def running_guest(line: str) -> Iterator[IO[str]]:
    """The serial port of a guest that does not; it is ended with the block."""
    with subprocess.Popen(command(line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout
        finally:
            child.kill()


@pytest.mark.parametrize("line", ["", "console=ttyS0 quiet", "idler", "stops", "idl e"])
def test_the_probe_counts_to_its_end_and_resets_unless_told_otherwise(line: str) -> None:
    assert run_guest(line) == ["nimbus-probe: up", "nimbus-probe: done"]


@pytest.mark.parametrize("line", ["stop", "  stop", "stop idle"])
def test_a_probe_told_to_stop_resets_without_counting(line: str) -> None:
    assert run_guest(line) == ["nimbus-probe: up"]


@pytest.mark.parametrize("line", ["idle", " idle console=ttyS0"])
def test_an_idle_probe_ticks_and_numbers_its_ticks(line: str) -> None:
    with running_guest(line) as serial:
        seen = [serial.readline() for _ in range(4)]
    assert seen == ["nimbus-probe: up\n", *(f"nimbus-probe: tick {number}\n" for number in (1, 2, 3))]


def test_the_probe_is_a_64_bit_elf_from_one_mebibyte_on_with_a_pvh_note() -> None:
    shown = subprocess.run(["readelf", "-hln", PROBE], capture_output=True, text=True, check=True).stdout
    assert "ELF64" in shown
    assert "Xen" in shown
    loads = [words for words in map(str.split, shown.splitlines()) if words[:1] == ["LOAD"]]
    assert min(int(words[3], 16) for words in loads) == 1 << 20
