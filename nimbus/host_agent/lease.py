"""A lease as a cancel scope with a moving deadline.

`deadline = time the renewal was sent + ttl - margin`, kept in CLOCK_BOOTTIME because Trio's clock stops
while a host is suspended. Fenced: the scope is cancelled now. A network error: nothing, the deadline
decides, and behind it the keeper's own. Called by machines.py; never tears anything down itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import structlog
import trio

from nimbus.host_agent.lane import in_thread
from nimbus.host_agent.ledger import OpenRecord
from nimbus.host_agent.vmm.machine import KeeperTerms, Machine
from nimbus.model.errors import Conflict, Fenced, NimbusError, Unavailable
from nimbus.model.lease import LeaseKey, LeasePolicy
from nimbus.model.vm import Usage
from nimbus.wire.leaseapi import CacheToken, HeldState, JobLink, RenewReply, RenewRequest

log = structlog.get_logger()

RENEW_EVERY = 1 / 3  # of the ttl: two renewals may fail before the deadline
RENEW_MAX_S = 10.0  # a wish to cancel, and the link to a job, arrive with a renewal: people wait for the first
SILENCE = "no renewal was answered before the lease's deadline"
RETRY_S = 1.0  # between failed renewals, with jitter
BEGIN_S = 20.0  # for the first renewal: a lease that was never renewed is over soon after


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Renewer(Protocol):
    """Where a lease is renewed."""

    async def renew(self, request: RenewRequest) -> RenewReply:
        """Raises Fenced where the lease belongs to another, Unavailable where nobody answers."""
        ...


class HeldLease:
    """The right to run one machine request. `lost` says why it ended early, if it did."""

    def __init__(
        self, control: Renewer, key: LeaseKey, policy: LeasePolicy, now_ns: Callable[[], int] = boottime_ns
    ) -> None:
        self._now_ns = now_ns
        self.key = key
        self.stop = trio.Event()
        self.state = HeldState.BOOTING
        self.job: JobLink | None = None
        self.usage: Usage | None = None
        self.lost = ""
        self.cache_token: CacheToken | None = None  # of the stores that jobs will reach; held, and told to nobody yet
        self._token_aged_ns = 0
        self._control = control
        self._policy = policy
        self._deadline_ns = 0
        self._ttl_s = policy.ttl_s
        self._scope = trio.CancelScope()
        self._moved = trio.Event()
        self._hurry = trio.Event()

    def is_held(self) -> bool:
        """Whether a write under this lease may still be made."""
        return not self.lost and self._now_ns() < self._deadline_ns

    def terms(self) -> KeeperTerms:
        """The deadline as of now, for the keeper to hold."""
        return KeeperTerms(deadline_ns=self._deadline_ns, orphan_fd=None)

    def note_started(self) -> None:
        """The command runs: the control plane hears of it with a renewal of its own, not at the next turn."""
        self.state = HeldState.RUNNING
        self._hurry.set()

    def note_usage(self, usage: Usage) -> None:
        """The next renewal tells it."""
        self.usage = usage

    def note_cache_token(self, token: CacheToken | None) -> None:
        """Keep it, and ask for the next one when half of its life is over."""
        if token is not None:
            self.cache_token = token
            self._token_aged_ns = self._now_ns() + round(token.expires_in_s / 2 * 1e9)

    def resume(self, deadline_ns: int | None) -> None:
        """Take up a lease that an earlier agent held: until `deadline_ns`, or one ttl where that says nothing here.

        The control plane is asked at once; where it is away, that deadline decides.
        """
        if deadline_ns is None:
            deadline_ns = self._policy.deadline_ns(self._now_ns(), self._ttl_s)
        self._move(deadline_ns)
        self._hurry.set()

    async def renew(self) -> None:
        """One renewal. Raises Fenced, or what stood in the way; the deadline moves only on a reply."""
        sent_ns = self._now_ns()
        wants = self.cache_token is None or sent_ns >= self._token_aged_ns
        reply = await self._control.renew(RenewRequest(self.key, self.state, self.usage, wants))
        self._take(reply, sent_ns)

    def _take(self, reply: RenewReply, sent_ns: int) -> None:
        self._ttl_s = reply.ttl_s
        self.job = reply.job or self.job
        self.note_cache_token(reply.cache_token)
        if reply.cancel:
            self.stop.set()
        self._move(self._policy.deadline_ns(sent_ns, reply.ttl_s))

    def _move(self, deadline_ns: int) -> None:
        self._deadline_ns = deadline_ns
        self._scope.deadline = trio.current_time() + (deadline_ns - self._now_ns()) / 1e9
        self._moved.set()
        self._moved = trio.Event()

    async def follow(self, machine: Machine, record: OpenRecord) -> None:
        """Give every new deadline to the keeper and to the record, until cancelled."""
        given_ns = 0
        while True:
            moved = self._moved
            if self._deadline_ns != given_ns:
                given_ns = self._deadline_ns
                try:
                    await machine.keeper.set_deadline(given_ns)
                    await in_thread(partial(record.change, deadline_ns=given_ns))
                except (OSError, NimbusError) as error:
                    # Never the job's end: a keeper that is gone tells so by its VMM's, a fence comes with the renewal,
                    # and a record behind the times (a full disk) makes the reaper of a dead agent early, not late.
                    log.warning("keeper.deadline_not_moved", machine=self.key.machine_id, error=str(error))
            await moved.wait()

    async def keep_renewing(self) -> None:
        """Renew until cancelled. A refusal of any kind but a fence is met with patience."""
        wait_s = self._pause_s()
        while True:
            with trio.move_on_after(wait_s * random.uniform(0.8, 1.0)):  # noqa: S311 - spreads agents, keeps no secret
                await self._hurry.wait()
            self._hurry = trio.Event()
            if self._now_ns() >= self._deadline_ns:
                asleep = trio.current_time() < self._scope.deadline
                self._give_up("the lease's deadline passed while this host was suspended" if asleep else SILENCE)
                return
            try:
                with trio.move_on_after(self._ttl_s * RENEW_EVERY):
                    await self.renew()
                wait_s = self._pause_s()
            except (Fenced, Conflict) as error:
                self._give_up(str(error))
                return
            except NimbusError as error:
                log.warning("lease.renewal_failed", machine=self.key.machine_id, error=str(error))
                wait_s = min(RETRY_S, self._ttl_s * RENEW_EVERY / 4)

    def _pause_s(self) -> float:
        return min(self._ttl_s * RENEW_EVERY, RENEW_MAX_S)

    def _give_up(self, why: str) -> None:
        self.lost = why
        self._scope.cancel()

    def enter(self) -> trio.CancelScope:
        """The scope in which the machine lives."""
        return self._scope


@asynccontextmanager
async def open_lease(
    control: Renewer,
    key: LeaseKey,
    policy: LeasePolicy,
    now_ns: Callable[[], int] = boottime_ns,
    *,
    cache_token: CacheToken | None = None,
) -> AsyncIterator[HeldLease]:
    """Hold a granted lease while the block runs; the block is cancelled when the lease is lost.

    Renews at once: a grant may be old when it arrives, so nothing is acquired before that first reply.
    Raises Fenced or Unavailable where there is none.
    """
    lease = HeldLease(control, key, policy, now_ns)
    lease.note_cache_token(cache_token)
    await _begin(lease)
    async with _hold(lease):
        yield lease


async def _begin(lease: HeldLease) -> None:
    """The first renewal, asked for again where it was not heard: it may have counted, and then for a whole ttl."""
    away = Unavailable("no answer to the lease's first renewal")
    with trio.move_on_after(BEGIN_S):
        while True:
            try:
                return await lease.renew()
            except Unavailable as error:
                away = error
                log.warning("lease.not_begun", machine=lease.key.machine_id, error=str(error))
            await trio.sleep(RETRY_S)
    raise away


@asynccontextmanager
async def resume_lease(
    control: Renewer,
    key: LeaseKey,
    policy: LeasePolicy,
    deadline_ns: int | None,
    now_ns: Callable[[], int] = boottime_ns,
) -> AsyncIterator[HeldLease]:
    """Hold on to a lease that an earlier agent was granted. Like `open_lease`, but a control plane that is away
    ends nothing before `deadline_ns` (CLOCK_BOOTTIME; None: it was another boot's, and says nothing).
    """
    lease = HeldLease(control, key, policy, now_ns)
    lease.resume(deadline_ns)
    async with _hold(lease):
        yield lease


@asynccontextmanager
async def _hold(lease: HeldLease) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        with lease.enter() as scope:
            nursery.start_soon(lease.keep_renewing)
            yield
        if scope.cancelled_caught and not lease.lost:
            lease.lost = SILENCE
        nursery.cancel_scope.cancel()
