"""`nimbus hosts`: what an operator sees and says, against a real control plane."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio

from nimbus.cli.hosts import describe_progress, plan_progress, render_host, row
from tests.unit.control_plane.plane import ADMIN_SECRET, Plane, open_plane

HOST: dict[str, Any] = {
    "agent_id": "host-1",
    "state": "working",
    "doing": "working",
    "wanted": "working",
    "wanted_by": None,
    "wanted_at": None,
    "drained": False,
    "version": "0.0.9",
    "behind": True,
    "vmm": "qemu",
    "arch": "x64",
    "labels": ["nimbus"],
    "cpus": 8,
    "free_cpus": 6,
    "mem_mib": 16384,
    "free_mem_mib": 12288,
    "slots": 64,
    "free_slots": 63,
    "disk_mib": 204800,
    "free_disk_mib": None,
    "pool": {"warm": 2},
    "machines": 1,
    "silent_s": 3.2,
    "problems": [],
}
LEASED = {"machine_id": 12, "fence": 3, "state": "running", "job_id": 7}
RECORD = {"vm": "0a1b2c3d", "state": "running", "machine_id": 12, "claims": ["slot", "vmm"]}


def test_a_line_tells_what_is_left_of_what() -> None:
    line = row(HOST)
    assert line[:10] == ("host-1", "working", "1", "6/8", "12/16G", "63/64", "-/200G", "2", "0.0.9 (behind)", "3 s ago")


def test_what_a_host_says_of_itself_never_drives_the_terminal() -> None:
    evil = HOST | {"agent_id": "\x1b[2J", "vmm": "\x1b]0;x\x07", "labels": ["\x9b1m"], "version": "\x1b[31m"}
    page = "\n".join(row(evil)) + render_host(evil | {"leased": [], "records": [RECORD | {"claims": ["\x1b[1m"]}]})
    assert not any(letter in page for letter in "\x1b\x07\x9b")


def test_the_page_of_a_host_shows_its_machines_and_its_ledger_and_says_when_that_is_away() -> None:
    shown = render_host(HOST | {"leased": [LEASED], "records": [RECORD], "wanted_by": "al", "wanted_at": "2026-11-21T"})
    away = render_host(HOST | {"leased": [], "records": None})
    assert ["12", "3", "running", "7"] in [line.split() for line in shown.splitlines()]
    assert ["0a1b2c3d", "running", "12", "slot", "vmm"] in [line.split() for line in shown.splitlines()]
    assert "NIMBUS_AGENT_STATE_DATABASE_URL" in away


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "host host-1 takes jobs"),
        ({"wanted": "cordoned"}, "host host-1 takes no new job; 1 machine left (job 7)"),
        ({"wanted": "drained"}, "host host-1 drains: 1 machine left (job 7)"),
        (
            {"wanted": "drained", "machines": 0, "leased": []},
            "host host-1 drains: no job is left, it gives up what waits there",
        ),
        (
            {"wanted": "drained", "machines": 0, "leased": [], "drained": True},
            "host host-1 is drained: nothing is left on it",
        ),
    ],
)
def test_each_step_of_a_drain_has_a_line(changes: dict[str, object], line: str) -> None:
    assert describe_progress(HOST | {"leased": [LEASED]} | changes) == line


def test_a_program_is_told_what_is_left() -> None:
    assert plan_progress(HOST | {"leased": [LEASED]}) == {
        "host": "host-1",
        "state": "working",
        "drained": False,
        "left": [{"machine_id": 12, "job_id": 7, "state": "running"}],
    }


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
async def plane(database_dsn: str, redis_url: str) -> AsyncIterator[Plane]:
    async with open_plane(database_dsn, redis_url) as opened:
        yield opened


async def run(plane: Plane, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "NIMBUS_JWT_SECRET": ADMIN_SECRET, "NIMBUS_CONTROL_PLANE_URL": plane.url}
    env |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    argv = [sys.executable, "-m", "nimbus", "hosts", *words]
    command = partial(subprocess.run, argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    return await trio.to_thread.run_sync(command)


@pytest.mark.services
async def test_a_host_is_cordoned_drained_and_put_back_to_work_by_the_command(plane: Plane) -> None:
    await plane.enrol("host-1")
    cordoned = await run(plane, "cordon", "host-1")
    listed = json.loads((await run(plane, "list", "--json")).stdout)
    drained = await run(plane, "drain", "host-1", "--wait")
    back = await run(plane, "uncordon", "host-1")
    shown = await run(plane, "show", "host-1")
    assert cordoned.stdout == "host host-1 takes no new job; nothing runs on it\n"
    assert [(host["agent_id"], host["state"]) for host in listed["hosts"]] == [("host-1", "cordoned")]
    assert (drained.returncode, drained.stdout) == (0, "host host-1 is drained: nothing is left on it\n")
    assert back.stdout == "host host-1 takes jobs\n"
    assert "working" in shown.stdout


@pytest.mark.services
async def test_what_cannot_be_done_is_said_in_one_line(plane: Plane) -> None:
    await plane.enrol("host-1")
    unknown = await run(plane, "cordon", "host-2")
    speaks = await run(plane, "forget", "host-1")
    await plane.sql("UPDATE agents SET last_seen = clock_timestamp() - interval '1 hour'")
    forgotten = await run(plane, "forget", "host-1")
    none = await run(plane, "list")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "no host host-2" in unknown.stderr
    assert speaks.returncode == 1
    assert "stop its agent first" in speaks.stderr
    assert forgotten.stdout == "host host-1 is forgotten\n"
    assert "no host has enrolled" in none.stdout
