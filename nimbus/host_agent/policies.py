"""From the agent's settings to the small values that its parts are given. Pure, but for what the host has to offer.

Called by main.py.
"""

from __future__ import annotations

import os
from dataclasses import replace

import structlog

from nimbus.host_agent.admission import DiskPolicy
from nimbus.host_agent.build import Host
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.machines import JobPolicy
from nimbus.host_agent.placing import Places
from nimbus.host_agent.poller import Capacity, LeaseRetry
from nimbus.host_agent.pool.reserve import Reserve
from nimbus.host_agent.pool.sizes import PoolPolicy, parse_pool
from nimbus.host_agent.settings import AgentSettings
from nimbus.model.errors import Refused
from nimbus.model.lease import LeasePolicy

log = structlog.get_logger()


def host_capacity(settings: AgentSettings, places: Places) -> Capacity:
    """What this host gives: its CPUs, or the cores that are not kept back, and three quarters of its memory, within the
    slots.
    """
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    cpus = places.cpus
    if cpus is None:
        cpus = int(len(os.sched_getaffinity(0)) * settings.agent_cpu_overcommit)
    return Capacity(cpus, memory_mib * 3 // 4, settings.vm_slots, core_width=places.core_width)


def disk_policy(settings: AgentSettings) -> DiskPolicy:
    """Pure: what of the disk is never given out."""
    return DiskPolicy(settings.disk_reserve_mib, settings.agent_disk_overcommit)


def job_policy(settings: AgentSettings, control: ControlPlane) -> JobPolicy:
    """Pure: the settings that every job meets, as small values."""
    return JobPolicy(
        settings.job_timeout,
        settings.vm_shutdown_grace,
        settings.log_sink_url,
        LeasePolicy(ttl_s=control.lease_ttl_s),
        settings.log_spool_mib << 20,
    )


def lease_retry(settings: AgentSettings) -> LeaseRetry:
    """Pure: how lease requests are retried."""
    return LeaseRetry(settings.agent_lease_retries, settings.agent_lease_retry_base, settings.agent_lease_retry_max)


def with_pool(host: Host, settings: AgentSettings) -> Host:
    """The host with the pool that was asked for. Raises Refused for a bad size, or where nothing could fill it."""
    sizes = parse_pool(settings.pool)
    if not sizes:
        return host
    if host.templates is None or not host.templates.is_usable:
        raise Refused(
            "NIMBUS_POOL is set, and this host boots from no templates: NIMBUS_SNAPSHOT_BOOT must be on, and "
            f"NIMBUS_VMM={host.choice.vmm.name} does not save any"
        )
    policy = PoolPolicy(sizes, settings.pool_image, settings.pool_ttl)
    wanted = sum(sum(size.numbers.values()) for size in sizes)
    if wanted > settings.vm_slots:
        log.warning("pool.larger_than_the_host", machines=wanted, slots=settings.vm_slots)
    return replace(host, reserve=Reserve(host, host.templates, policy, disk_policy(settings)))
