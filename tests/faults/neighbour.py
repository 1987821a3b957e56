"""A healthy VM beside the struck one: same host, same state root, a supervisor of its own, and it must not notice.

Its job beats for ever; its namespace, links, rules, cgroup, slot, files and processes are known by name. Called by
case.py in a process of its own; ends with SIGTERM.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import trio

from nimbus.cli.events import quiet_events
from nimbus.cli.run import open_local_lease
from nimbus.host.inventory import Territory
from nimbus.host_agent.build import Host
from nimbus.host_agent.lifecycle import Order, run_machine
from tests.faults.witness import beat_argv
from tests.hosts import Collected, make_host

NEIGHBOUR = 0  # its number among the machines of the beats


def run_neighbour(territory: Territory, subnet: IPv4Network, beat_file: Path) -> None:
    """Beat until SIGTERM, then leave nothing."""
    quiet_events()
    trio.run(_run, territory, subnet, beat_file)


async def _run(territory: Territory, subnet: IPv4Network, beat_file: Path) -> None:
    made = make_host(territory, "fake")
    host = replace(made.host, layout=replace(made.host.layout, subnet=subnet))
    order = made.order(*beat_argv(beat_file, NEIGHBOUR, 1, 0), sink=Collected())
    with trio.open_signal_receiver(signal.SIGTERM) as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep, host, order)
            await anext(told)
            nursery.cancel_scope.cancel()


async def _keep(host: Host, order: Order) -> None:
    with open_local_lease() as lease:
        await run_machine(host, order, lease)
