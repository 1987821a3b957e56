"""One leased machine from grant to finish: the task behind each VM of the agent.

Holds the lease, runs the lifecycle, ships the output and reports the end. Whatever goes wrong with one
machine ends that machine; only a bug escapes. Called by poller.py, once per grant; adopt.py shares its parts.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from nimbus.host_agent import metrics
from nimbus.host_agent.build import Host
from nimbus.host_agent.causes import first_error
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.departure import Departure
from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.lease import HeldLease, open_lease
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.life import Outcome
from nimbus.host_agent.lifecycle import Order, run_machine
from nimbus.host_agent.logs import FLUSH_S, LogShipping, LogTarget, open_log_shipping
from nimbus.host_agent.output.masking import find_secrets
from nimbus.host_agent.output.spool import DEFAULT_CAP_BYTES
from nimbus.host_agent.runner import ask_command
from nimbus.host_agent.ties import Ties
from nimbus.model.errors import NimbusError, Unauthorized, Unavailable
from nimbus.model.lease import LeaseKey, LeasePolicy
from nimbus.model.vm import Command, Ending
from nimbus.runtime.retry import Backoff
from nimbus.storage.content import ImageStore
from nimbus.storage.images import Image, resolve_image
from nimbus.wire.leaseapi import FinishRequest, Grant, parse_finish_request, render_finish_request

log = structlog.get_logger()

LEAVING_FLUSH_S = 1.0  # of an agent that stops: what has not arrived by then is shipped by the next one


@dataclass(frozen=True)
class JobPolicy:
    """Limits of every job on this host: NIMBUS_JOB_TIMEOUT and NIMBUS_VM_SHUTDOWN_GRACE."""

    timeout_s: float
    grace_s: float
    log_sink_url: str | None
    lease: LeasePolicy
    log_spool_bytes: int = DEFAULT_CAP_BYTES


@dataclass(frozen=True)
class Workplace:
    """What all machines of one agent share."""

    host: Host
    control: ControlPlane
    policy: JobPolicy
    departure: Departure = field(default_factory=Departure)


@dataclass(frozen=True)
class Report:
    """Tells the control plane how a machine ended, under the lease that it was run under. A ties.Reporter."""

    control: ControlPlane
    lease: HeldLease

    def is_wanted(self) -> bool:
        return self.lease.is_held()

    def render(self, outcome: Outcome) -> Mapping[str, object]:
        return render_finish_request(plan_finish(self.lease.key, outcome))

    async def tell(self, report: Mapping[str, object]) -> None:
        """Say it until it is heard or refused for good; the lease's own scope limits how long that may take."""
        request = parse_finish_request(json.dumps(report).encode(), self.lease.key.machine_id)
        delays = Backoff(base_s=0.5, max_s=10).delays_s()
        while self.is_wanted():
            try:
                await self.control.finish(request)
            except (Unavailable, Unauthorized) as error:
                log.warning("finish.not_heard", error=str(error))
                await trio.sleep(next(delays))
            except NimbusError as error:  # fenced, or refused for good: saying it again would hold the slot for ever
                log.error("finish.refused", error=str(error), ending=str(request.ending))
                return
            else:
                metrics.count_end(request)
                log.info("machine.finished", ending=str(request.ending), cause=request.cause)
                return


def plan_finish(key: LeaseKey, outcome: Outcome) -> FinishRequest:
    """Pure: what the control plane is told."""
    told = outcome.exit
    return FinishRequest(
        key,
        outcome.ending,
        exit_code=told.code if told else None,
        signal=told.signal if told else None,
        cause=outcome.cause,
        phases_ms=outcome.phases_ms,
        attestation=outcome.attestation,
    )


async def run_leased(workplace: Workplace, grant: Grant) -> None:
    """Serve one grant to its end. Returns, whatever the end was."""
    structlog.contextvars.bind_contextvars(machine=grant.key.machine_id, fence=grant.key.fence)
    try:
        with metrics.RUNNING.track_inprogress():
            terms = workplace.policy.lease
            async with open_lease(workplace.control, grant.key, terms, cache_token=grant.cache_token) as lease:
                await _serve(workplace, grant, lease)
            note_lost(lease)
    except* NimbusError as group:  # a lease is a nursery: what leaves it is a group
        log.warning("machine.not_served", error=str(first_error(group)))


def note_lost(lease: HeldLease) -> None:
    """A lease that ended early is counted and told."""
    if lease.lost:
        metrics.MACHINES.labels(Ending.FENCED).inc()
        log.warning("lease.lost", why=lease.lost)


async def _serve(workplace: Workplace, grant: Grant, lease: HeldLease) -> None:
    report = Report(workplace.control, lease)
    target = LogTarget(workplace.policy.log_sink_url or grant.log_url, grant.log_token)
    masks: list[LogShipping] = []

    @asynccontextmanager
    async def open_sink(record: OpenRecord) -> AsyncIterator[LogShipping]:
        async with open_output(workplace, record, target) as shipping:
            masks.append(shipping)
            yield shipping

    async def command() -> Command:
        """The command, whose secrets the output must not show."""
        asked = await ask_command(workplace.control, workplace.policy, grant)
        for shipping in masks:
            await shipping.mask(find_secrets(asked.env))
        return asked

    try:
        image = await _find_image(workplace.host, grant.image)
        order = Order(grant.shape, image, command, Ties(open_sink, report, workplace.departure))
        await run_machine(workplace.host, order, lease)
    except NimbusError as error:  # no image, or not even a record: nothing of it is on this host
        log.error("machine.not_begun", error=str(error))
        await report.tell(render_finish_request(FinishRequest(grant.key, Ending.HOST_FAULT, cause=str(error))))


async def _find_image(host: Host, name: str) -> Image | None:
    if not host.choice.vmm.needs_guest_files:
        return None
    store = ImageStore(host.layout.images)
    found = partial(resolve_image, store, name, kernel=host.kernel_override, rootfs=host.rootfs_override)
    return await in_thread(found)


@asynccontextmanager
async def open_output(workplace: Workplace, record: OpenRecord, target: LogTarget) -> AsyncIterator[LogShipping]:
    """Where a machine's output goes. With its VM down it is ended; else the next agent goes on with it."""
    folder = workplace.host.layout.spools / str(record.value.vm)
    async with open_log_shipping(folder, target, cap_bytes=workplace.policy.log_spool_bytes) as shipping:
        try:
            yield shipping
        finally:
            if not record.detached:
                limit_s = LEAVING_FLUSH_S if workplace.departure.leaving else FLUSH_S
                with trio.move_on_after(limit_s, shield=True):
                    await shipping.finish()
                metrics.count_dropped(shipping.dropped_lines)
