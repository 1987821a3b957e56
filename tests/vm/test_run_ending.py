"""`nimbus run` interrupted, killed, and used by two at once: whatever ends it, nothing of its VM is left."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import count
from pathlib import Path

import pytest

from nimbus.host.inventory import Territory
from nimbus.host_agent.attend import SILENCE_LIMIT_S
from tests.vm.conftest import open_small
from tests.vm.terminal import END_S, Started, Terminal, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.root]

ORPHAN_S = 2.0  # from SIGKILL of the supervisor to the death of its VM


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_job_ends_it_and_leaves_nothing(terminal: Terminal, signum: int) -> None:
    with terminal.start_ready() as process:
        process.send_signal(signum)
        assert process.wait(END_S) == 128 + signum
        assert not terminal.has_record()
        assert b"Traceback" not in read_stderr(process)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_host_prepares_leaves_nothing(terminal: Terminal, signum: int) -> None:
    with terminal.start("--", "sleep", "1000") as process:
        wait_until(terminal.has_record, 30)
        process.send_signal(signum)
        assert process.wait(END_S) == 128 + signum
        assert not terminal.has_record()
        assert b"Traceback" not in read_stderr(process)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_guest_boots_leaves_nothing(terminal: Terminal, signum: int) -> None:
    with terminal.start("--", "sleep", "1000") as process:
        wait_until(terminal.vmm_pids, 30)
        process.send_signal(signum)
        assert process.wait(END_S) == 128 + signum
        assert not terminal.has_record()
        assert b"Traceback" not in read_stderr(process)


def test_an_interrupt_before_there_is_a_vm_leaves_nothing(terminal: Terminal) -> None:
    for after_ms in (0, 60, 120, 180, 240, 300, 360, 420):
        with terminal.start("--", "sleep", "1000", env={"PYTHONPROFILEIMPORTTIME": "1"}) as process:
            wait_until_ours(process)
            time.sleep(after_ms / 1000)  # wherever in its start that is: each is a case of its own
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=END_S)
            # A shell says 130 for both: caught by us, or the kernel's default effect while we still load.
            assert process.returncode in {130, -signal.SIGINT}
            assert not terminal.has_record()


def test_an_impatient_person_changes_nothing(terminal: Terminal) -> None:
    with terminal.start_ready() as process:
        while process.poll() is None:
            press_ctrl_c(process)
            time.sleep(0.005)
        assert process.returncode == 130
        assert not terminal.has_record()
        assert b"Traceback" not in read_stderr(process)


def test_an_impatient_person_changes_nothing_while_the_host_prepares(terminal: Terminal) -> None:
    with terminal.start("--", "sleep", "1000") as process:
        wait_until(terminal.has_record, 30)
        while process.poll() is None:
            press_ctrl_c(process)
            time.sleep(0.005)
        assert process.returncode == 130
        assert not terminal.has_record()
        assert b"Traceback" not in read_stderr(process)


def test_a_run_that_was_told_to_ignore_hangups_lives_on(terminal: Terminal) -> None:
    with terminal.start_ready(before=("nohup",)) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 143


def test_a_vm_does_not_outlive_its_killed_supervisor(terminal: Terminal) -> None:
    with terminal.start_ready() as process:
        assert terminal.vmm_pids()
        process.kill()
        wait_until(lambda: not terminal.vmm_pids(), ORPHAN_S)
        process.wait(END_S)
    assert terminal.has_record()
    purged = terminal.call("vms", "purge", "--all")
    assert (purged.returncode, purged.stdout[:11]) == (0, b"torn down: ")
    assert not terminal.has_record()


def test_a_supervisor_killed_while_its_guest_boots_is_cleaned_up_too(terminal: Terminal) -> None:
    with terminal.start("--", "sleep", "1000") as process:
        wait_until(terminal.vmm_pids, 30)
        process.kill()
        wait_until(lambda: not terminal.vmm_pids(), ORPHAN_S)
    assert terminal.call("vms", "purge", "--all").returncode == 0
    assert not terminal.has_record()


def test_a_purge_leaves_the_vms_of_the_living_alone(terminal: Terminal, other_terminal: Terminal) -> None:
    with terminal.start_ready() as mine, terminal.start_ready() as yours, other_terminal.start_ready() as elsewhere:
        purged = terminal.call("vms", "purge", "--all")
        assert b"torn down: nothing was left\nleft alone, a live process supervises them: " in purged.stdout
        assert b"nothing was left\n" in other_terminal.call("vms", "purge", "--all").stdout
        listed = terminal.call("vms", "list").stdout
        assert listed.count(b"running") == 2
        for process in (mine, yours, elsewhere):
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert [process.wait(END_S) for process in (mine, yours, elsewhere)] == [130, 130, 130]


def test_the_end_of_one_run_is_not_the_end_of_its_neighbour(terminal: Terminal) -> None:
    with terminal.start_ready() as first, terminal.start_ready() as second:
        first.send_signal(signal.SIGTERM)
        assert first.wait(END_S) == 143
        purged = terminal.call("vms", "purge", "--all")
        assert b"left alone" in purged.stdout
        assert second.poll() is None
        assert len(terminal.vmm_pids()) == 1
        second.send_signal(signal.SIGINT)
        assert second.wait(END_S) == 130


def test_a_purge_in_a_folder_of_the_same_short_name_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    name = terminal.territory.prefix
    territories = (Territory(tmp_path / str(number), terminal.territory.runtime_dir) for number in count())
    twin = next(territory for territory in territories if territory.prefix == name)
    with terminal.start_ready() as process:
        refused = Terminal(twin).call("vms", "purge", "--all")
        assert refused.returncode == 2
        assert str(terminal.territory.state_root) in refused.stderr.decode()
        assert terminal.vmm_pids()
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 143


@pytest.mark.slow
def test_a_disk_that_fills_up_under_a_job_is_the_hosts_fault_and_said_soon(terminal: Terminal) -> None:
    with open_small(terminal, size_mib=280) as small:
        began = time.monotonic()
        done = small.run("--json", "--", "sh", "-c", "head -c 400000000 /dev/zero > /big && sync; echo ended $?")
        assert time.monotonic() - began < SILENCE_LIMIT_S
    told = json.loads(done.stdout)
    assert (done.returncode, told["ending"]) == (125, "host_fault")
    assert "the host's disk became full" in told["cause"]


def press_ctrl_c(process: Started) -> None:
    """To the whole process group, as a terminal does: the tools that it runs just now are hit too."""
    os.killpg(process.pid, signal.SIGINT)


def wait_until_ours(process: Started) -> None:
    """Until the interpreter's own start is over and the package is found. Before that Python imports `site` and what
    hangs on it under its own handler: an interrupt is status 1 there, or swallowed, whatever the program.
    """
    assert process.stderr is not None
    assert any(line.endswith(b"| nimbus\n") for line in process.stderr)


def read_stderr(process: Started) -> bytes:
    assert process.stderr is not None
    return process.stderr.read()
