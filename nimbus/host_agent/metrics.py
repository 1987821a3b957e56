"""The agent's Prometheus metrics: every name that its page shows, and the few functions that move them.

Counts what happened and shows what was counted; decides nothing, looks at nothing. Names are those of the documents.
Called by whoever sees it happen; metricspage.py serves them.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from nimbus.host_agent.sight.census import Census
from nimbus.model.vm import Claim, Ending
from nimbus.wire.leaseapi import FinishRequest

MACHINES = Counter("nimbus_host_agent_machines_total", "Machines by how they ended", ["ending"])
JOB_TIMEOUTS = Counter("nimbus_host_agent_job_timeouts_total", "Jobs that ran out of time")
LEASE_ERRORS = Counter("nimbus_host_agent_lease_errors_total", "Lease requests that failed")
HEARTBEATS = Counter("nimbus_host_agent_heartbeats_total", "Reports of this host, by what became of them", ["outcome"])
RUNNING = Gauge("nimbus_host_agent_machines_running", "Machines alive on this host now")
ADOPTIONS = Counter("nimbus_host_agent_adoptions_total", "Machines of an earlier agent, by how it went", ["outcome"])
BOOT_SECONDS = Histogram("nimbus_host_agent_boot_seconds", "From the guest kernel's start to the guest being ready")

RESTORES = Counter("nimbus_host_agent_restores_total", "Boots that could use a template, by what it was", ["outcome"])
POOL = Gauge("nimbus_host_agent_pool_machines", "Machines that wait for a job, by kind", ["kind"])
POOL_CLAIMS = Counter("nimbus_host_agent_pool_claims_total", "Jobs of a pooled shape, by what they got", ["got"])
POOL_FAILURES = Counter("nimbus_host_agent_pool_failures_total", "Machines for the pool that could not be made")

JAIL_COPIES = Counter(
    "nimbus_host_agent_jail_copies_total", "Files that could not be shared with a VM's chroot and were copied", ["file"]
)
ALARMS = Counter(
    "nimbus_host_agent_security_alarms_total", "VMMs that were not jailed as they were to be, and altered images"
)

REAPS = Counter("nimbus_host_agent_reaps_total", "VMs of dead supervisors that were cleared away")
STUCK = Gauge("nimbus_host_agent_claims_stuck", "VMs whose teardown could not be completed")
CLAIMS = Gauge("nimbus_host_agent_claims_held", "Claims in the ledger, by kind", ["claim"])
SLOTS = Gauge("nimbus_host_agent_slots", "Slots of this host below NIMBUS_VM_SLOTS, by state", ["state"])
QUARANTINES = Counter("nimbus_host_agent_quarantines_total", "Slots put into quarantine")
TEARDOWN_SECONDS = Histogram(
    "nimbus_host_agent_teardown_seconds",
    "One release of a claim, failed ones too",
    ["step"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

SPOOL_BYTES = Gauge("nimbus_host_agent_log_spool_bytes", "Output of jobs on this disk, most of it on its way")
SPOOLS_GIVEN_UP = Counter(
    "nimbus_host_agent_log_spools_given_up_total",
    "Output that outlived its VM and was refused, too old or too much",
)
LINES_DROPPED = Counter("nimbus_host_agent_log_lines_dropped_total", "Lines of output that a full spool could not keep")

CPU = Gauge("nimbus_host_agent_vm_cpu_seconds", "CPU time that the VMs alive now have used, together")
MEMORY = Gauge("nimbus_host_agent_vm_memory_bytes", "Memory that the VMs hold now, their VMMs' own included")
DISK = Gauge("nimbus_host_agent_vm_disk_bytes", "Disk that the VMs' own disks hold now")
NETWORK = Gauge("nimbus_host_agent_vm_network_bytes", "Bytes of the VMs alive now, as they see it", ["direction"])


class Round(Protocol):
    """What one round of the reaper did, as far as it is counted: VMs."""

    @property
    def reaped(self) -> Sized: ...

    @property
    def stuck(self) -> Sized: ...


class Look(Protocol):
    """What one look at the spools without a VM did, as far as it is counted."""

    @property
    def given_up(self) -> int: ...


def count_end(told: FinishRequest) -> None:
    """One machine's end, by its word, with how long its guest took to come up."""
    MACHINES.labels(told.ending).inc()
    if told.ending is Ending.TIMED_OUT:
        JOB_TIMEOUTS.inc()
    if "kernel" in told.phases_ms:
        BOOT_SECONDS.observe((told.phases_ms["kernel"] + told.phases_ms.get("init", 0.0)) / 1000)


def count_adoption(outcome: str) -> None:
    """One machine that an earlier agent had left: `served` to its end, `lost` with its lease, or `left` once more."""
    ADOPTIONS.labels(outcome).inc()


def count_round(done: Round) -> None:
    """What a round of the reaper cleared away, and what it could not."""
    REAPS.inc(len(done.reaped))
    STUCK.set(len(done.stuck))


def count_restore(outcome: str) -> None:
    """One boot: restored, none (no template), unreadable (its key), or quarantined (and so cold)."""
    RESTORES.labels(outcome).inc()


def count_pool_claim(got: str) -> None:
    """One job whose shape the pool keeps: built, prespawned, warm, or missed."""
    POOL_CLAIMS.labels(got).inc()


def count_pool_failure() -> None:
    """One machine of the pool that could not be made."""
    POOL_FAILURES.inc()


def count_jail_copy(file: str) -> None:
    """One file that a jail holds a copy of: its disk and its time are the host's price."""
    JAIL_COPIES.labels(file).inc()


def count_alarm() -> None:
    """One VMM that had more rights than it was to have, or one boot from an altered file that was refused."""
    ALARMS.inc()


def count_release(claim: Claim, took_s: float) -> None:
    """One release of a teardown."""
    TEARDOWN_SECONDS.labels(claim).observe(took_s)


def count_dropped(lines: int) -> None:
    """Lines of one machine's output that were lost."""
    LINES_DROPPED.inc(lines)


def count_stragglers(done: Look) -> None:
    """What one look at the spools without a VM gave up."""
    SPOOLS_GIVEN_UP.inc(done.given_up)


def show_census(census: Census) -> None:
    """What was found by looking. What no VM has, or this host cannot count, is 0."""
    for claim, count in census.claims.items():
        CLAIMS.labels(claim).set(count)
    for state, count in (
        ("free", census.slots.free),
        ("held", census.slots.held),
        ("quarantined", census.slots.quarantined),
    ):
        SLOTS.labels(state).set(count)
    SPOOL_BYTES.set(census.spool_bytes)
    used = census.usage
    CPU.set((used.cpu_ms or 0) / 1000)
    MEMORY.set(used.memory_bytes or 0)
    DISK.set(used.disk_bytes or 0)
    NETWORK.labels("received").set(used.received_bytes or 0)
    NETWORK.labels("sent").set(used.sent_bytes or 0)
