"""The host's half of the guest link against a guest that plays by a script, fair or not. Time is virtual."""

from __future__ import annotations

import gc
import struct

import pytest
import trio
from trio.testing import MockClock

from nimbus.host_agent.guest import GuestHeartbeat, GuestHello, GuestSession
from nimbus.model.errors import GuestFault, HostFault
from nimbus.model.vm import GuestExit
from nimbus.wire.guestjob import join_job, parse_job
from nimbus.wire.guestlink import Kind, Stream
from tests.unit.host_agent.scripted_guest import COMMAND, IDLE, NONCE, RUNNING, Guest, Sink, Stage, leave


async def test_the_host_goes_from_attach_to_job_to_exit(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet()
        job = parse_job(join_job([(await guest.hear(Kind.JOB)).payload]))
        assert job.command == COMMAND
        await guest.say(Kind.JOB_STARTED, struct.pack("<II", 7, 8))
        await guest.print(0, b"hi")
        await guest.end(3, out=2)
        await leave(guest)

    assert await stage.play(script) == GuestExit(3, None)
    assert stage.saved == [GuestExit(3, None)]
    assert stage.sink.writes == [("stdout", 0, b"hi")]


async def test_an_attach_without_an_answer_is_said_again_as_a_guest_may_still_boot(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        first = await guest.hear(Kind.ATTACH)
        second = await guest.hear(Kind.ATTACH)
        assert first.payload[4:8] != second.payload[4:8]
        await guest.greet()
        await guest.hear(Kind.JOB)
        await guest.end(0)
        await leave(guest)

    await Stage().play(script)


async def test_what_was_left_on_the_way_from_before_the_attach_is_not_believed(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.print(0, b"old")
        await guest.end(99)
        await guest.greet()
        await guest.hear(Kind.JOB)
        await guest.end(0)
        await leave(guest)

    assert await stage.play(script) == GuestExit(0, None)
    assert stage.sink.writes == []


async def test_a_job_that_heartbeats_show_as_unheard_is_said_again(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        await guest.greet()
        first = await guest.hear(Kind.JOB)
        await guest.beat(IDLE)  # too soon to mean anything
        await trio.sleep(4)
        await guest.beat(IDLE)
        second = await guest.hear(Kind.JOB)
        assert parse_job(join_job([first.payload])).command == parse_job(join_job([second.payload])).command
        await guest.end(0)
        await leave(guest)

    await Stage().play(script)


async def test_a_stop_that_heartbeats_show_as_unheard_is_said_again_with_the_grace_of_the_command(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet()
        await guest.hear(Kind.JOB)
        stage.stop.set()
        first = await guest.hear(Kind.STOP)
        await trio.sleep(4)
        await guest.beat(RUNNING)
        second = await guest.hear(Kind.STOP)
        assert first.payload == second.payload == (3000).to_bytes(8, "little")
        await guest.end(0)
        await leave(guest)

    await stage.play(script)


async def test_an_acknowledgement_that_got_lost_is_said_again_after_a_heartbeat(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        await guest.greet()
        await guest.hear(Kind.JOB)
        await guest.print(0, b"hi")
        await guest.hear(Kind.ACK)
        await guest.beat(RUNNING, acked=0)
        again = await guest.hear(Kind.ACK)
        assert again.payload == struct.pack("<B7xQ", 1, 2)
        await guest.end(0, out=2)
        await leave(guest)

    await Stage().play(script)


async def test_each_heartbeat_is_told_and_answered(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.beat(RUNNING)
        assert (await guest.hear(Kind.ECHO)).payload == (5).to_bytes(8, "little")
        await guest.end(0)
        await leave(guest)

    await stage.play(script)

    assert sum(isinstance(event, GuestHeartbeat) for event in stage.events) == 1


async def test_output_that_comes_twice_is_written_once(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.print(0, b"abc")
        await guest.hear(Kind.ACK)
        await guest.print(0, b"abc")
        await guest.print(1, b"bcde")
        await guest.end(0, out=5)
        await leave(guest)

    await stage.play(script)

    assert stage.sink.writes == [("stdout", 0, b"abc"), ("stdout", 3, b"de")]


async def test_small_outputs_that_wait_for_the_sink_reach_it_together(autojump_clock: MockClock) -> None:
    stage = Stage(Sink(gate=trio.Event()))

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        for n in range(5):
            await guest.print(n, b"x")
        await guest.print(0, b"e", Stream.STDERR)
        await guest.beat(RUNNING)
        await guest.hear(Kind.ECHO)  # by now all of it was heard
        assert stage.sink.gate is not None
        stage.sink.gate.set()
        await guest.end(0, out=5, err=1)
        await leave(guest)

    await stage.play(script)

    # The first may have gone to the sink before the second came.
    *printed, complaint = stage.sink.writes
    assert b"".join(data for _, _, data in printed) == b"xxxxx"
    assert len(printed) <= 2
    assert complaint == ("stderr", 0, b"e")


async def test_an_exit_before_the_last_output_came_makes_the_host_ask_for_it(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.end(0, out=3)
        await guest.greet(3, end=3)
        await guest.print(0, b"abc")
        await guest.end(0, out=3)
        await leave(guest)

    await stage.play(script)

    assert stage.sink.writes == [("stdout", 0, b"abc")]


async def test_the_exit_is_acknowledged_on_a_new_connection_when_the_old_one_broke(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def first(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.end(4)

    async def second(guest: Guest) -> None:
        await guest.greet(3)
        await guest.end(4)
        await leave(guest)

    assert await stage.play(first, second) == GuestExit(4, None)
    assert stage.saved == [GuestExit(4, None)]


async def test_a_guest_that_vanishes_before_its_good_bye_does_not_hold_up_the_exit(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.end(0)
        await guest.hear(Kind.EXIT_ACK)
        await trio.sleep_forever()

    with trio.fail_after(2):
        assert await Stage().play(script) == GuestExit(0, None)


async def test_a_guest_that_sends_beyond_its_credit_is_at_fault(autojump_clock: MockClock) -> None:
    stage = Stage(Sink(gate=trio.Event()))

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        for n in range(9):
            await guest.print(n * 65536, bytes(65536))
        await trio.sleep_forever()

    with pytest.raises(GuestFault, match="beyond its credit"):
        await stage.play(script)


async def test_a_guest_whose_output_jumps_again_and_again_is_at_fault(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        while True:
            await guest.greet(RUNNING, end=9)
            await guest.print(7, b"x")

    with pytest.raises(GuestFault, match="jumps from 0 to 7"):
        await Stage().play(script)


async def test_a_guest_that_takes_back_output_is_at_fault(autojump_clock: MockClock) -> None:
    async def first(guest: Guest) -> None:
        await guest.greet(RUNNING, end=3)
        await guest.print(0, b"abc")
        await guest.hear(Kind.ACK)

    async def second(guest: Guest) -> None:
        await guest.greet(RUNNING, end=2)
        await trio.sleep_forever()

    with pytest.raises(GuestFault, match="takes back output"):
        await Stage().play(first, second)


async def test_a_hello_with_another_nonce_is_not_believed(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        await guest.greet(nonce=b"x" * 16)
        await trio.sleep_forever()

    with pytest.raises(GuestFault, match="somebody else"):
        await Stage().play(script)


async def test_an_adopted_guest_that_never_got_its_job_is_at_fault(autojump_clock: MockClock) -> None:
    async def script(guest: Guest) -> None:
        await guest.greet(IDLE)
        await trio.sleep_forever()

    with pytest.raises(GuestFault, match="never got its job"):
        await Stage().play(script, session=GuestSession(NONCE, None))


async def test_a_sink_that_fails_ends_the_talk_with_its_own_error(autojump_clock: MockClock) -> None:
    class FullSink(Sink):
        async def write(self, stream: str, offset: int, data: bytes) -> int:
            await trio.lowlevel.checkpoint()
            raise HostFault("the disk is full")

    async def script(guest: Guest) -> None:
        await guest.greet(RUNNING)
        await guest.print(0, b"abc")
        await trio.sleep_forever()

    with pytest.raises(HostFault, match="the disk is full"):
        await Stage(FullSink()).play(script)


async def test_a_cancelled_talk_leaves_the_exit_unacknowledged_unless_it_was_saved(autojump_clock: MockClock) -> None:
    stage = Stage(Sink(gate=trio.Event()))
    acknowledged = False

    async def script(guest: Guest) -> None:
        nonlocal acknowledged
        await guest.greet(RUNNING)
        await guest.print(0, b"abc")
        await guest.end(0, out=3)
        await guest.hear(Kind.EXIT_ACK)
        acknowledged = True

    with trio.move_on_after(5):
        await stage.play(script)

    assert (stage.saved, acknowledged) == ([], False)


async def test_a_guest_that_forgets_what_was_never_acknowledged_is_at_fault(autojump_clock: MockClock) -> None:
    async def first(guest: Guest) -> None:
        await guest.greet(RUNNING)

    async def second(guest: Guest) -> None:
        await guest.greet(RUNNING, first=10, end=10)
        await trio.sleep_forever()

    with pytest.raises(GuestFault, match="forgot output"):
        await Stage().play(first, second)


async def test_a_guest_that_drips_bytes_into_a_stuck_sink_costs_the_agent_little_more_than_the_bytes(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(Sink(gate=trio.Event()))
    drips = 3000
    grown = 0

    async def script(guest: Guest) -> None:
        nonlocal grown
        await guest.greet(RUNNING)
        before = len(gc.get_objects())
        for n in range(drips):
            await guest.print(n, b"x")
            await guest.print(n, b"y", Stream.STDERR)
        await guest.beat(RUNNING)
        await guest.hear(Kind.ECHO)  # by now all of it was heard
        grown = len(gc.get_objects()) - before
        assert stage.sink.gate is not None
        stage.sink.gate.set()
        await guest.end(0, out=drips, err=drips)
        await leave(guest)

    await stage.play(script)

    printed = {
        name: b"".join(data for told, _, data in stage.sink.writes if told == name) for name in ("stdout", "stderr")
    }
    assert printed == {"stdout": b"x" * drips, "stderr": b"y" * drips}
    assert len(stage.sink.writes) < 300
    assert grown < 2000


async def test_a_second_hello_to_one_attach_changes_nothing(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def script(guest: Guest) -> None:
        attach = await guest.hear(Kind.ATTACH)
        await guest.answer(attach)
        await guest.answer(attach)
        await guest.hear(Kind.JOB)
        await guest.end(0)
        await leave(guest)

    await stage.play(script)

    assert sum(isinstance(event, GuestHello) for event in stage.events) == 1
