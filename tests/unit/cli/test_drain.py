"""`nimbus agent drain` and `status` against a stand-in that holds the agent's lock and hears its signals.

The real agent's part is in tests/acceptance/test_drain.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nimbus.cli.drain import Progress, render
from nimbus.host import process
from nimbus.host_agent.ledger import Ledger
from nimbus.host_agent.sight.presence import find_agent
from nimbus.model.errors import Conflict
from nimbus.model.ids import new_vm_id
from nimbus.model.lease import LeaseKey
from nimbus.model.record import Record
from nimbus.model.vm import Claim

LIMIT_S = 60.0
# Leaves at SIGUSR1 once its ledger is empty, at SIGINT at once after emptying it, at SIGTERM without a word.
STAND_IN = """
import fcntl, os, pathlib, signal, sys, threading
state = pathlib.Path(sys.argv[1])
signals = {signal.SIGUSR1, signal.SIGINT}
lock = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, f"{os.getpid()}\\n".encode())
heard, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
os.set_blocking(heard, True)
signal.set_wakeup_fd(wake)
for signum in signals:
    signal.signal(signum, lambda *_: None)
print("ready", flush=True)
told = os.read(heard, 1)[0]
print(signal.Signals(told).name, flush=True)
while told == signal.SIGUSR1 and (left := list((state / "ledger").glob("*.json"))):
    if os.read(heard, 1)[0] == signal.SIGINT:
        print("SIGINT", flush=True)
        break
for page in (state / "ledger").glob("*"):
    page.unlink()
"""


@contextmanager
def stand_in(state: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", STAND_IN, str(state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "ready\n"
            yield agent
        finally:
            agent.kill()


def leave_machine(state: Path) -> str:
    """A leased machine's record, whose supervisor is gone."""
    vm = new_vm_id()
    lease = LeaseKey(7, "00000000-0000-4000-8000-000000000001", 3)
    value = Record(vm=vm, created_at=0, boot_id="", backend="fake", plan={}, claims=(Claim.JAIL,), lease=lease)
    with Ledger(state / "ledger").create(value):
        pass
    return str(vm)


def environment(state: Path) -> dict[str, str]:
    return {**os.environ, "NIMBUS_STATE_DIR": str(state)}


def nimbus(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nimbus", "agent", *words]
    return subprocess.run(argv, env=environment(state), capture_output=True, text=True, timeout=LIMIT_S, check=False)


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_idle_agent_is_drained_at_once(tmp_path: Path) -> None:
    with stand_in(tmp_path) as agent:
        done = nimbus(tmp_path, "drain")
        assert agent.wait(LIMIT_S) == 0
        assert agent.stdout is not None
        assert agent.stdout.read() == "SIGUSR1\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"draining agent {agent.pid}: no new job; no machine left\nagent {agent.pid} has left; no machine left behind\n"
    )


def test_each_change_is_one_line_until_the_last_machine_is_gone(tmp_path: Path) -> None:
    vms = sorted([leave_machine(tmp_path), leave_machine(tmp_path)])
    with stand_in(tmp_path) as agent:
        argv = [sys.executable, "-m", "nimbus", "agent", "drain", "--json"]
        with subprocess.Popen(argv, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as drain:
            assert drain.stdout is not None
            first = json.loads(drain.stdout.readline())
            Ledger(tmp_path / "ledger").remove(next(vm for vm in Ledger(tmp_path / "ledger").vms()))
            second = json.loads(drain.stdout.readline())
            Ledger(tmp_path / "ledger").remove(next(vm for vm in Ledger(tmp_path / "ledger").vms()))
            third = json.loads(drain.stdout.readline())
            agent.send_signal(signal.SIGUSR1)  # the stand-in looks at its ledger when it is asked
            rest = drain.stdout.read()
            status = drain.wait(LIMIT_S)
    assert (first["event"], first["agent"], sorted(first["left"])) == ("draining", agent.pid, vms)
    assert (second["left"], third["left"]) == (vms[1:], [])
    assert json.loads(rest) == {"event": "ended", "agent": agent.pid, "left": [], "untold": []}
    assert status == 0


def test_when_time_is_up_what_still_runs_is_torn_down(tmp_path: Path) -> None:
    leave_machine(tmp_path)
    with stand_in(tmp_path) as agent:
        done = nimbus(tmp_path, "drain", "--within", "0.5", "--json")
        assert agent.wait(LIMIT_S) == 0
        assert agent.stdout is not None
        assert agent.stdout.read() == "SIGUSR1\nSIGINT\n"
    assert done.returncode == 1
    told = events(done)
    assert [line["event"] for line in told if line["left"]] == ["draining", "tearing_down"]
    assert (told[-1]["event"], told[-1]["left"]) == ("ended", [])


def test_an_agent_that_is_killed_meanwhile_was_not_drained(tmp_path: Path) -> None:
    vm = leave_machine(tmp_path)
    with stand_in(tmp_path) as agent:
        argv = [sys.executable, "-m", "nimbus", "agent", "drain"]
        with subprocess.Popen(argv, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as drain:
            assert drain.stdout is not None
            assert "1 machine left" in drain.stdout.readline()
            agent.kill()
            rest = drain.stdout.read()
    assert drain.returncode == 1
    assert f"1 machine left behind ({vm})" in rest
    assert "nimbus vms purge --all" in rest


def test_ctrl_c_ends_the_watching_and_not_the_agent(tmp_path: Path) -> None:
    leave_machine(tmp_path)
    with stand_in(tmp_path) as agent:
        argv = [sys.executable, "-m", "nimbus", "agent", "drain"]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, env=environment(tmp_path), stdout=pipe, stderr=pipe, text=True) as drain:
            assert drain.stdout is not None
            drain.stdout.readline()
            drain.send_signal(signal.SIGINT)
            _, errors = drain.communicate(timeout=LIMIT_S)
        assert agent.poll() is None
    assert drain.returncode == 130
    assert errors == f"nimbus: no longer watching; agent {agent.pid} goes on draining\n"


@pytest.mark.parametrize("word", ["drain", "status"])
def test_without_an_agent_the_exit_status_and_the_message_say_so(tmp_path: Path, word: str) -> None:
    done = nimbus(tmp_path, word)
    assert (done.returncode, done.stdout) == (69, "")
    assert f"no agent runs on {tmp_path}" in done.stderr


def test_the_status_names_the_process_and_what_its_ledger_holds(tmp_path: Path) -> None:
    leave_machine(tmp_path)
    with stand_in(tmp_path) as agent:
        done = nimbus(tmp_path, "status", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["pid"], told["machines"]) == (0, agent.pid, {"orphan": 1})
    assert abs(told["since"] - time.time()) < LIMIT_S


def test_a_lock_file_of_a_dead_agent_is_no_agent(tmp_path: Path) -> None:
    (tmp_path / "agent.lock").write_text(f"{os.getpid()}\n")
    assert find_agent(tmp_path) is None


def test_a_pid_that_does_not_hold_the_file_is_nobody_to_signal(tmp_path: Path) -> None:
    with stand_in(tmp_path) as agent:
        assert find_agent(tmp_path) == process.identify(agent.pid)
        (tmp_path / "agent.lock").write_text("1\n")
        with pytest.raises(Conflict, match="does not say which process"):
            find_agent(tmp_path)


def test_an_end_that_was_not_told_is_said_when_the_agent_has_left() -> None:
    line = render(Progress("ended", 12, untold=("0badcafe",)))
    assert line.startswith("agent 12 has left; no machine left behind\n")
    assert "not told to the control plane yet: 0badcafe" in line
