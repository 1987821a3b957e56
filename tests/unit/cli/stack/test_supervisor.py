"""The supervisor with real, tiny child programs: order, readiness, restarts, crash loops, stopping, leftovers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from nimbus.cli.stack import supervisor
from nimbus.cli.stack.child import log_tail, open_child, sweep_leftovers
from nimbus.cli.stack.service import Probe, Service
from nimbus.cli.stack.supervisor import Told, run_stack
from nimbus.host.process import identify, is_alive
from nimbus.model.errors import HostFault

ENV = {"PATH": "/usr/bin:/bin"}
LIMIT_S = 30.0


def exists(path: Path) -> Probe:
    async def probe() -> bool:
        return await trio.Path(path).exists()

    return probe


def shell(name: str, script: str, ready: Probe | None = None, **more: object) -> Service:
    return Service(name, ("/bin/sh", "-c", script), ENV, ready, **more)  # type: ignore[arg-type] # a test's shorthand


class Scene:
    """What a test sees of a stack: everything told, in order, and an event for each line awaited."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._changed = trio.Event()

    def report(self, told: Told) -> None:
        self.told.append(told)
        self._changed.set()
        self._changed = trio.Event()

    def words(self) -> list[str]:
        return [f"{told.what} {told.service}" for told in self.told]

    async def wait_for(self, condition: Callable[[list[str]], bool]) -> None:
        while not condition(self.words()):
            await self._changed.wait()


async def test_services_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    scene, stop = Scene(), trio.Event()
    services = [
        shell("first", f"touch {tmp_path}/first; exec sleep 60", exists(tmp_path / "first")),
        shell("step", f"test -e {tmp_path}/first", once=True),
        shell("second", f"touch {tmp_path}/second; exec sleep 60", exists(tmp_path / "second")),
    ]
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_stack, services, tmp_path, scene.report, stop)
            assert scene.words() == [
                "starting first",
                "ready first",
                "starting step",
                "done step",
                "starting second",
                "ready second",
            ]
            stop.set()
    assert scene.words()[6:] == ["stopping second", "stopped second", "stopping first", "stopped first"]
    assert list((tmp_path / "pids").iterdir()) == []


async def test_a_service_that_dies_is_started_again(tmp_path: Path) -> None:
    scene, stop = Scene(), trio.Event()
    service = shell("room", "exec sleep 60")
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_stack, [service], tmp_path, scene.report, stop)
            first = scene.told[-1].pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await scene.wait_for(lambda words: words.count("ready room") == 2)
            stop.set()
    assert "died room" in scene.words()
    assert "signal 9" in next(told.detail for told in scene.told if told.what == "died")


async def test_a_death_before_readiness_stops_the_stack_and_shows_the_log(tmp_path: Path) -> None:
    scene = Scene()
    services = [
        shell("first", "exec sleep 60"),
        shell("bad", "echo NIMBUS_JWT_SECRET: is required >&2; exit 2", exists(tmp_path / "never")),
    ]
    with trio.fail_after(LIMIT_S), pytest.raises(HostFault, match="NIMBUS_JWT_SECRET: is required") as caught:
        await run_stack(services, tmp_path, scene.report, trio.Event())
    assert "status 2" in str(caught.value)
    assert scene.words()[-1] == "stopped first"


async def test_a_failed_step_stops_the_stack(tmp_path: Path) -> None:
    step = shell("migrate", "echo no such table; exit 3", once=True)
    with trio.fail_after(LIMIT_S), pytest.raises(HostFault, match="no such table"):
        await run_stack([step], tmp_path, Scene().report, trio.Event())


async def test_a_crash_loop_stops_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_S", 0.01)  # a number of ours, not behaviour
    monkeypatch.setattr(supervisor, "BACKOFF_MAX_S", 0.01)
    scene = Scene()
    with trio.fail_after(LIMIT_S), pytest.raises(HostFault, match=r"died 5 times(.|\n)*out of luck"):
        await run_stack([shell("room", "echo out of luck; exit 1")], tmp_path, scene.report, trio.Event())
    assert scene.words().count("died room") == 4


async def test_stop_during_the_start_stops_what_runs(tmp_path: Path) -> None:
    scene, stop = Scene(), trio.Event()
    services = [shell("first", "exec sleep 60"), shell("slow", "exec sleep 60", exists(tmp_path / "never"))]
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_stack, services, tmp_path, scene.report, stop)
            await scene.wait_for(lambda words: "starting slow" in words)
            stop.set()
    assert scene.words()[-1] == "stopped first"
    assert list((tmp_path / "pids").iterdir()) == []


async def test_a_service_that_ignores_the_stop_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    script = (
        f"trap '' TERM; sleep 61 & echo $! > {tmp_path}/grandchild; touch {tmp_path}/up; while :; do sleep 62; done"
    )
    service = shell("stubborn", script, exists(tmp_path / "up"), stop_s=0.2)
    with trio.fail_after(LIMIT_S):
        async with open_child(service, tmp_path) as child:
            while not await trio.Path(tmp_path / "up").exists():  # noqa: ASYNC110 - a shell has no event for us
                await trio.sleep(0.01)
            grandchild = os.pidfd_open(int(await trio.Path(tmp_path / "grandchild").read_text()))
            leader = identify(child.pid)
    assert not is_alive(leader)
    assert ends_within(grandchild, LIMIT_S)  # it is init's by now, whose reaping nobody waits for
    os.close(grandchild)


async def test_what_a_service_prints_is_in_its_log_and_stdin_is_given(tmp_path: Path) -> None:
    service = shell("talker", "cat; echo error >&2", stdin=b"from stdin\n")
    with trio.fail_after(LIMIT_S):
        async with open_child(service, tmp_path) as child:
            assert await child.wait() == 0
    assert log_tail(tmp_path, "talker") == "from stdin\nerror"


SUPERVISOR = """
import sys, trio
from pathlib import Path
from nimbus.cli.stack.child import open_child
from nimbus.cli.stack.service import Service
async def main():
    async with open_child(Service("kid", ("sleep", "63"), {"PATH": "/usr/bin:/bin"}, None), Path(sys.argv[1])) as child:
        print(child.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_sigkill_of_the_supervisor_kills_its_children(tmp_path: Path) -> None:
    popen = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with popen:
        assert popen.stdout is not None
        kid = int(popen.stdout.readline())
        pidfd = os.pidfd_open(kid)
        _wait_exec(kid, "sleep")
        popen.kill()
    try:
        assert ends_within(pidfd, LIMIT_S)
    finally:
        os.close(pidfd)


def test_the_next_start_stops_what_an_earlier_supervisor_left(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "64"], start_new_session=True) as left:
        identity = identify(left.pid)
        (tmp_path / "pids").mkdir()
        (tmp_path / "pids" / "room").write_text(f"{identity.pid} {identity.start_ticks} {identity.boot_id} 15\n")
        assert sweep_leftovers(tmp_path) == ["room"]
        assert left.wait() == -signal.SIGTERM
    assert sweep_leftovers(tmp_path) == []


def test_a_recycled_pid_is_not_touched(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "65"], start_new_session=True) as stranger:
        identity = identify(stranger.pid)
        (tmp_path / "pids").mkdir()
        (tmp_path / "pids" / "room").write_text(f"{identity.pid} {identity.start_ticks - 1} {identity.boot_id} 15\n")
        assert sweep_leftovers(tmp_path) == []
        assert is_alive(identity)
        stranger.kill()


def test_a_torn_mark_is_only_removed(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "pids" / "room").write_text("12")
    assert sweep_leftovers(tmp_path) == []
    assert list((tmp_path / "pids").iterdir()) == []


def _wait_exec(pid: int, name: str) -> None:
    """Until setpriv has become the program: only then has it asked for the parent-death signal."""
    deadline = time.monotonic() + LIMIT_S
    while Path(f"/proc/{pid}/comm").read_text().strip() != name:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ends_within(pidfd: int, limit_s: float) -> bool:
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return bool(ended.poll(limit_s * 1000))
