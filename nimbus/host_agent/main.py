"""The host agent: `python -m nimbus.host_agent.main`. The nursery tree of the room, readable from here.

SIGTERM leaves the machines to the next agent, which adopts them; SIGINT ends them, SIGUSR1 waits for them (orders.py).
One agent for each state root: a second one exits with 75.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

import httpx2
import structlog
import trio

from nimbus import __version__
from nimbus.host import caps, process
from nimbus.host_agent.admission import watch_supply
from nimbus.host_agent.adopt import Estate, find_machines, run_adopted
from nimbus.host_agent.build import Host
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.departure import Departure, leave_on_a_bug
from nimbus.host_agent.heartbeat import Heart
from nimbus.host_agent.instance import single_instance
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.machines import Workplace, run_leased
from nimbus.host_agent.metrics import count_round, count_stragglers
from nimbus.host_agent.metricspage import serve_metrics
from nimbus.host_agent.orders import limit_leaving, obey_signals
from nimbus.host_agent.output.stragglers import StragglerLimits, ship_stragglers
from nimbus.host_agent.policies import disk_policy, host_capacity, job_policy, lease_retry, with_pool
from nimbus.host_agent.poller import Room, occupy, poll_leases
from nimbus.host_agent.reaper import reap_forever
from nimbus.host_agent.settings import AgentSettings, find_host, parse_labels, read_settings
from nimbus.host_agent.survey import Survey
from nimbus.host_agent.wish import LEASING, POOLING, Pulse, Wish
from nimbus.model.errors import Conflict, HostFault, NimbusError
from nimbus.runtime.http import open_http
from nimbus.runtime.listening import run_room
from nimbus.runtime.masking import mask_text
from nimbus.runtime.telemetry import configure_logging
from nimbus.wire.leaseapi import EnrolRequest

log = structlog.get_logger()

EXIT_BUSY = 75  # EX_TEMPFAIL: another agent holds this state root


async def run_agent(settings: AgentSettings, host: Host, start: int) -> None:
    """The agent until it is told to stop. `start` is the number of this start of it."""
    departure, leasing, working = Departure(), trio.CancelScope(), trio.CancelScope()
    async with open_http(settings.control_plane_url) as http, trio.open_nursery() as agent:
        guarded = partial(leave_on_a_bug, departure)
        await agent.start(obey_signals, departure, leasing, working, limit_leaving)
        estate = await find_machines(host.layout)
        where = await agent.start(
            guarded, serve_metrics, host.layout, settings.agent_metrics_host, settings.agent_metrics_port
        )
        agent.start_soon(guarded, reap_forever, host.layout, count_round)
        is_owned = Ledger(host.layout.ledger).names
        limits = StragglerLimits(sink_url=settings.log_sink_url)
        ship = partial(ship_stragglers, host.layout.spools, is_owned=is_owned, on_round=count_stragglers, limits=limits)
        agent.start_soon(guarded, ship)
        control = open_control(settings, http, host, estate, start)
        place = Workplace(host, control, job_policy(settings, control), departure)
        log.info("agent.cpus", own=host.places.cpus, shared_because=host.places.why or None)
        log.info(
            "agent.ready", agent=settings.agent_id, vmm=host.choice.label, metrics=where, adopts=len(estate.machines)
        )
        pulse = Pulse()
        wish, room = Wish(pulse), open_room(settings, host, pulse)
        heart = Heart(control, plan_survey(settings, host, room, start, wish, leasing).take, wish, pulse)
        agent.start_soon(heart.beat_forever)
        with working:
            async with trio.open_nursery() as machines:
                for foundling in estate.machines:
                    room.take(foundling.shape)
                    serve = partial(guarded, run_adopted, place, foundling)
                    machines.start_soon(occupy, room, foundling.shape, serve)
                ask = partial(poll_leases, control, room, parse_labels(settings.job_labels), lease_retry(settings))
                ask = partial(ask, partial(guarded, run_leased, place), machines)
                tasks = [partial(wish.run_while, LEASING, ask)]
                if host.reserve is not None:
                    tasks.append(partial(wish.run_while, POOLING, host.reserve.run))
                machines.start_soon(guarded, work_until, leasing, *tasks)
        log.info("agent.stopping", machines_left=departure.detaching)
        await heart.say_farewell()
        agent.cancel_scope.cancel()
    log.info("agent.stopped")


async def work_until(leasing: trio.CancelScope, *tasks: Callable[[], Awaitable[None]]) -> None:
    """Ask for work, and keep machines waiting for it, until `leasing` is cancelled."""
    with leasing:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)


def open_room(settings: AgentSettings, host: Host, pulse: Pulse) -> Room:
    """What this host gives, less what it does not have; what waits in its pool is not lost to jobs."""
    reserve = host.reserve
    idle = (lambda: reserve.idle) if reserve is not None else frozenset[str]
    capacity, supply = host_capacity(settings, host.places), watch_supply(host.layout)
    return Room(capacity, supply, disk_policy(settings), idle, pulse.note)


def plan_survey(
    settings: AgentSettings, host: Host, room: Room, start: int, wish: Wish, leasing: trio.CancelScope
) -> Survey:
    """What heartbeats tell of this host."""
    reserve = host.reserve
    return Survey(
        layout=host.layout,
        room=room,
        total=host_capacity(settings, host.places),
        vmm=host.choice.label,
        labels=parse_labels(settings.job_labels),
        start=start,
        wish=wish,
        is_leasing=lambda: not leasing.cancel_called,
        is_pooling=lambda: reserve is not None and bool(reserve.idle),
    )


def open_control(
    settings: AgentSettings, http: httpx2.AsyncClient, host: Host, estate: Estate, start: int
) -> ControlPlane:
    """The door to the control plane, which hears at the enrolment what this agent still holds and gives up the rest."""
    capacity, life = host_capacity(settings, host.places), f"{process.boot_id()} {host.layout.root_id}"
    who = EnrolRequest(__version__, life, capacity.cpus, capacity.mem_mib, estate.held, start)
    return ControlPlane(http, settings.control_plane_token.get_secret_value(), who)


def main() -> None:
    """Entry point of the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a caller that ignores it has its reason
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until obey_signals hears it nothing lives that it could hurt
    try:
        settings = cast("AgentSettings", read_settings(AgentSettings))
        configure_logging(settings.log_level)
        host = with_pool(find_host(settings), settings)
        missing = caps.missing_for_vm(qemu=host.choice.vmm.name == "qemu")
        if missing:
            raise HostFault("; ".join(missing))
        host.places.confine()
        for name in ("agent_state_database_url", "agent_redis_url"):
            if getattr(settings, name) is not None:
                log.warning("setting.not_used_on_a_host", name=f"NIMBUS_{name.upper()}")
    except NimbusError as error:
        print(f"nimbus agent: {mask_text(str(error))}", file=sys.stderr)  # noqa: T201 - the operator's terminal
        sys.exit(error.exit_code)
    try:
        with single_instance(host.layout.state) as start:
            status = run_room("nimbus agent", run_agent, settings, host, start)
    except Conflict as error:
        print(f"nimbus agent: {mask_text(str(error))}", file=sys.stderr)  # noqa: T201 - the operator's terminal
        status = EXIT_BUSY
    sys.exit(status)


if __name__ == "__main__":
    main()
