"""The host agent: `python -m nimbus.host_agent.main`. The nursery tree of the room, readable from here.

SIGTERM and SIGINT, once or often, stop the leasing; then every machine is torn down (adoption by the next agent is the
next issue's). One agent for each state root: a second one exits with 75.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import structlog
import trio

from nimbus import __version__
from nimbus.host import caps, process
from nimbus.host_agent.build import Host
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.machines import JobPolicy, run_leased
from nimbus.host_agent.metrics import count_stuck, serve_metrics
from nimbus.host_agent.poller import Capacity, LeaseRetry, Room, poll_leases
from nimbus.host_agent.reaper import find_undead, reap, reap_forever
from nimbus.host_agent.settings import AgentSettings, find_host, parse_labels, read_settings
from nimbus.model.errors import Conflict, HostFault, NimbusError
from nimbus.model.lease import LeasePolicy
from nimbus.runtime.http import open_http
from nimbus.runtime.listening import run_room
from nimbus.runtime.signals import hold_signals
from nimbus.runtime.telemetry import configure_logging
from nimbus.wire.leaseapi import EnrolRequest

log = structlog.get_logger()

EXIT_BUSY = 75  # EX_TEMPFAIL: another agent holds this state root


async def run_agent(settings: AgentSettings, host: Host) -> None:
    """The agent until it is told to stop."""
    report = await reap(host.layout, living=True)
    undead = await in_thread(partial(find_undead, host.layout, report))
    async with open_http(settings.control_plane_url) as http, trio.open_nursery() as agent:
        stop = trio.Event()
        await agent.start(hold_signals, stop)
        agent.start_soon(partial(reap_forever, host.layout, count_stuck))
        where = await agent.start(serve_metrics, settings.agent_metrics_host, settings.agent_metrics_port)
        capacity = host_capacity(settings)
        control = ControlPlane(
            http,
            settings.control_plane_token.get_secret_value(),
            # the reaper has just ended the VMs of a former agent: the control plane need not wait for their leases
            EnrolRequest(__version__, process.boot_id(), capacity.cpus, capacity.mem_mib, held=undead),
        )
        log.info("agent.ready", agent=settings.agent_id, vmm=host.choice.label, metrics=where)
        async with trio.open_nursery() as machines:
            serve = partial(run_leased, host, control, job_policy(settings, control))
            labels = parse_labels(settings.job_labels)
            machines.start_soon(poll_leases, control, Room(capacity), labels, lease_retry(settings), serve, machines)
            await stop.wait()
            log.info("agent.stopping", machines=len(machines.child_tasks) - 1)
            machines.cancel_scope.cancel()
        agent.cancel_scope.cancel()
    log.info("agent.stopped")


def host_capacity(settings: AgentSettings) -> Capacity:
    """What this host gives: all its CPUs and three quarters of its memory, within the slots."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    cpus = len(os.sched_getaffinity(0)) * settings.agent_cpu_overcommit
    return Capacity(int(cpus), memory_mib * 3 // 4, settings.vm_slots)


def job_policy(settings: AgentSettings, control: ControlPlane) -> JobPolicy:
    """Pure: the settings that every job meets, as small values."""
    return JobPolicy(
        settings.job_timeout,
        settings.vm_shutdown_grace,
        settings.log_sink_url,
        LeasePolicy(ttl_s=control.lease_ttl_s),
    )


def lease_retry(settings: AgentSettings) -> LeaseRetry:
    """Pure: how lease requests are retried."""
    return LeaseRetry(settings.agent_lease_retries, settings.agent_lease_retry_base, settings.agent_lease_retry_max)


@contextmanager
def single_instance(host: Host) -> Iterator[None]:
    """The state root's own lock. Raises Conflict while another agent has it."""
    host.layout.state.mkdir(parents=True, exist_ok=True)
    fd = os.open(host.layout.state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"an agent runs on {host.layout.state}: stop it, or set another NIMBUS_STATE_DIR") from None
    else:
        yield
    finally:
        os.close(fd)


def main() -> None:
    """Entry point of the process."""
    try:
        settings = cast("AgentSettings", read_settings(AgentSettings))
        configure_logging(settings.log_level)
        host = find_host(settings)
        missing = caps.missing_for_vm(fake=not host.choice.vmm.needs_guest_files)
        if missing:
            raise HostFault("; ".join(missing))
        for name in ("agent_state_database_url", "agent_redis_url"):
            if getattr(settings, name) is not None:
                log.warning("setting.not_used_on_a_host", name=f"NIMBUS_{name.upper()}")
    except NimbusError as error:
        print(f"nimbus agent: {error}", file=sys.stderr)  # noqa: T201 - the operator's terminal
        sys.exit(error.exit_code)
    try:
        with single_instance(host):
            status = run_room("nimbus agent", run_agent, settings, host)
    except Conflict as error:
        print(f"nimbus agent: {error}", file=sys.stderr)  # noqa: T201 - the operator's terminal
        status = EXIT_BUSY
    sys.exit(status)


if __name__ == "__main__":
    main()
