"""Agents that wait for work: until there is some for them, or their time is up.

Grants nothing by itself: whoever is woken looks into the queue by leases.py. Called by agents_api.py.
"""

from __future__ import annotations

import trio

from nimbus.control_plane.leases import look_for_work
from nimbus.control_plane.services import MACHINES, Services
from nimbus.wire.leaseapi import Grant, LeaseRequest

LOOK_AGAIN_S = 0.1  # where another process was counting what capped orgs hold: it has committed by then


async def wait_grant(services: Services, agent_id: str, request: LeaseRequest) -> Grant | None:
    """A lease for this agent, waited for up to `request.wait_s`; None where nothing came.

    A caller that goes away while a lease is being granted (it drains, it dies, the reply is lost) never renews it, and
    such a lease is short.
    """
    with services.bell.listen(MACHINES) as ear:
        look = await look_for_work(services, agent_id, request)
        with trio.move_on_after(request.wait_s):
            while look.grant is None and not services.stopping.is_set():
                with trio.move_on_after(services.lease_terms.poll_s if look.whole else LOOK_AGAIN_S):
                    await ear.wait()
                look = await look_for_work(services, agent_id, request)
    return look.grant
