"""Windows that slide: how much was taken of a limit in the interval that ends now. By one process, or by Redis for all.

What was taken at t counts until t + interval, so that no interval, wherever it begins, holds more than the limit. What
is held counts on until it is settled. Never decides what becomes of whom it refuses. Called by limiter.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from nimbus.runtime.postgres import Bridge

ANSWER_S = 1.0  # without an answer after that, Redis counts as away
HOLD_S = 30.0  # a transaction may last 15 s and be waited for
PLACES = 16  # connections to Redis at once
IDLE_LOOK = 1000  # takes between two looks for windows in which nothing is left

# One member for each unit, by the microsecond from which its interval runs; of what is held that lies ahead. A clock
# that was set back leaves members further ahead than any hold: they count from now on, or nothing would be granted for
# as long as the step. Numbers below 2^53 are exact in Lua and as scores.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local most, interval, wanted, hold = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local longest, ticket = tonumber(ARGV[5]), ARGV[6]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - interval)
for _, stray in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + longest), '+inf')) do
    redis.call('ZADD', KEYS[1], now, stray)
end
local counted = redis.call('ZCARD', KEYS[1])
local granted = math.max(0, math.min(wanted, most - counted))
for unit = 1, granted do
    redis.call('ZADD', KEYS[1], now + hold, ticket .. ':' .. unit)
end
if granted > 0 then
    redis.call('PEXPIRE', KEYS[1], math.ceil((interval + longest) / 1000) + 1000)
end
local retry = 0
if granted < wanted then
    local rank = counted + granted - most
    local oldest = redis.call('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES')
    retry = interval - now + math.min(now, tonumber(oldest[2]))
end
return {granted, retry, now}
"""
_SETTLE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
for unit = 1, tonumber(ARGV[1]) do
    local member = ARGV[3] .. ':' .. unit
    if unit <= tonumber(ARGV[2]) then
        redis.call('ZADD', KEYS[1], now, member)
    else
        redis.call('ZREM', KEYS[1], member)
    end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[4]) / 1000) + 1000)
return {now}
"""


@dataclass(frozen=True)
class Limit:
    """At most so many units in any interval of that length."""

    most: int
    interval_s: float


@dataclass(frozen=True)
class Taken:
    """What was granted; where that is less than was wanted, one more may be after `retry_after_s`."""

    granted: int
    retry_after_s: float
    at_s: float  # by the clock of who counted
    ticket: str = ""
    own: bool = False  # this process counted it
    shared: bool = False  # Redis did


# --- one process ---------------------------------------------------------------------------------------------------


@dataclass
class _Entry:
    begins: int  # microsecond from which its interval runs; of what is held that lies ahead
    units: int


@dataclass
class _Window:
    interval: int = 0
    counted: dict[str, _Entry] = field(default_factory=dict)  # in the order of their time
    held: dict[str, _Entry] = field(default_factory=dict)
    units: int = 0

    def forget(self, now: int) -> None:
        """Leave out what lies a whole interval back."""
        before = now - self.interval
        for ticket in [ticket for ticket, entry in self.held.items() if entry.begins <= before]:
            self.units -= self.held.pop(ticket).units
        while self.counted and (first := next(iter(self.counted.items())))[1].begins <= before:
            del self.counted[first[0]]
            self.units -= first[1].units

    def began(self, units: int, now: int) -> int:
        """When the interval of the so-many-th oldest unit began; one that is held may be settled any moment."""
        for entry in self.counted.values():
            units -= entry.units
            if units <= 0:
                return entry.begins
        return now


class LocalWindows:
    """The windows of one process."""

    def __init__(self, clock_s: Callable[[], float] = trio.current_time) -> None:
        self._clock_s = clock_s
        self._windows: dict[str, _Window] = {}
        self._takes = 0

    def take(self, key: str, limit: Limit, wanted: int, ticket: str, *, hold: bool) -> Taken:
        """As many of the wanted units as are free."""
        now = _micros(self._clock_s())
        self._forget_idle(now)
        window = self._open(key, limit)
        window.forget(now)
        granted = max(0, min(wanted, limit.most - window.units))
        if granted:
            (window.held if hold else window.counted)[ticket] = _Entry(now + (_micros(HOLD_S) if hold else 0), granted)
            window.units += granted
        retry = 0
        if granted < wanted:
            retry = window.began(window.units - limit.most + 1, now) + window.interval - now
        return Taken(granted, retry / 1e6, now / 1e6, ticket, own=True)

    def lower(self, key: str, ticket: str, units: int) -> None:
        """Of what was taken only so many units were granted in the end."""
        window = self._windows.get(key, _Window())
        kept = window.held if ticket in window.held else window.counted
        entry = kept.get(ticket)
        if entry is None:  # the interval is over by now
            return
        window.units -= entry.units - units
        entry.units = units
        if not units:
            del kept[ticket]

    def settle(self, key: str, limit: Limit, taken: Taken, used: int) -> None:
        """So many of the units were used, just now; the others are free again."""
        window = self._open(key, limit)
        entry = window.held.pop(taken.ticket, None) or window.counted.pop(taken.ticket, None)
        window.units += used - (entry.units if entry else 0)
        if used:
            window.counted[taken.ticket] = _Entry(_micros(self._clock_s()), used)

    def _open(self, key: str, limit: Limit) -> _Window:
        window = self._windows.setdefault(key, _Window())
        window.interval = _micros(limit.interval_s)
        return window

    def _forget_idle(self, now: int) -> None:
        self._takes += 1
        if self._takes % IDLE_LOOK:
            return
        for key, window in list(self._windows.items()):
            window.forget(now)
            if not window.units:
                del self._windows[key]


# --- all processes -------------------------------------------------------------------------------------------------


class RedisWindows:
    """The windows of all processes, by Redis' clock. One round trip a call; whatever goes wrong is raised."""

    def __init__(self, bridge: Bridge, client: Redis, prefix: str) -> None:
        self._bridge = bridge
        self._prefix = prefix
        self._take = client.register_script(_TAKE)
        self._settle = client.register_script(_SETTLE)
        self._places = trio.CapacityLimiter(PLACES)

    async def take(self, key: str, limit: Limit, wanted: int, ticket: str, *, hold: bool) -> Taken:
        """As many of the wanted units as are free."""
        hold_s = HOLD_S if hold else 0.0
        args = (limit.most, _micros(limit.interval_s), wanted, _micros(hold_s), _micros(HOLD_S), ticket)
        granted, retry, now = await self._ask(self._take, key, args)
        return Taken(granted, retry / 1e6, now / 1e6, ticket, shared=True)

    async def settle(self, key: str, limit: Limit, taken: Taken, used: int) -> None:
        """So many of the units were used, just now; the others are free again."""
        kept = _micros(limit.interval_s + HOLD_S)
        await self._ask(self._settle, key, (taken.granted, used, taken.ticket, kept))

    async def _ask(self, script: AsyncScript, key: str, args: tuple[str | int, ...]) -> list[int]:
        async def ask() -> list[int]:
            answer: list[int] = await script(keys=[self._prefix + key], args=args)
            return answer

        with trio.fail_after(ANSWER_S):
            async with self._places:
                return await self._bridge.call(ask)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
