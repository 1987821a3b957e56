"""Which processor and which kernel this host has: what a snapshot depends on and a person can read.

Reads /proc/cpuinfo and uname only. On a host of many CPUs that file costs milliseconds, so an agent asks once.
Called by the template builder and `nimbus snapshots`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from nimbus.model.errors import HostFault
from nimbus.model.template import Cpu

_CPUINFO = Path("/proc/cpuinfo")
_UNKNOWN = "unknown"  # a kernel that hides a word hides it always: it still matches itself


def read_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """This host's processor. Raises HostFault where the kernel does not tell."""
    try:
        return parse_cpu(cpuinfo.read_text(errors="replace"))
    except (OSError, ValueError) as error:
        raise HostFault(f"cannot tell this host's processor from {cpuinfo}: {error}") from None


def kernel_release() -> str:
    """What `uname -r` says."""
    return os.uname().release


def parse_cpu(text: str) -> Cpu:
    """Pure. Where the CPUs differ, every value of theirs counts: a guest may run on any of them.

    Raises ValueError where no processor is named.
    """
    cpus = list(_processors(text))
    if not cpus:
        raise ValueError("it names no processor")

    def all_of(name: str) -> str:
        return " + ".join(sorted({cpu.get(name) or _UNKNOWN for cpu in cpus}))

    flags = sorted({" ".join(sorted(cpu.get("flags", "").split())) for cpu in cpus})
    return Cpu(
        vendor=all_of("vendor_id"),
        model_name=all_of("model name"),
        family=all_of("cpu family"),
        model=all_of("model"),
        stepping=all_of("stepping"),
        microcode=all_of("microcode"),
        features_sha256=hashlib.sha256("\n".join(flags).encode()).hexdigest(),
    )


def _processors(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        words = {name.strip(): value.strip() for name, colon, value in pairs if colon}
        if "processor" in words:
            yield words
