"""How the host makes a guest a machine of its own, and how it looks at one without a trace. Time is virtual."""

from __future__ import annotations

import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from nimbus.host_agent.guest import GuestHello, GuestSession, look_at_guest
from nimbus.model.errors import GuestFault
from nimbus.model.vm import GuestExit
from nimbus.wire.guestlink import AttachFlag, HelloFlag, Kind, Refusal
from tests.unit.host_agent.scripted_guest import COMMAND, NONCE, RUNNING, Guest, Stage, leave

RESTORED = GuestSession(NONCE, COMMAND, must_prepare=True)
DAY_NS = 86400 * 10**9


async def finish(guest: Guest) -> None:
    await guest.hear(Kind.JOB)
    await guest.end(0)
    await leave(guest)


def hellos(stage: Stage) -> list[bool]:
    return [event.prepared for event in stage.events if isinstance(event, GuestHello)]


async def test_a_guest_is_prepared_before_it_is_attached(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        clock_ns, entropy, machine_id = struct.unpack("<Q32s16s", (await guest.hear(Kind.PREPARE)).payload)
        assert abs(clock_ns - time.time_ns()) < DAY_NS
        assert len(set(entropy)) > 8
        assert (machine_id[6] >> 4, machine_id[8] >> 6) == (4, 2)  # a random UUID, as machine-id(5) wants it
        guest.flags = HelloFlag.PREPARED
        await guest.greet()
        await finish(guest)

    assert await stage.play(script) == GuestExit(0, None)
    assert hellos(stage) == [True]


async def test_each_try_brings_fresh_randomness_and_the_same_machine_id(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        first, second = [(await guest.hear(Kind.PREPARE)).payload for _ in range(2)]
        assert first[8:40] != second[8:40]
        assert first[40:] == second[40:]
        await guest.greet()
        await finish(guest)

    await Stage().play(script)


async def test_once_prepared_a_guest_is_not_prepared_again(autojump_clock: MockClock) -> None:
    async def first(guest: Guest) -> None:
        guest.flags = HelloFlag.PREPARED
        await guest.greet()
        await guest.hear(Kind.JOB)

    async def second(guest: Guest) -> None:
        await guest.greet(RUNNING)
        assert not [frame for frame in guest.heard if frame.kind == Kind.PREPARE]
        await guest.end(0)
        await leave(guest)

    await Stage().play(first, second, session=RESTORED)


async def test_an_adopted_guest_is_not_prepared_for_it_has_its_job(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        frame = await guest.hear(Kind.ATTACH)
        assert not guest.heard
        await guest.answer(frame, RUNNING)
        await guest.end(0)
        await leave(guest)

    await Stage().play(script, session=GuestSession(NONCE, None))


async def test_a_cold_guest_of_before_there_was_a_prepare_gets_its_job(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet()
        await finish(guest)

    assert await stage.play(script) == GuestExit(0, None)
    assert hellos(stage) == [False]


async def test_a_restored_guest_that_lost_the_word_is_told_again_and_is_ready_only_then(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet()
        guest.flags = HelloFlag.PREPARED
        await guest.hear(Kind.PREPARE)
        await guest.greet()
        await finish(guest)

    await stage.play(script, session=RESTORED)

    assert hellos(stage) == [True]


async def test_a_restored_guest_that_is_never_prepared_gets_no_job_and_is_at_fault(autojump_clock: MockClock) -> None:
    stage = Stage()
    jobs = 0

    async def script(guest: Guest) -> None:
        nonlocal jobs
        for _ in range(3):
            await guest.greet()
            jobs += sum(frame.kind == Kind.JOB for frame in guest.heard)
        await trio.sleep_forever()

    with pytest.raises(GuestFault, match="too old to be restored"):
        await stage.play(script, session=replace(RESTORED, next_offsets=(0, 0)))

    assert (jobs, hellos(stage)) == (0, [])


async def look(*scripts: Callable[[Guest], Awaitable[None]]) -> GuestHello:
    """A look at guests that play by these scripts, one a connection."""
    left = list(scripts)
    seen: list[GuestHello | GuestFault] = []

    async with trio.open_nursery() as guests:

        async def act(script: Callable[[Guest], Awaitable[None]], guest: Guest) -> None:
            await script(guest)
            await guest.stream.aclose()

        async def connect() -> trio.abc.Stream:  # noqa: ASYNC124 - the protocol awaits it
            if not left:
                raise ConnectionRefusedError
            near, far = memory_stream_pair()
            guests.start_soon(act, left.pop(0), Guest(far, flags=HelloFlag.LOOKED))
            return near

        with trio.fail_after(60):
            try:
                seen.append(await look_at_guest(connect))
            except GuestFault as fault:
                seen.append(fault)
        guests.cancel_scope.cancel()
    (told,) = seen
    if isinstance(told, GuestFault):
        raise told
    return told


async def test_a_look_says_nothing_but_an_attach_that_takes_nothing_over(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        attach = await guest.hear(Kind.ATTACH)
        assert not guest.heard
        assert attach.payload[2:4] == AttachFlag.LOOK.to_bytes(2, "little")
        await guest.answer(attach)

    assert (await look(script)).looked


async def test_a_look_waits_for_a_guest_that_boots_or_hangs_up(autojump_clock: MockClock) -> None:
    async def hangs_up(guest: Guest) -> None:
        await guest.hear(Kind.ATTACH)

    async def boots(guest: Guest) -> None:
        await trio.sleep(5)
        await guest.greet()

    assert (await look(hangs_up, boots)).looked


async def test_a_look_believes_no_hello_to_somebody_else(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        attach = await guest.hear(Kind.ATTACH)
        await guest.answer(attach, nonce=b"x" * 16)
        await guest.answer(attach, RUNNING)

    assert (await look(script)).state == RUNNING


async def test_a_guest_too_old_to_be_looked_at_is_told(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        guest.flags = 0
        await guest.greet()

    with pytest.raises(GuestFault, match="too old for templates"):
        await look(script)


async def test_a_guest_that_was_prepared_becomes_no_template(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        guest.flags |= HelloFlag.PREPARED
        await guest.greet()

    with pytest.raises(GuestFault, match="clones would tell"):
        await look(script)


async def test_a_guest_that_has_a_host_cannot_be_looked_at(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        attach = await guest.hear(Kind.ATTACH)
        await guest.say(Kind.REFUSED, bytes([Refusal.WRONG_NONCE, 0, 0, 0]) + attach.payload[4:8] + b"busy")

    with pytest.raises(GuestFault, match="cannot be looked at: busy"):
        await look(script)
