"""The agent as a process: its exit status, and signals that come more than once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import needs_root

pytestmark = [needs_root, pytest.mark.root]


def start(state: Path, **more: str) -> subprocess.Popen[str]:
    env = {
        "PATH": os.environ["PATH"],
        "NIMBUS_AGENT_METRICS_PORT": "0",
        "NIMBUS_AGENT_ID": "a",
        "NIMBUS_CONTROL_PLANE_URL": "http://127.0.0.1:9",
        "NIMBUS_CONTROL_PLANE_TOKEN": "not-to-be-seen",
        "NIMBUS_STATE_DIR": str(state),
        "NIMBUS_VMM": "fake",
        **more,
    }
    argv = [sys.executable, "-m", "nimbus.host_agent.main"]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent that is ready."""
    with start(tmp_path) as process:
        try:
            assert process.stdout is not None
            assert any("agent.ready" in line for line in process.stdout)
            yield process
        finally:
            process.kill()


def test_signals_that_come_more_than_once_end_an_agent_as_one_does(agent: subprocess.Popen[str]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        agent.send_signal(signum)
    told, _ = agent.communicate(timeout=30)
    assert agent.returncode == 0
    assert "agent.stopped" in told
    assert "not-to-be-seen" not in told


def test_an_interrupt_while_an_agent_still_starts_ends_it_without_a_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "agent.starts")  # its first read hangs
    with start(tmp_path) as process:
        try:
            writer = open_once_read(tmp_path / "agent.starts")
            process.send_signal(signal.SIGINT)
            told, _ = process.communicate(timeout=30)
            os.close(writer)
        finally:
            process.kill()
    assert (process.returncode, told) == (-signal.SIGINT, "")


def open_once_read(fifo: Path) -> int:
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody reads it yet
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_second_agent_on_one_state_root_exits_75_and_says_why(agent: subprocess.Popen[str], tmp_path: Path) -> None:
    with start(tmp_path) as second:
        told, _ = second.communicate(timeout=30)
    assert second.returncode == 75
    assert "an agent runs on" in told


def test_a_bad_setting_exits_2_and_names_it(tmp_path: Path) -> None:
    with start(tmp_path, NIMBUS_AGENT_METRICS_PORT="99999") as process:
        told, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "NIMBUS_AGENT_METRICS_PORT" in told
