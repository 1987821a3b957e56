"""The end of a machine is said until it is heard, and never for ever."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from nimbus.host_agent.control import ControlPlane
from nimbus.host_agent.lease import HeldLease
from nimbus.host_agent.machines import Report
from nimbus.model.errors import Fenced, Forbidden, NimbusError, Refused, Unavailable
from nimbus.model.lease import LeaseKey, LeasePolicy
from nimbus.model.vm import Ending
from nimbus.wire.leaseapi import FinishRequest, render_finish_request

KEY = LeaseKey(7, "00000000-0000-4000-8000-000000000001", 3)
END = render_finish_request(FinishRequest(KEY, Ending.HOST_FAULT, cause="no disk"))


class Plane:
    """A control plane that answers `finish` with these errors, one after the other, then takes it."""

    def __init__(self, *errors: NimbusError) -> None:
        self.heard: list[FinishRequest] = []
        self._errors = list(errors)

    async def finish(self, request: FinishRequest) -> None:
        await trio.lowlevel.checkpoint()
        self.heard.append(request)
        if self._errors:
            raise self._errors.pop(0)


async def report(plane: Plane) -> None:
    control = cast("ControlPlane", plane)
    lease = HeldLease(control, KEY, LeasePolicy())
    lease.resume(None)
    with trio.fail_after(1000):
        await Report(control, lease).tell(END)


async def test_an_end_is_said_again_until_the_control_plane_is_back(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(*[Unavailable("away")] * 5)
    await report(plane)
    assert [told.ending for told in plane.heard] == [Ending.HOST_FAULT] * 6


@pytest.mark.parametrize("error", [Fenced("another has it"), Refused("no such field"), Forbidden("not yours")])
async def test_an_end_that_is_refused_for_good_gives_the_slot_back(
    autojump_clock: trio.testing.MockClock, error: NimbusError
) -> None:
    plane = Plane(*[error] * 1000)
    await report(plane)
    assert len(plane.heard) == 1
