"""`nimbus vms inspect` and `logs` on a guest that really runs, and on what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.vm.terminal import LIMIT_S, NIMBUS, Terminal

pytestmark = [pytest.mark.root, pytest.mark.vm]


def find_vm(terminal: Terminal) -> str:
    (row,) = json.loads(terminal.call("vms", "list", "--json").stdout)
    assert row["state"] == "running"
    return str(row["vm"])


def test_a_page_of_a_living_vm_names_its_processes_and_what_it_uses(terminal: Terminal) -> None:
    with terminal.start_ready() as run:
        page = json.loads(terminal.call("vms", "inspect", find_vm(terminal), "--json").stdout)
        assert (page["keeper"]["alive"], page["vmm"]["alive"]) == (True, True)
        assert page["vmm"]["pid"] in terminal.vmm_pids()
        assert page["usage"]["cpu_ms"] > 0
        assert page["deadline_left_s"] is None
        run.send_signal(signal.SIGINT)
        assert run.wait(LIMIT_S) == 130


def test_a_followed_console_ends_with_its_vm(terminal: Terminal) -> None:
    with terminal.start_ready() as run:
        argv = [*NIMBUS, "vms", "logs", "--follow", find_vm(terminal)]
        env = {**os.environ, "NIMBUS_STATE_DIR": str(terminal.territory.state_root)}
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            first = following.stdout.readline()
            run.send_signal(signal.SIGINT)
            assert run.wait(LIMIT_S) == 130
            rest = following.stdout.read()
            assert following.wait(LIMIT_S) == 0
    assert "nimbus-init: the job runs as process" in first + rest
