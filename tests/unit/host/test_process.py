"""host/process.py: a pid is not enough to know a process by."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.host import process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        yield child
        child.kill()


def test_we_know_ourselves() -> None:
    me = process.identify(os.getpid())
    assert me.pid == os.getpid()
    assert me.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert process.is_alive(me)


def test_nobody_has_pid_zero() -> None:
    with pytest.raises(ProcessLookupError):
        process.identify(0)


def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process.identify(sleeper.pid)
    assert process.is_alive(identity)
    sleeper.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(identity)


def test_a_process_that_is_reaped_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process.identify(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not process.is_alive(identity)
    with pytest.raises(ProcessLookupError):
        process.open_pidfd(identity)


def test_a_later_process_with_the_same_pid_is_another(sleeper: subprocess.Popen[bytes]) -> None:
    earlier = replace(process.identify(sleeper.pid), start_ticks=1)
    assert not process.is_alive(earlier)
    with pytest.raises(ProcessLookupError):
        process.open_pidfd(earlier)


def test_a_process_of_another_boot_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    assert not process.is_alive(replace(process.identify(sleeper.pid), boot_id="another"))


def test_a_refused_descriptor_is_not_leaked(sleeper: subprocess.Popen[bytes]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ProcessLookupError):
        process.open_pidfd(replace(process.identify(sleeper.pid), start_ticks=1))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_names_its_process_until_it_is_reaped(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = process.open_pidfd(process.identify(sleeper.pid))
    assert process.pid_behind(pidfd) == sleeper.pid
    sleeper.kill()
    sleeper.wait()
    assert process.pid_behind(pidfd) is None
    os.close(pidfd)


def test_a_descriptor_of_something_else_names_no_process() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(OSError, match="names no process"):
        process.pid_behind(fd)
    os.close(fd)


def test_a_name_with_brackets_and_spaces_does_not_shift_the_fields(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 ("
    shutil.copy("/bin/sleep", odd)
    with subprocess.Popen([odd, "1000"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG)
        ticks = process.start_ticks(child.pid)
        child.kill()
    assert ticks >= process.start_ticks(os.getpid())


def test_threads_are_found_by_their_own_numbers_while_others_of_the_process_come_and_go() -> None:
    churn = "import threading\nprint('up', flush=True)\nwhile True: threading.Thread(target=int).start()"
    with subprocess.Popen([sys.executable, "-c", churn], stdout=subprocess.PIPE) as restless:
        try:
            assert restless.stdout is not None
            restless.stdout.readline()
            looks = {process.find_threads(restless.pid, (restless.pid,)) for _ in range(1000)}
        finally:
            restless.kill()
    assert looks == {(restless.pid,)}


def test_a_thread_that_a_process_has_not_is_one_that_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ProcessLookupError, match="has ended"):
        process.find_threads(sleeper.pid, (sleeper.pid, 1))
