"""`nimbus up --sim` as a user starts it: everything real, ready, reachable, and gone after Ctrl-C or kill -9."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import needs_root

pytestmark = [pytest.mark.root, pytest.mark.services, needs_root]

LIMIT_S = 120.0
SERVICES = {"postgres", "redis", "control-plane", "logging-pipeline", "sim", "host-agent"}


class Up:
    """A running `nimbus up --json` and what it said so far."""

    def __init__(self, popen: subprocess.Popen[str], state: Path) -> None:
        self.popen = popen
        self.state = state
        self.events: list[dict[str, Any]] = []

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"nimbus up ended without {event!r}: {self.events}")

    def pids(self) -> dict[str, int]:
        return {e["service"]: e["pid"] for e in self.events if e["event"] == "ready"}


@contextmanager
def running_up(state: Path) -> Iterator[Up]:
    argv = [sys.executable, "-m", "nimbus", "up", "--sim", "--free-ports", "--json", "--state", str(state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        up = Up(popen, state)
        try:
            yield up
        finally:
            if popen.poll() is None:
                popen.send_signal(signal.SIGTERM)
            popen.communicate(timeout=LIMIT_S)


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def all_end(pidfds: dict[str, int]) -> set[str]:
    """The names of those that do not end within the limit."""
    late = set()
    for name, fd in pidfds.items():
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(LIMIT_S * 1000):
            late.add(name)
        os.close(fd)
    return late


def test_all_is_reachable_and_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        ready = up.wait_for("up")
        pids = up.pids()
        pidfds = {name: os.pidfd_open(pid) for name, pid in pids.items()}
        assert set(pids) == SERVICES
        assert fetch(ready["urls"]["control_plane"] + "/healthz")[0] == 200
        assert fetch(ready["urls"]["logs"] + "/healthz")[0] == 200
        status, keys = fetch(ready["urls"]["control_plane"] + "/.well-known/jwks.json")
        assert (status, len(json.loads(keys)["keys"])) == (200, 2)  # agents' and machines'
        assert fetch(ready["urls"]["control_plane"] + "/api/jobs/recent")[0] == 401
        up.popen.send_signal(signal.SIGINT)
        for name in ("host-agent", "sim", "logging-pipeline", "control-plane", "redis", "postgres"):
            assert up.wait_for("stopped")["service"] == name
        assert up.popen.wait(LIMIT_S) == 0
    assert all_end(pidfds) == set()
    assert list((tmp_path / "pids").iterdir()) == []
    assert not (tmp_path / "env").exists()


def test_kill_9_of_the_supervisor_ends_all_and_the_next_start_works(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        up.wait_for("up")
        pidfds = {name: os.pidfd_open(pid) for name, pid in up.pids().items()}
        up.popen.kill()
        assert all_end(pidfds) == set()
    with running_up(tmp_path) as again:
        assert set(again.wait_for("up")["urls"]) == {"control_plane", "logs", "sim"}


def test_a_second_stack_on_the_same_state_exits_75(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        up.wait_for("ready")
        argv = [sys.executable, "-m", "nimbus", "up", "--sim", "--free-ports", "--state", str(tmp_path)]
        second = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert second.returncode == 75
    assert "already runs" in second.stderr


def test_the_command_line_of_a_service_shows_no_secret(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        up.wait_for("up")
        lines = (tmp_path / "secrets.env").read_text().splitlines()
        shown = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in up.pids().values())
    assert [line for line in lines if line.partition("=")[2].encode() in shown] == []
