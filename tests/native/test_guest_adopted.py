"""A guest whose host died: it keeps its job's output and exit for whoever comes next with the same session."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from nimbus.host_agent.guest import GuestJobStarted, GuestSession
from nimbus.model.vm import Command, ExitReason, GuestExit
from nimbus.wire.guestjob import ENTROPY_BYTES, Job
from nimbus.wire.guestlink import (
    Exit,
    GuestState,
    Heartbeat,
    Hello,
    JobStarted,
    Output,
    Refused,
    render_attach,
    render_job_frames,
)
from tests.native.guest_double import Double, Host, RawHost, new_session, open_double, shell

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the command becomes the user that it asks for"),
]
LIMIT_S = 60
NONCE = b"n" * 16
FAR = (2**40, 2**40)
LINES = 400_000
LINES_TEXT = "".join(f"{n}\n" for n in range(1, LINES + 1)).encode()


def job_frames(command: Command) -> bytes:
    return render_job_frames(Job(command, "h", None, 0, bytes(ENTROPY_BYTES)))


@asynccontextmanager
async def open_killable_host(link: Path, folder: Path, script: str | None = None) -> AsyncIterator[trio.Process]:
    """A host in a process of its own; killed with SIGKILL where it still lives at the block's end."""
    argv = [sys.executable, "-m", "tests.native.killed_host", str(link), str(folder)]
    job = [] if script is None else [script]
    start = partial(trio.run_process, [*argv, *job], stdin=subprocess.DEVNULL, check=False)
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(start)
        try:
            yield process
        finally:
            process.kill()


async def wait_for(condition: Callable[[], object]) -> None:
    """Files of another process signal nothing, so this looks again."""
    while True:
        if condition():
            return
        await trio.sleep(0.005)


def gated(gate: Path, script: str) -> Command:
    return shell(f"while [ ! -e {gate} ]; do sleep 0.02; done; {script}")


async def leave_after_start(double: Double, session: GuestSession, gate: Path) -> int:
    """A host that hands over its job and is gone before the job, which waits for the gate, does anything.

    The job's process.
    """
    host, started = Host(), trio.Event()
    host.on_event = lambda event: started.set() if isinstance(event, GuestJobStarted) else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run, session, double.connect)
        await started.wait()
        nursery.cancel_scope.cancel()
    await trio.Path(gate).touch()
    return next(event.pid for event in host.events if isinstance(event, GuestJobStarted))


async def test_hosts_killed_in_the_midst_of_output_lose_none_and_repeat_none(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "nonce").write_text(secrets.token_hex(16))
    size = len(LINES_TEXT)
    script = f"seq 1 {LINES}; seq 1 {LINES} >&2; while [ ! -e {folder}/go ]; do sleep 0.02; done; exit 9"
    stdout, stderr = folder / "stdout", folder / "stderr"

    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            for part, path, given in ((1, stdout, script), (size // 2, stdout, None), (size // 3, stderr, None)):
                async with open_killable_host(double.path, folder, given) as process:
                    await wait_for(partial(holds, process, path, part))
                    process.send_signal(signal.SIGKILL)
                    assert await process.wait() == -signal.SIGKILL
            (folder / "go").touch()
            async with open_killable_host(double.path, folder) as process:
                assert await process.wait() == 0
            await double.process.wait()

    assert stdout.read_bytes() == LINES_TEXT
    assert stderr.read_bytes() == LINES_TEXT
    assert (folder / "exits").read_text() == "9\n"
    assert double.process.returncode == 0


def holds(process: trio.Process, path: Path, size: int) -> bool:
    """Whether the host that lives still has brought so many bytes to safety."""
    assert process.poll() is None, "the host ended by itself"
    return path.exists() and path.stat().st_size >= size


async def test_a_job_that_ended_while_nobody_listened_tells_all_it_printed_and_its_exit(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    session = new_session(gated(gate, "seq 1 50000; echo e >&2; exit 7"))
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            pid = await leave_after_start(double, session, gate)
            await wait_for(lambda: not Path(f"/proc/{pid}").exists())
            second = Host()
            told = await second.run(replace(session, command=None), double.connect)
            await double.process.wait()

    assert told == GuestExit(7, None)
    assert second.sink.out == "".join(f"{n}\n" for n in range(1, 50_001))
    assert second.sink.err == "e\n"


async def test_a_job_that_prints_more_than_the_guest_keeps_waits_for_the_next_host(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    session = new_session(gated(gate, f"seq 1 {LINES}; touch {tmp_path}/printed"))
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            pid = await leave_after_start(double, session, gate)
            await wait_for(lambda: _wrote(pid) > 2**20)
            assert not (tmp_path / "printed").exists()
            second = Host()
            second.sink.keep_bytes = 1 << 22
            told = await second.run(replace(session, command=None), double.connect)

    assert told == GuestExit(0, None)
    assert second.sink.out.encode() == LINES_TEXT


def _wrote(pid: int) -> int:
    """Bytes that the process and its waited-for children wrote; `seq` is a child, so its own children count too."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            total += _wrote_alone(int(child))
    return total + _wrote_alone(pid)


def _wrote_alone(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


async def test_every_host_that_comes_while_the_job_runs_is_told_that_it_does(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            first = RawHost(await double.connect())
            await first.stream.send_all(render_attach(1, NONCE, (0, 0), FAR))
            await first.hear(Hello)
            await first.stream.send_all(job_frames(shell("sleep 1000")))
            started = await first.hear(JobStarted)
            await first.stream.aclose()
            second = RawHost(await double.connect())
            await second.stream.send_all(render_attach(2, NONCE, (0, 0), FAR))
            assert (await second.hear(Hello)).state is GuestState.RUNNING
            again = await second.hear(JobStarted)

    assert again == started


async def test_a_guest_whose_host_hangs_sleeps_too(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            host = RawHost(await double.connect())
            await host.stream.send_all(render_attach(1, NONCE, (0, 0), FAR))
            await host.hear(Hello)
            await host.stream.send_all(job_frames(shell(f"head -c 9000000 /dev/zero; touch {tmp_path}/printed")))
            await trio.sleep(2)  # its next heartbeat is due, and the socket has long been full
            before = cpu_s(double.process.pid)
            await trio.sleep(2)
            spent = cpu_s(double.process.pid) - before

    assert not (tmp_path / "printed").exists()
    assert spent < 0.5


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_time_limit_passes_while_nobody_listens(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    deaf = gated(gate, "trap '' TERM; echo up; while :; do sleep 0.02; done")
    session = new_session(replace(deaf, timeout_s=5, grace_s=0.2))
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            pid = await leave_after_start(double, session, gate)
            await wait_for(lambda: not Path(f"/proc/{pid}").exists())
            second = Host()
            told = await second.run(replace(session, command=None), double.connect)

    assert (told.signal, told.reason, told.status) == (9, ExitReason.TIMEOUT, 124)
    assert second.sink.out == "up\n"


async def test_a_second_host_waits_until_the_first_ones_connection_ends(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            first = RawHost(await double.connect())
            await first.stream.send_all(render_attach(1, NONCE, (0, 0), FAR))
            await first.hear(Hello)
            second = RawHost(await double.connect())
            await second.stream.send_all(render_attach(2, NONCE, (0, 0), FAR))
            for _ in range(2):
                await first.hear(Heartbeat)  # still the first one's guest, two seconds on
            await first.stream.aclose()
            hello = await second.hear(Hello)

    assert hello.attach_id == 2
    assert second.reader.counts.skipped_bytes == 0


async def test_two_attaches_at_once_get_one_hello_and_a_job_said_twice_runs_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    frames = job_frames(shell(f"echo run >> {runs}; echo out"))
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            host = RawHost(await double.connect())
            await host.stream.send_all(render_attach(1, NONCE, (0, 0), FAR) + render_attach(2, NONCE, (0, 0), FAR))
            hello = await host.hear(Hello)
            await host.stream.send_all(frames + frames)
            output = await host.hear(Output)
            told = await host.hear(Exit)

    assert hello.attach_id == 2
    assert (output.offset, output.data) == (0, b"out\n")
    assert told == Exit(GuestExit(0, None), (4, 0))
    assert runs.read_text() == "run\n"


async def test_a_job_whose_host_died_while_handing_it_over_has_not_begun_and_runs_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = replace(shell(f"echo run >> {runs}"), env={f"K{n}": "v" * 1000 for n in range(300)})
    frames = job_frames(command)
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            first = RawHost(await double.connect())
            await first.stream.send_all(render_attach(1, NONCE, (0, 0), FAR))
            await first.hear(Hello)
            await first.stream.send_all(frames[:-10])
            await first.stream.aclose()
            second = RawHost(await double.connect())
            await second.stream.send_all(render_attach(2, NONCE, (0, 0), FAR))
            hello = await second.hear(Hello)
            await second.stream.send_all(frames)
            await second.hear(JobStarted)
            told = await second.hear(Exit)

    assert hello.state is GuestState.IDLE
    assert told.exit == GuestExit(0, None)
    assert runs.read_text() == "run\n"


async def test_a_stranger_between_two_hosts_gets_no_byte_of_output_and_changes_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    session = new_session(gated(gate, "seq 1 1000; exit 5"))
    with trio.fail_after(LIMIT_S):
        async with open_double(tmp_path) as double:
            pid = await leave_after_start(double, session, gate)
            await wait_for(lambda: not Path(f"/proc/{pid}").exists())
            stranger = RawHost(await double.connect())
            await stranger.stream.send_all(render_attach(1, b"x" * 16, (0, 0), FAR))
            await stranger.hear(Refused)
            frames = stranger.reader.counts.frames
            await stranger.stream.aclose()
            second = Host()
            told = await second.run(replace(session, command=None), double.connect)

    assert frames == 1
    assert told == GuestExit(5, None)
    assert second.sink.out == "".join(f"{n}\n" for n in range(1, 1001))
