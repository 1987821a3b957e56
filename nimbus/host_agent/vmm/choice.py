"""Which backend and accelerator a host uses, decided once at start and said in every result.

`auto` takes QEMU and never the fake. Software emulation (TCG) runs untrusted code without a security
boundary: QEMU's maintainers exclude it, and so the label says it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from nimbus.host_agent.vmm import Vmm
from nimbus.host_agent.vmm.fake import Fake
from nimbus.host_agent.vmm.qemu import Qemu
from nimbus.model.errors import HostFault, Refused

BACKENDS: dict[str, Vmm] = {"fake": Fake(), "qemu": Qemu()}
ACCELERATORS = ("tcg", "kvm")
GUEST_INIT = Path(__file__).parents[2] / "rootfs" / "bin" / "nimbus-init"


@dataclass(frozen=True)
class Choice:
    """The backend of this host, its accelerator and its binaries."""

    vmm: Vmm
    accel: str
    binary: Path
    jailer: Path | None = None  # Firecracker's alone

    @property
    def label(self) -> str:
        """What every run shows of it."""
        if self.vmm.name == "fake":
            return "fake (a process of this host: no guest, no isolation)"
        if self.accel == "tcg":
            return f"{self.vmm.name}-tcg (software emulation: not a security boundary)"
        return f"{self.vmm.name}-{self.accel}"


def choose_vmm(name: str, accel: str) -> Choice:
    """The backend for `NIMBUS_VMM` and `NIMBUS_ACCEL`. Raises Refused for a bad name, HostFault for no binary."""
    if accel not in ACCELERATORS:
        raise Refused(f"NIMBUS_ACCEL={accel!r}: one of {', '.join(ACCELERATORS)} is needed")
    wanted = "qemu" if name == "auto" else name
    if wanted not in BACKENDS:
        raise Refused(f"NIMBUS_VMM={name!r}: auto, {', '.join(sorted(BACKENDS))} are known")
    if wanted == "fake":
        return Choice(BACKENDS["fake"], "none", GUEST_INIT)
    if accel == "kvm" and not Path("/dev/kvm").exists():
        raise HostFault("NIMBUS_ACCEL=kvm but this host has no /dev/kvm; set NIMBUS_ACCEL=tcg or enable virtualisation")
    binary = shutil.which("qemu-system-x86_64")
    if binary is None:
        raise HostFault("qemu-system-x86_64 is missing: install the Debian package qemu-system-x86 or run `make setup`")
    return Choice(BACKENDS[wanted], accel, Path(binary).resolve())
