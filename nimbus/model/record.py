"""The record of one VM: what it may own on this host, written before any of it is taken.

The ledger is the undo stack: teardown releases the claims from the newest to the oldest and strikes
each. Paths and names are recomputed from the plan, so a record stays small and can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nimbus.model.attestation import Attestation
from nimbus.model.ids import VmId
from nimbus.model.lease import LeaseKey
from nimbus.model.vm import Claim, GuestExit, Slot

RECORD_VERSION = 2
READABLE_VERSIONS = (1, 2)  # of the previous release too: its machines are torn down, since 1 holds no session

POOL_KEY = "pool"  # in the plan of a machine that waits in a pool: its kind


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat
    boot_id: str


@dataclass(frozen=True)
class Record:
    """One VM's page in the ledger. `lease` None is a local run (`nimbus run`): a free lock makes it an orphan."""

    vm: VmId
    created_at: float  # Unix seconds, for people
    boot_id: str
    backend: str
    plan: dict[str, object]  # what plan.py needs to recompute the VmPlan
    claims: tuple[Claim, ...]  # intended or held, oldest first
    slot: Slot | None = None
    keeper: ProcessId | None = None
    lease: LeaseKey | None = None
    deadline_ns: int | None = None  # CLOCK_BOOTTIME of this boot, as of the last renewal; None for a local run
    exit: GuestExit | None = None
    session: Mapping[str, object] | None = field(default=None, repr=False)  # set before the guest hears of its job
    latest_ns: int | None = None  # CLOCK_BOOTTIME when the command's own time is over; None: it has no limit
    report: Mapping[str, object] | None = None  # the finish that the control plane has not acknowledged yet
    attestation: Attestation | None = None  # what it boots from, once that was checked
    failures: tuple[str, ...] = ()  # what could not be released, for the operator
    version: int = RECORD_VERSION

    @property
    def is_adoptable(self) -> bool:
        """Whether a next agent can go on with it: work of the control plane's, by a release that knows how."""
        return self.lease is not None and self.version >= 2

    @property
    def waits_as(self) -> str:
        """The kind of machine that waits in a pool for a job; nothing for all that have one."""
        kind = self.plan.get(POOL_KEY, "")
        return kind if isinstance(kind, str) else ""

    @property
    def has_end(self) -> bool:
        """Whether it holds an end that the control plane may not have heard: a finish, or at least the exit."""
        return self.report is not None or (self.lease is not None and self.exit is not None)

    def strike(self, claim: Claim) -> Record:
        """The record after `claim` was released."""
        return replace(self, claims=tuple(c for c in self.claims if c is not claim))

    def with_failure(self, line: str) -> Record:
        """The record with what could not be released; the last ten are kept."""
        return replace(self, failures=(*self.failures[-9:], line))
