"""One leased machine under the fake VMM, with a control plane that the test plays. Also a process of its own:

    python -m tests.faults.leased STATE RUNTIME TTL_S AT

runs `sleep 1000` under a lease that is renewed for ever, prints `started` when it runs, and is killed by the
test; where AT is not 0 it kills itself just before its AT-th task step instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import trio

from nimbus.cli.events import quiet_events
from nimbus.host.inventory import Territory
from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.departure import Departure
from nimbus.host_agent.machines import JobPolicy, Workplace, run_leased
from nimbus.model.lease import LeaseKey, LeasePolicy
from nimbus.model.vm import Command, Shape
from nimbus.wire.leaseapi import (
    FinishRequest,
    Grant,
    GrantTimes,
    HeldState,
    MachineKind,
    RenewReply,
    RenewRequest,
)
from tests.faults.one_run import Saboteur
from tests.hosts import make_host

KEY = LeaseKey(7, "00000000-0000-4000-8000-000000000001", 3)
NOBODY = "http://127.0.0.1:9/ingest"  # the discard port: the pipeline is away, and shipping is in the tree all the same


class Plane:
    """The control plane of one lease: answers renewals as told, and remembers what it heard and when it agreed."""

    def __init__(self, ttl_s: float, on_renew: Callable[[RenewRequest], None] = lambda _: None) -> None:
        self.ends: list[FinishRequest] = []
        self.running = trio.Event()
        self.agreed_at = 0.0  # monotonic seconds of the last renewal that was granted
        self._ttl_s = ttl_s
        self._on_renew = on_renew

    async def renew(self, request: RenewRequest) -> RenewReply:
        await trio.lowlevel.checkpoint()
        self._on_renew(request)
        self.agreed_at = time.monotonic()
        if request.state is HeldState.RUNNING:
            self.running.set()
        return RenewReply(self._ttl_s, cancel=False)

    async def finish(self, request: FinishRequest) -> None:
        await trio.lowlevel.checkpoint()
        self.ends.append(request)


async def serve(
    territory: Territory, plane: Plane, *argv: str, log_url: str | None = None, departure: Departure | None = None
) -> None:
    """One grant to its end, as the agent serves it."""
    host = make_host(territory, "fake").host
    policy = JobPolicy(timeout_s=1000, grace_s=1, log_sink_url=log_url, lease=LeasePolicy())
    grant = Grant(
        KEY, 300, 1, MachineKind.COMMAND, Shape(), "none", (), Command(argv), None, "token", GrantTimes(None, 0, 0)
    )
    await run_leased(Workplace(host, cast("ControlPlane", plane), policy, departure or Departure()), grant)


async def _main(territory: Territory, ttl_s: float) -> None:
    plane = Plane(ttl_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, territory, plane, "sleep", "1000")
        await plane.running.wait()
        print("started", flush=True)  # noqa: T201 - the test waits for it


def main() -> None:
    state, runtime, ttl_s, at = sys.argv[1:]
    quiet_events()
    saboteur = Saboteur("kill", int(at))
    saboteur.begin()
    trio.run(_main, Territory(Path(state), Path(runtime)), float(ttl_s), instruments=[saboteur])


if __name__ == "__main__":
    main()
