"""A token dies with its lease, within seconds; what that means while nobody can be asked."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
import trio
import trio.testing

from nimbus.model.errors import Unauthorized, Unavailable
from nimbus.runtime.liveness import AGAIN_S, ASK_S, CACHE_S, MOST, Liveness
from nimbus.wire.cachetokens import BoundLease, CacheClaims, plan_claims
from nimbus.wire.liveness import LeaseStanding, render_standing

ORG = 7
ALIVE = LeaseStanding(True, ORG, 1, 300.0)
DEAD = LeaseStanding(False, ORG)


def claims(machine_id: int = 5, org_id: int = ORG) -> CacheClaims:
    return plan_claims(org_id, now_s=0, ttl_s=60, lease=BoundLease(machine_id, 2))


class Office:
    """A control plane: says what it is told to say, and remembers who asked."""

    def __init__(self) -> None:
        self.answer: Callable[[], httpx2.Response] = lambda: says(ALIVE)
        self.asked: list[str] = []
        self.takes_s = 0.0
        self.shown: set[str] = set()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.path)
        self.shown.add(request.headers["authorization"])
        await trio.sleep(self.takes_s)
        return self.answer()

    def open(self) -> Liveness:
        client = httpx2.AsyncClient(base_url="http://plane.test", transport=httpx2.MockTransport(self))
        return Liveness(client, lambda: "minted")


def says(standing: LeaseStanding) -> httpx2.Response:
    return httpx2.Response(200, json=render_standing(standing))


def away() -> httpx2.Response:
    raise httpx2.ConnectError("refused")


async def test_a_lease_is_asked_about_once_in_a_while_with_a_services_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    liveness = office.open()

    await liveness.require(claims(), writes=True)
    await trio.sleep(CACHE_S - 0.1)
    await liveness.require(claims(), writes=True)
    await trio.sleep(0.2)
    await liveness.require(claims(), writes=False)

    assert office.asked == ["/api/internal/leases/5/2"] * 2
    assert office.shown == {"Bearer minted"}


async def test_the_end_of_a_lease_is_known_when_the_answer_at_hand_is_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    liveness = office.open()
    await liveness.require(claims(), writes=True)

    office.answer = lambda: says(DEAD)
    await trio.sleep(CACHE_S)

    for writes in (True, False):
        with pytest.raises(Unauthorized, match="has ended"):
            await liveness.require(claims(), writes=writes)


async def test_a_token_of_another_org_than_the_leases_opens_nothing(autojump_clock: trio.testing.MockClock) -> None:
    liveness = Office().open()
    for org_id in (ORG + 1, ORG * 10 + 7, 1):
        with pytest.raises(Unauthorized):
            await liveness.require(claims(org_id=org_id), writes=False)


async def test_while_the_control_plane_is_away_writes_stop_and_reads_go_on_as_long_as_the_lease_was_said_to_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    liveness = office.open()
    await liveness.require(claims(), writes=True)
    office.answer = away

    await trio.sleep(CACHE_S)
    with pytest.raises(Unavailable):
        await liveness.require(claims(), writes=True)
    await liveness.require(claims(), writes=False)
    await trio.sleep(ALIVE.left_s - CACHE_S)
    with pytest.raises(Unavailable):
        await liveness.require(claims(), writes=False)


async def test_a_lease_that_was_never_asked_about_opens_nothing_while_the_control_plane_is_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    office.answer = away
    liveness = office.open()
    for writes in (True, False):
        with pytest.raises(Unavailable):
            await liveness.require(claims(), writes=writes)


async def test_an_ended_lease_stays_ended_while_the_control_plane_is_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    office.answer = lambda: says(DEAD)
    liveness = office.open()
    with pytest.raises(Unauthorized):
        await liveness.require(claims(), writes=False)
    office.answer = away
    await trio.sleep(CACHE_S + 1)
    with pytest.raises(Unavailable):
        await liveness.require(claims(), writes=False)


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(401, json={"error": "unauthorized", "message": "no"}),
        httpx2.Response(404),
        httpx2.Response(302, headers={"Location": "http://elsewhere.test/"}),
        httpx2.Response(200, content=b"<html>"),
        httpx2.Response(200, json={"alive": "yes"}),
        httpx2.Response(200, json={"org_id": ORG}),
    ],
)
async def test_an_answer_that_tells_nothing_is_no_yes_and_no_fault_of_the_client(
    autojump_clock: trio.testing.MockClock, answer: httpx2.Response
) -> None:
    office = Office()
    office.answer = lambda: answer
    with pytest.raises(Unavailable):
        await office.open().require(claims(), writes=True)


async def test_a_hundred_requests_at_once_ask_once(autojump_clock: trio.testing.MockClock) -> None:
    office = Office()
    office.takes_s = 1.0
    liveness = office.open()

    async def ask() -> None:
        await liveness.require(claims(), writes=True)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)

    assert len(office.asked) == 1


async def test_a_control_plane_that_hangs_holds_requests_up_once_and_not_one_after_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    office.takes_s = 3600.0
    liveness = office.open()
    refused = 0

    async def ask() -> None:
        nonlocal refused
        with pytest.raises(Unavailable):
            await liveness.require(claims(), writes=True)
        refused += 1

    with trio.fail_after(ASK_S + AGAIN_S):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)

    assert refused == 100
    assert len(office.asked) == 1


async def test_an_operators_token_is_bound_to_no_lease_and_nobody_is_asked() -> None:
    office = Office()
    await office.open().require(plan_claims(ORG, now_s=0, ttl_s=60), writes=True)
    assert office.asked == []


async def test_what_is_remembered_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    office = Office()
    liveness = office.open()
    for machine_id in range(1, MOST + 2):
        await liveness.require(claims(machine_id), writes=False)
    office.asked.clear()
    await liveness.require(claims(MOST + 1), writes=False)
    await liveness.require(claims(1), writes=False)
    assert office.asked == ["/api/internal/leases/1/2"]
