"""Which backend and accelerator a host uses, decided once at start and said in every result.

`auto` takes the best that this host proves to have, and never the fake: Firecracker under its jailer where KVM is
hardware and both are installed, QEMU on hardware KVM, and QEMU's software emulation (TCG) anywhere else. TCG runs
untrusted code without a security boundary: QEMU's maintainers exclude it, and so the label says it. What an operator
names is taken as named, or refused with the reason; never silently another. `decide` is pure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nimbus.host.kvm import Kvm, KvmVerdict, probe_kvm
from nimbus.host_agent.vmm import Vmm
from nimbus.host_agent.vmm.fake import Fake
from nimbus.host_agent.vmm.firecracker import Firecracker
from nimbus.host_agent.vmm.qemu import Qemu
from nimbus.model.errors import HostFault, Refused

BACKENDS: dict[str, Vmm] = {"fake": Fake(), "firecracker": Firecracker(), "qemu": Qemu()}
ACCELERATORS = ("auto", "tcg", "kvm")
GUEST_INIT = Path(__file__).parents[2] / "rootfs" / "bin" / "nimbus-init"
USUAL_FOLDER = Path("/usr/local/bin")  # where the documents put Firecracker
EMULATED = "KVM without hardware below it: far too slow for Linux, and not a security boundary"


@dataclass(frozen=True)
class Wanted:
    """What the operator asked for."""

    vmm: str = "auto"  # NIMBUS_VMM
    accel: str = "auto"  # NIMBUS_ACCEL
    firecracker: Path | None = None  # NIMBUS_FC_BIN
    jailer: Path | None = None  # NIMBUS_JAILER_BIN


@dataclass(frozen=True)
class Facts:
    """What this host has."""

    kvm: Kvm | None  # None: not asked, since nothing hangs on it
    qemu: Path | None
    firecracker: Path | None
    jailer: Path | None


@dataclass(frozen=True)
class Decision:
    """A backend by its name."""

    name: str
    accel: str
    warning: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend of this host, its accelerator and its binaries."""

    vmm: Vmm
    accel: str
    binary: Path
    jailer: Path | None = None  # Firecracker's alone
    warning: str = ""
    seccomp_filter: Path | None = None  # Firecracker's; None: those that it brings along

    @property
    def label(self) -> str:
        """What every run shows of it."""
        if self.vmm.name == "fake":
            return "fake (a process of this host: no guest, no isolation)"
        if self.accel == "tcg":
            return f"{self.vmm.name}-tcg (software emulation: not a security boundary)"
        return f"{self.vmm.name}-{self.accel}" + (f" ({self.warning})" if self.warning else "")


def choose_vmm(
    name: str,
    accel: str,
    *,
    firecracker: Path | None = None,
    jailer: Path | None = None,
    seccomp_filter: Path | None = None,
    ask_kvm: Callable[[], Kvm] = probe_kvm,
) -> Choice:
    """The backend for the settings of these names. Raises Refused for a bad one, HostFault where this host has it not.

    `ask_kvm` is called only where the answer matters: it may take half a second.
    """
    if name not in {"auto", *BACKENDS}:
        raise Refused(f"NIMBUS_VMM={name!r}: auto, {', '.join(sorted(BACKENDS))} are known")
    if accel not in ACCELERATORS:
        raise Refused(f"NIMBUS_ACCEL={accel!r}: one of {', '.join(ACCELERATORS)} is needed")
    wanted = Wanted(name, accel, firecracker, jailer)
    facts = read_facts(wanted, ask_kvm)
    decision = decide(facts, wanted)
    vmm = BACKENDS[decision.name]
    if decision.name == "firecracker" and facts.firecracker is not None:
        binary = facts.firecracker.resolve()
        return Choice(vmm, decision.accel, binary, facts.jailer, decision.warning, seccomp_filter)
    if decision.name == "qemu" and facts.qemu is not None:
        return Choice(vmm, decision.accel, facts.qemu.resolve(), warning=decision.warning)
    return Choice(vmm, decision.accel, GUEST_INIT)


def read_facts(wanted: Wanted, ask_kvm: Callable[[], Kvm]) -> Facts:
    """What there is of what could be wanted."""
    qemu = shutil.which("qemu-system-x86_64")
    can_firecracker = "firecracker" in BACKENDS
    return Facts(
        kvm=ask_kvm() if wanted.vmm != "fake" and wanted.accel != "tcg" else None,
        qemu=Path(qemu) if qemu else None,
        firecracker=find_program("firecracker", wanted.firecracker) if can_firecracker else None,
        jailer=find_program("jailer", wanted.jailer) if can_firecracker else None,
    )


def find_program(name: str, named: Path | None) -> Path | None:
    """Where the operator says it is and nowhere else; without a word of his in the usual folder, then on PATH."""
    if named is not None:
        return named if _can_start(named) else None
    usual = USUAL_FOLDER / name
    if _can_start(usual):
        return usual
    found = shutil.which(name)
    return Path(found) if found else None


def _can_start(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def decide(facts: Facts, wanted: Wanted) -> Decision:
    """Pure. Raises HostFault where this host lacks what was asked for, with what mends it."""
    if wanted.vmm == "fake":
        return Decision("fake", "none")
    if wanted.vmm == "firecracker":
        return _decide_firecracker(facts, wanted)
    accel, warning = _decide_accel(facts, wanted)
    has_hardware = accel == "kvm" and not warning
    if wanted.vmm == "auto" and has_hardware and facts.firecracker is not None and facts.jailer is not None:
        return Decision("firecracker", accel)
    if facts.qemu is None:
        raise HostFault("qemu-system-x86_64 is missing: install the Debian package qemu-system-x86 or run `make setup`")
    return Decision("qemu", accel, warning)


def _decide_accel(facts: Facts, wanted: Wanted) -> tuple[str, str]:
    """The accelerator, and what must be said of it: KVM that was asked for by name is used even where it is slow."""
    if wanted.accel == "tcg" or facts.kvm is None:
        return "tcg", ""
    if facts.kvm.verdict is KvmVerdict.HARDWARE:
        return "kvm", ""
    if wanted.accel == "auto":
        return "tcg", ""
    if facts.kvm.verdict is KvmVerdict.EMULATED:
        return "kvm", EMULATED
    raise HostFault(f"NIMBUS_ACCEL=kvm, but {_explain(facts.kvm)}; or set NIMBUS_ACCEL=tcg")


def _decide_firecracker(facts: Facts, wanted: Wanted) -> Decision:
    """Named by the operator, it is run on any KVM that runs guests at all."""
    if wanted.accel == "tcg" or facts.kvm is None:
        raise Refused("NIMBUS_VMM=firecracker runs on KVM alone: unset NIMBUS_ACCEL=tcg, or set NIMBUS_VMM=qemu")
    for name, variable, found in (
        ("firecracker", "NIMBUS_FC_BIN", facts.firecracker),
        ("jailer", "NIMBUS_JAILER_BIN", facts.jailer),
    ):
        if found is None:
            raise HostFault(
                f"NIMBUS_VMM=firecracker, but no program {name} was found: `nimbus assets fetch` installs it, or name"
                f" its file by {variable}"
            )
    if facts.kvm.verdict is KvmVerdict.HARDWARE:
        return Decision("firecracker", "kvm")
    if facts.kvm.verdict is KvmVerdict.EMULATED:
        return Decision("firecracker", "kvm", EMULATED)
    raise HostFault(f"NIMBUS_VMM=firecracker, but {_explain(facts.kvm)}; or set NIMBUS_VMM=qemu and NIMBUS_ACCEL=tcg")


def _explain(kvm: Kvm) -> str:
    """What is wrong with a KVM that cannot be used, and who mends it."""
    if kvm.verdict is KvmVerdict.ABSENT:
        return "this host has no /dev/kvm: enable virtualisation and load kvm_intel or kvm_amd"
    if kvm.verdict is KvmVerdict.DENIED:
        return "this process may not open /dev/kvm: run as root, or let this container have the device"
    return f"its /dev/kvm cannot be used: {kvm.why} (`nimbus doctor` says more)"
