"""The guest link end to end, against the real nimbus-init: cut anywhere, nothing is lost and nothing comes twice."""

from __future__ import annotations

import hashlib
import os
import random
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import (
    GuestConnected,
    GuestHeartbeat,
    GuestJobStarted,
    GuestSession,
    OutputGap,
    parse_session,
    render_session,
)
from nimbus.model.errors import GuestFault
from nimbus.model.vm import Command, GuestExit
from nimbus.wire.guestframe import FrameSplitter, render_frame
from nimbus.wire.guestjob import ENTROPY_BYTES, Job
from nimbus.wire.guestlink import (
    Bye,
    Exit,
    GuestState,
    Heartbeat,
    Hello,
    JobStarted,
    Output,
    Refusal,
    Refused,
    Stream,
    render_ack,
    render_attach,
    render_credit,
    render_exit_ack,
    render_job_frames,
)
from tests.native.guest_double import CutStream, Double, Host, RawHost, Sink, new_session, open_double, run_once, shell

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the command becomes the user that it asks for"),
]
NONCE = b"n" * 16
MIB = 2**20
FAR = (2**40, 2**40)
NUMBERS = "seq 1 400000"
NUMBERS_TEXT = "".join(f"{n}\n" for n in range(1, 400001)).encode()


def job_frames(script: str) -> bytes:
    return render_job_frames(Job(shell(script), "h", None, 0, bytes(ENTROPY_BYTES)))


async def attached(double: Double, nonce: bytes = NONCE, attach_id: int = 1, limits: tuple[int, int] = FAR) -> RawHost:
    host = RawHost(await double.connect())
    await host.stream.send_all(render_attach(attach_id, nonce, (0, 0), limits))
    return host


@pytest.mark.slow
async def test_a_hundred_megabytes_arrive_whole_in_little_memory(tmp_path: Path) -> None:
    # Numbered lines: a block that is lost, doubled or moved changes the hash.
    script = "seq 1 13000000"
    expected = hashlib.sha256()
    for start in range(1, 13_000_001, 1_000_000):
        expected.update("".join(f"{n}\n" for n in range(start, start + 1_000_000)).encode())
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    host = await run_once(tmp_path, shell(script), Host(Sink(keep_bytes=0)))

    assert host.sink.ends["stdout"] > 100 * 10**6
    assert host.sink.hashes["stdout"].digest() == expected.digest()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024


@pytest.mark.parametrize("seed", range(12))
async def test_a_link_cut_at_random_places_loses_nothing_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    host = Host()
    cuts = 0

    async def connect_badly(double: Double) -> trio.abc.Stream:
        nonlocal cuts
        cuts += 1
        inner = await double.connect()
        if cuts > 40:
            return inner
        return CutStream(inner, int(10 ** chance.uniform(0, 5.8)), int(10 ** chance.uniform(0, 4.5)))

    async with open_double(tmp_path) as double:
        with trio.fail_after(60):
            session = new_session(shell(f"{NUMBERS}; {NUMBERS} >&2; exit 9"))
            await host.run(session, partial(connect_badly, double))
            await double.process.wait()

    # The sink itself refuses a gap and a repetition; this says that all came, and the right bytes.
    assert host.sink.hashes["stdout"].digest() == host.sink.hashes["stderr"].digest()
    assert host.sink.hashes["stdout"].digest() == hashlib.sha256(NUMBERS_TEXT).digest()
    assert host.saved == [GuestExit(9, None)]
    assert sum(isinstance(event, GuestConnected) for event in host.events) > 3


async def test_an_agent_that_died_is_succeeded_by_one_that_goes_on_from_what_was_safe(tmp_path: Path) -> None:
    first, sink = Host(), Sink()
    first.sink = sink
    session = new_session(shell(f"{NUMBERS}; while [ ! -e go ]; do sleep 0.02; done; echo end"))
    session = replace(session, command=replace(session.command or Command(("x",)), cwd=str(tmp_path)))
    enough = trio.Event()

    async with open_double(tmp_path) as double:
        async with trio.open_nursery() as nursery:
            first.on_event = lambda event: enough.set() if isinstance(event, GuestHeartbeat) else None
            nursery.start_soon(first.run, session, double.connect)
            with trio.fail_after(10):
                await enough.wait()
            nursery.cancel_scope.cancel()
        stored = render_session(replace(session, next_offsets=(sink.ends["stdout"], sink.ends["stderr"])))
        second = Host(sink)
        (tmp_path / "go").touch()
        with trio.fail_after(30):
            told = await second.run(parse_session(stored), double.connect)

    assert told == GuestExit(0, None)
    assert sink.hashes["stdout"].digest() == hashlib.sha256(NUMBERS_TEXT + b"end\n").digest()


def test_a_session_in_a_record_holds_no_command_and_no_secret_of_its_environment() -> None:
    session = new_session(Command(("x",), {"TOKEN": "hidden"}, grace_s=7))

    stored = render_session(session)

    assert "hidden" not in repr(stored)
    assert parse_session(stored) == GuestSession(session.nonce, None, next_offsets=(0, 0), stop_grace_s=7)


async def test_output_that_an_earlier_host_acknowledged_and_lost_is_told_as_a_gap(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        first = await attached(double)
        await first.hear(Hello)
        await first.stream.send_all(job_frames("printf 0123456789; sleep 0.2; printf abc"))
        await first.hear(Output)
        await first.stream.send_all(render_ack(Stream.STDOUT, 6))
        while (await first.hear(Heartbeat)).acked_offsets != (6, 0):
            pass
        await first.stream.aclose()
        second = Host()
        second.sink.ends["stdout"] = 6
        with trio.fail_after(10):
            await second.run(GuestSession(NONCE, None), double.connect)

    assert [event for event in second.events if isinstance(event, OutputGap)] == [OutputGap("stdout", 0, 6)]
    assert second.sink.out == "6789abc"


async def test_a_host_with_another_nonce_is_refused_and_drives_nothing(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(10):
            owner = await attached(double)
            await owner.hear(Hello)
            await owner.stream.send_all(job_frames("read x"))
            await owner.hear(JobStarted)
            await owner.stream.aclose()
            stranger = await attached(double, b"x" * 16, attach_id=5)
            refused = await stranger.hear(Refused)
            await stranger.stream.send_all(render_exit_ack())
            await stranger.stream.aclose()
            owner = await attached(double, attach_id=2)
            hello = await owner.hear(Hello)

    assert (refused.why, refused.attach_id) == (Refusal.WRONG_NONCE, 5)
    assert (hello.attach_id, hello.nonce) == (2, NONCE)
    assert double.process.returncode != 0  # it was still there when the block killed it


async def test_a_stale_host_learns_that_another_session_drives_the_guest(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        owner = await attached(double)
        await owner.hear(Hello)
        await owner.stream.aclose()
        with trio.fail_after(10), pytest.raises(GuestFault, match="another session"):
            await Host().run(new_session(shell("true")), double.connect)


async def test_a_host_of_a_later_version_is_refused_and_told_why(tmp_path: Path) -> None:
    frame = bytearray(render_attach(3, NONCE, (0, 0), FAR))
    (attach,) = FrameSplitter().feed(bytes(frame))
    async with open_double(tmp_path) as double:
        host = RawHost(await double.connect())
        await host.stream.send_all(render_frame(attach.kind, b"\x02\x00" + attach.payload[2:]))
        with trio.fail_after(10):
            refused = await host.hear(Refused)

    assert (refused.why, refused.message) == (Refusal.UNKNOWN_VERSION, "this guest speaks version 1")


async def test_the_newest_attach_on_a_connection_wins(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        host = await attached(double, attach_id=1)
        await host.hear(Hello)
        await host.stream.send_all(job_frames("printf 0123456789; sleep 1000"))
        first = await host.hear(Output)
        await host.stream.send_all(render_attach(2, NONCE, (4, 0), FAR))
        with trio.fail_after(10):
            hello = await host.hear(Hello)
            again = await host.hear(Output)

    assert (first.offset, first.data) == (0, b"0123456789")
    assert (hello.attach_id, hello.state, hello.end_offsets) == (2, GuestState.RUNNING, (10, 0))
    assert (again.offset, again.data) == (4, b"456789")


async def test_the_exit_is_said_again_until_it_is_acknowledged_and_only_then_the_guest_goes(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(20):
            host = await attached(double)
            await host.hear(Hello)
            await host.stream.send_all(job_frames("exit 4"))
            first = await host.hear(Exit)
            second = await host.hear(Exit)
            await host.stream.aclose()
            host = await attached(double, attach_id=2)
            hello = await host.hear(Hello)
            third = await host.hear(Exit)
            assert double.process.returncode is None
            await host.stream.send_all(render_exit_ack())
            await host.hear(Bye)
            await double.process.wait()

    assert hello.state is GuestState.EXITED
    assert first == second == third == Exit(GuestExit(4, None), (0, 0))
    assert double.process.returncode == 0


async def test_an_exit_is_acknowledged_only_after_it_was_saved_and_all_output_is_safe(tmp_path: Path) -> None:
    order: list[str] = []

    class SlowSink(Sink):
        async def write(self, stream: str, offset: int, data: bytes) -> int:
            await trio.sleep(0.05)
            safe = await super().write(stream, offset, data)
            order.append("safe")
            return safe

    class SlowHost(Host):
        async def save(self, told: GuestExit) -> None:
            order.append("saving")
            await trio.sleep(0.3)
            assert double.process.returncode is None
            await super().save(told)

    host = SlowHost(SlowSink())
    async with open_double(tmp_path) as double:
        with trio.fail_after(20):
            await host.run(new_session(shell("seq 1 100000")), double.connect)

    assert set(order[:-1]) == {"safe"}
    assert order[-1] == "saving"
    assert host.sink.out.endswith("\n100000\n")


async def test_without_credit_the_job_waits_and_the_guest_keeps_what_it_said(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(30):
            host = await attached(double, limits=(1000, 0))
            await host.hear(Hello)
            await host.stream.send_all(job_frames("head -c 3000000 /dev/zero; echo over >&2; exit 0"))
            first = await host.hear(Output)
            beat = await host.hear(Heartbeat)
            while beat.end_offsets[0] < MIB:
                beat = await host.hear(Heartbeat)
            await host.stream.send_all(render_ack(Stream.STDOUT, 1000) + render_credit(Stream.STDOUT, 2000))
            second = await host.hear(Output)

    assert (first.offset, len(first.data)) == (0, 1000)
    assert beat.end_offsets == (MIB, 0)  # the ring is full, and the command waits before its last word
    assert (second.offset, len(second.data)) == (1000, 1000)


async def test_half_a_frame_of_a_host_that_vanished_does_not_deafen_the_guest(tmp_path: Path) -> None:
    async with open_double(tmp_path) as double:
        with trio.fail_after(20):
            host = await attached(double)
            await host.hear(Hello)
            await host.stream.send_all(job_frames("true")[:20])  # and no more of it, on the same connection
            beat = await host.hear(Heartbeat)
            while beat.lost_frames == 0:
                beat = await host.hear(Heartbeat)
            await host.stream.send_all(render_attach(2, NONCE, (0, 0), FAR))
            hello = await host.hear(Hello)

    assert hello.attach_id == 2


async def test_heartbeats_go_on_while_the_sink_is_stuck(tmp_path: Path) -> None:
    class StuckSink(Sink):
        async def write(self, stream: str, offset: int, data: bytes) -> int:
            await trio.sleep_forever()
            raise AssertionError

    beats: list[GuestHeartbeat] = []
    third = trio.Event()
    host = Host(StuckSink())

    def count(event: object) -> None:
        if isinstance(event, GuestHeartbeat):
            beats.append(event)
        if len(beats) == 3:
            third.set()

    host.on_event = count
    async with open_double(tmp_path) as double, trio.open_nursery() as nursery:
        nursery.start_soon(host.run, new_session(shell("head -c 9000000 /dev/zero")), double.connect)
        with trio.fail_after(10):
            await third.wait()
        nursery.cancel_scope.cancel()

    assert beats[-1].acked_offsets == (0, 0)
    assert any(isinstance(event, GuestJobStarted) for event in host.events)
