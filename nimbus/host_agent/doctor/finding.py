"""What a check says: one verdict, why it matters, and what mends it. Values only; made by the other modules here."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from nimbus.host_agent.plan import HostLayout


class Verdict(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    DEGRADED = "degraded"  # VMs run, without something that a careful operator wants
    BROKEN = "broken"  # no VM runs here before this is mended


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """The host as its settings describe it."""

    layout: HostLayout
    vmm: str  # NIMBUS_VMM
    accel: str  # NIMBUS_ACCEL
    reserve_mib: int
    firecracker: Path | None = None  # NIMBUS_FC_BIN
    jailer: Path | None = None  # NIMBUS_JAILER_BIN


def ok(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.OK, detail)


def degraded(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, Verdict.DEGRADED, detail, remedy)


def broken(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, Verdict.BROKEN, detail, remedy)
