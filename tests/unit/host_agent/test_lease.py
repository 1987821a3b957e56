"""A lease is a cancel scope with a moving deadline: fenced ends it now, silence ends it in time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from nimbus.host_agent.keeper import KeeperGone
from nimbus.host_agent.lease import RENEW_MAX_S, HeldLease, open_lease, resume_lease
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.vmm.machine import Machine
from nimbus.model.errors import Fenced, HostFault, Unavailable
from nimbus.model.lease import LeaseKey, LeasePolicy
from nimbus.wire.leaseapi import CacheToken, JobLink, RenewReply, RenewRequest

KEY = LeaseKey(7, "00000000-0000-4000-8000-000000000001", 3)
FOREVER_S = 1e6  # beyond any deadline here; `sleep_forever` would tell mypy that the block never ends
POLICY = LeasePolicy(ttl_s=30, margin_s=5)
Answer = Callable[[int], RenewReply]


def virtual_ns() -> int:
    return int(trio.current_time() * 1e9)


class Plane:
    """A control plane of one lease: answers the n-th renewal as told, and remembers when it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked_at: list[float] = []
        self._answer = answer

    async def renew(self, request: RenewRequest) -> RenewReply:
        assert request.key == KEY
        self.asked_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return self._answer(len(self.asked_at))


def always(reply: RenewReply) -> Answer:
    return lambda _: reply


def first_then_away(reply: RenewReply) -> Answer:
    def answer(count: int) -> RenewReply:
        if count > 1:
            raise Unavailable("away")
        return reply

    return answer


async def test_a_grant_that_was_given_to_another_meanwhile_acquires_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def fenced(_: int) -> RenewReply:
        raise Fenced("another has it")

    with pytest.raises(Fenced):
        async with open_lease(Plane(fenced), KEY, POLICY, virtual_ns):
            pytest.fail("the block must not begin")


async def test_a_first_renewal_that_is_not_answered_is_asked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    def answer(count: int) -> RenewReply:
        if count < 3:
            raise Unavailable("away")
        return RenewReply(30, cancel=False)

    async with open_lease(Plane(answer), KEY, POLICY, virtual_ns) as lease:
        assert lease.is_held()


async def test_a_lease_that_nobody_answers_for_does_not_begin(autojump_clock: trio.testing.MockClock) -> None:
    def away(_: int) -> RenewReply:
        raise Unavailable("away")

    plane = Plane(away)
    with pytest.raises(Unavailable):
        async with open_lease(plane, KEY, POLICY, virtual_ns):
            pytest.fail("the block must not begin")
    assert trio.current_time() - plane.asked_at[0] < 30


async def test_a_lease_that_is_renewed_outlives_its_ttl_many_times(autojump_clock: trio.testing.MockClock) -> None:
    plane = Plane(always(RenewReply(30, cancel=False)))
    async with open_lease(plane, KEY, POLICY, virtual_ns) as lease:
        await trio.sleep(300)
    assert lease.lost == ""
    assert len(plane.asked_at) > 25


async def test_silence_cancels_the_block_before_the_ttl_is_over(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    async with open_lease(Plane(first_then_away(RenewReply(30, cancel=False))), KEY, POLICY, virtual_ns) as lease:
        await trio.sleep(FOREVER_S)
    assert trio.current_time() - began == pytest.approx(25)
    assert "deadline" in lease.lost


async def test_a_hung_renewal_is_no_longer_waited_for_than_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hung(Plane):
        async def renew(self, request: RenewRequest) -> RenewReply:
            reply = await super().renew(request)
            if len(self.asked_at) > 1:
                await trio.sleep(FOREVER_S)
            return reply

    began = trio.current_time()
    async with open_lease(Hung(always(RenewReply(30, cancel=False))), KEY, POLICY, virtual_ns):
        await trio.sleep(FOREVER_S)
    assert trio.current_time() - began == pytest.approx(25)


async def test_a_fence_cancels_at_the_next_renewal(autojump_clock: trio.testing.MockClock) -> None:
    def answer(count: int) -> RenewReply:
        if count > 2:
            raise Fenced("fence 4 is another's")
        return RenewReply(30, cancel=False)

    began = trio.current_time()
    async with open_lease(Plane(answer), KEY, POLICY, virtual_ns) as lease:
        await trio.sleep(FOREVER_S)
    assert trio.current_time() - began < 25
    assert lease.lost == "fence 4 is another's"


async def test_time_that_trio_did_not_see_counts(autojump_clock: trio.testing.MockClock) -> None:
    """A suspended host: Trio's clock stood still while CLOCK_BOOTTIME went on for an hour."""
    suspended_ns = 0

    def boottime() -> int:
        return virtual_ns() + suspended_ns

    plane = Plane(first_then_away(RenewReply(30, cancel=False)))
    async with open_lease(plane, KEY, POLICY, boottime) as lease:
        suspended_ns = 3600 * 10**9
        await trio.sleep(FOREVER_S)
    assert "suspended" in lease.lost
    assert len(plane.asked_at) == 1


async def test_a_cancel_in_a_reply_asks_for_a_polite_stop_and_keeps_the_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_lease(Plane(always(RenewReply(30, cancel=True))), KEY, POLICY, virtual_ns) as lease:
        assert lease.stop.is_set()
        await trio.sleep(60)
    assert lease.lost == ""


async def test_the_job_link_of_a_reply_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    def answer(count: int) -> RenewReply:
        return RenewReply(30, cancel=False, job=JobLink(5, None) if count == 2 else None)

    async with open_lease(Plane(answer), KEY, POLICY, virtual_ns) as lease:
        await trio.sleep(60)
    assert lease.job == JobLink(5, None)


async def test_a_longer_ttl_in_a_reply_moves_the_deadline_by_it(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    async with open_lease(Plane(first_then_away(RenewReply(3600, cancel=False))), KEY, POLICY, virtual_ns):
        await trio.sleep(FOREVER_S)
    assert trio.current_time() - began == pytest.approx(3595)


async def test_the_control_plane_hears_at_once_that_the_command_runs(autojump_clock: trio.testing.MockClock) -> None:
    class Listening(Plane):
        def __init__(self, answer: Answer) -> None:
            super().__init__(answer)
            self.heard: list[tuple[float, str]] = []

        async def renew(self, request: RenewRequest) -> RenewReply:
            self.heard.append((trio.current_time(), str(request.state)))
            return await super().renew(request)

    plane = Listening(always(RenewReply(30, cancel=False)))
    async with open_lease(plane, KEY, POLICY, virtual_ns) as lease:
        await trio.sleep(1)
        began = trio.current_time()
        lease.note_started()
        await trio.sleep(1)
    heard_at, state = plane.heard[-1]
    assert state == "running"
    assert heard_at == pytest.approx(began)


async def test_a_wish_to_cancel_is_heard_within_seconds_however_long_the_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wished_at_s = trio.current_time() + 1000

    def answer(_: int) -> RenewReply:
        return RenewReply(3600, cancel=trio.current_time() >= wished_at_s)

    async with open_lease(Plane(answer), KEY, POLICY, virtual_ns) as lease:
        await lease.stop.wait()
        heard_at_s = trio.current_time()
    assert 0 <= heard_at_s - wished_at_s <= RENEW_MAX_S


class Refusing:
    """A keeper that moves no deadline."""

    def __init__(self, error: Exception) -> None:
        self.asked = trio.Event()
        self._error = error

    async def set_deadline(self, deadline_ns: int | None) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.set()
        self.asked = trio.Event()
        raise self._error


@pytest.mark.parametrize("error", [KeeperGone("ended"), HostFault("odd"), Fenced("past"), Unavailable("mute")])
async def test_a_keeper_that_moves_no_deadline_does_not_end_the_job_by_that(error: Exception) -> None:
    keeper = Refusing(error)
    lease = HeldLease(Plane(always(RenewReply(30, cancel=False))), KEY, POLICY)
    machine = cast("Machine", SimpleNamespace(keeper=keeper))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.follow, machine, cast("OpenRecord", None))
            for _ in range(2):
                asked = keeper.asked
                await lease.renew()
                await asked.wait()
            nursery.cancel_scope.cancel()


class Minting(Plane):
    """Gives a token that lasts 100 s to whoever asks, and remembers when that was."""

    def __init__(self) -> None:
        super().__init__(always(RenewReply(30, cancel=False)))
        self.minted_at: list[float] = []

    async def renew(self, request: RenewRequest) -> RenewReply:
        reply = await super().renew(request)
        if not request.wants_cache_token:
            return reply
        self.minted_at.append(trio.current_time())
        return RenewReply(30, cancel=False, cache_token=CacheToken(f"token {len(self.minted_at)}", 100))


async def test_a_granted_cache_token_is_held_until_half_of_its_life_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plane, granted = Minting(), CacheToken("granted", 100)

    async with open_lease(plane, KEY, POLICY, virtual_ns, cache_token=granted) as lease:
        begun_s = trio.current_time()
        first = lease.cache_token
        await trio.sleep(180)
        last = lease.cache_token

    assert first == granted
    assert last == CacheToken(f"token {len(plane.minted_at)}", 100)
    # each one when half of the last one's life is over and a renewal comes: not before, and soon after
    gaps_s = [later - earlier for earlier, later in pairwise([begun_s, *plane.minted_at])]
    assert len(gaps_s) == 3
    assert min(gaps_s) >= 50
    assert max(gaps_s) <= 50 + RENEW_MAX_S


async def test_an_agent_that_resumes_a_lease_asks_for_the_cache_token_that_it_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with resume_lease(Minting(), KEY, POLICY, None, virtual_ns) as lease:
        await trio.sleep(1)
        held = lease.cache_token

    assert held == CacheToken("token 1", 100)
