"""One leased machine from grant to finish: the task behind each VM of the agent.

Holds the lease, runs the lifecycle, ships the output and reports the end. Whatever goes wrong with one
machine ends that machine; only a bug escapes. Called by poller.py, once per grant.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.host_agent.build import Host
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.guest import OutputSink
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.lease import HeldLease, open_lease
from nimbus.host_agent.lifecycle import Order, Outcome, run_machine
from nimbus.host_agent.logs import open_log_shipping
from nimbus.host_agent.plan import VmPaths
from nimbus.host_agent.runner import ask_command
from nimbus.model.errors import NimbusError, Unauthorized, Unavailable
from nimbus.model.lease import LeasePolicy
from nimbus.model.vm import Ending
from nimbus.runtime.retry import Backoff
from nimbus.storage.content import ImageStore
from nimbus.storage.images import resolve_image
from nimbus.wire.leaseapi import FinishRequest, Grant

log = structlog.get_logger()

GIVE_BACK_S = 3.0  # of an agent's stop: a control plane that is away hears it from the lease's end


@dataclass(frozen=True)
class JobPolicy:
    """Limits of every job on this host: NIMBUS_JOB_TIMEOUT and NIMBUS_VM_SHUTDOWN_GRACE."""

    timeout_s: float
    grace_s: float
    log_sink_url: str | None
    lease: LeasePolicy


async def run_leased(host: Host, control: ControlPlane, policy: JobPolicy, grant: Grant) -> None:
    """Serve one grant to its end. Returns, whatever the end was."""
    structlog.contextvars.bind_contextvars(machine=grant.key.machine_id, fence=grant.key.fence)
    try:
        with metrics.RUNNING.track_inprogress():
            await _hold_and_run(host, control, policy, grant)
    except NimbusError as error:
        log.warning("machine.not_served", error=str(error))


async def _hold_and_run(host: Host, control: ControlPlane, policy: JobPolicy, grant: Grant) -> None:
    async with open_lease(control, grant.key, policy.lease) as lease:
        outcome: Outcome | NimbusError | None = None
        try:
            outcome = await _run(host, control, policy, grant, lease)
        finally:
            if outcome is None and lease.is_held():
                with trio.move_on_after(GIVE_BACK_S, shield=True):
                    await _give_back(control, grant)
        await _report(control, grant, outcome)
    if lease.lost:
        metrics.MACHINES.labels(Ending.FENCED).inc()
        log.warning("lease.lost", why=lease.lost)


async def _give_back(control: ControlPlane, grant: Grant) -> None:
    """The agent stops and the machine is down: the work may be leased anew at once, not when the lease runs out."""
    try:
        await control.finish(FinishRequest(grant.key, Ending.HOST_FAULT, cause="its agent was stopped"))
    except NimbusError as error:
        log.warning("finish.not_heard", error=str(error))  # the lease's end says it later


async def _run(
    host: Host, control: ControlPlane, policy: JobPolicy, grant: Grant, lease: HeldLease
) -> Outcome | NimbusError:
    """The outcome, or why this host could not even begin."""

    @asynccontextmanager
    async def open_sink(paths: VmPaths) -> AsyncIterator[OutputSink]:
        url = policy.log_sink_url or grant.log_url
        async with open_log_shipping(paths.folder / "spool", url, grant.log_token) as sink:
            yield sink

    try:
        image = None
        if host.choice.vmm.needs_guest_files:
            store = ImageStore(host.layout.images)
            image = await in_thread(
                partial(resolve_image, store, grant.image, kernel=host.kernel_override, rootfs=host.rootfs_override)
            )
        order = Order(grant.shape, image, partial(ask_command, control, policy, grant), open_sink)
        return await run_machine(host, order, lease)
    except NimbusError as error:
        return error


async def _report(control: ControlPlane, grant: Grant, outcome: Outcome | NimbusError) -> None:
    """Say the end until it is heard or refused; the lease's own scope limits how long that may take."""
    request = render_finish(grant, outcome)
    metrics.count_end(request)
    delays = Backoff(base_s=0.5, max_s=10).delays_s()
    while True:
        try:
            await control.finish(request)
        except (Unavailable, Unauthorized) as error:
            log.warning("finish.not_heard", error=str(error))
            await trio.sleep(next(delays))
        except NimbusError as error:  # fenced, or refused for good: saying it again would hold the slot for ever
            log.error("finish.refused", error=str(error), ending=str(request.ending))
            return
        else:
            log.info("machine.finished", ending=str(request.ending), cause=request.cause)
            return


def render_finish(grant: Grant, outcome: Outcome | NimbusError) -> FinishRequest:
    """Pure: what the control plane is told."""
    if isinstance(outcome, NimbusError):
        return FinishRequest(grant.key, Ending.HOST_FAULT, cause=str(outcome))
    told = outcome.exit
    return FinishRequest(
        grant.key,
        outcome.ending,
        exit_code=told.code if told else None,
        signal=told.signal if told else None,
        cause=outcome.cause,
        phases_ms=outcome.phases_ms,
    )
