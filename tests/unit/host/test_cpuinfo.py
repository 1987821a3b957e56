"""The host's processor, from what different kernels say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimbus.host.cpuinfo import kernel_release, parse_cpu, read_cpu
from nimbus.model.errors import HostFault


def block(number: int, microcode: str = "0x1", flags: str = "fpu sse sse2") -> str:
    return (
        f"processor\t: {number}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\n"
        f"model name\t: A CPU @ 2.00GHz\nstepping\t: 6\nmicrocode\t: {microcode}\ncpu MHz\t\t: {2000 + number}.1\n"
        f"flags\t\t: {flags}\n\n"
    )


def test_equal_cpus_are_one_and_their_clock_does_not_matter() -> None:
    cpu = parse_cpu(block(0) + block(1))
    assert cpu == parse_cpu(block(7))
    assert (cpu.model_name, cpu.family, cpu.model, cpu.stepping, cpu.microcode) == (
        "A CPU @ 2.00GHz",
        "6",
        "106",
        "6",
        "0x1",
    )


def test_the_order_of_the_flags_does_not_matter_and_their_set_does() -> None:
    assert parse_cpu(block(0, flags="sse2 fpu sse")) == parse_cpu(block(0))
    assert parse_cpu(block(0, flags="fpu sse")) != parse_cpu(block(0))


def test_cpus_that_differ_make_a_processor_of_their_own_in_any_order() -> None:
    mixed = parse_cpu(block(0, "0x1") + block(1, "0x2"))
    assert mixed.microcode == "0x1 + 0x2"
    assert mixed == parse_cpu(block(0, "0x2") + block(1, "0x1"))


def test_a_kernel_that_hides_the_microcode_still_has_a_processor() -> None:
    hidden = "\n".join(line for line in block(0).splitlines() if not line.startswith("microcode")) + "\n\n"
    assert parse_cpu(hidden).microcode == "unknown"


@pytest.mark.parametrize("text", ["", "\n\n", "Hardware : something\n\n"])
def test_a_text_without_a_processor_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="names no processor"):
        parse_cpu(text)


def test_a_host_that_does_not_tell_is_at_fault(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="cannot tell this host's processor"):
        read_cpu(tmp_path / "absent")


def test_this_host_tells_the_same_twice() -> None:
    assert read_cpu() == read_cpu()
    assert kernel_release()
