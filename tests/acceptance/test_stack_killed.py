"""SIGKILL for everything in the middle of its jobs: the next start goes on with them, or with the work after a purge.

GitHub is not ours and lives on. The VMs live on too, under their keepers, until a purge.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from nimbus.host.inventory import Territory, leftovers
from nimbus.host_agent.ledger import Ledger
from nimbus.model.record import Record
from tests.acceptance.gate import WAIT, Gate, running_gate
from tests.acceptance.github import ForeignGithub, running_github
from tests.acceptance.stack import Json, Stack, find_leaks, prepare_state, running_stack, wait_idle, wait_until
from tests.guests import count_boots
from tests.hosts import needs_root, require_guest
from tests.oracle import RUNTIME_DIR

pytestmark = [pytest.mark.root, pytest.mark.services, pytest.mark.vm, pytest.mark.slow, needs_root]


def settings(github: ForeignGithub, gate: Gate) -> dict[str, str]:
    ports = f"{github.guest_ports},{gate.guest_ports}"
    return {**github.settings, "NIMBUS_GUEST_PORTS": ports, "NIMBUS_AGENT_CPU_OVERCOMMIT": "2"}


def working_on(state: Path) -> set[str]:
    """Processes that stand in the state folder or hold a file of it open; ours and the VMs' are none of them."""
    found = set()
    vms = str(state / "vms")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
            targets = [os.readlink(link) for link in links]
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if any(to.startswith(f"{state}/") and not to.startswith(vms) for to in targets):
                found.add(f"{pid} {name}")
    return found


def begin_three(stack: Stack, github: ForeignGithub) -> tuple[int, Json, Json]:
    """A job of our API and one of GitHub's, both running; a third that GitHub has not seen begin.

    Ends with GitHub frozen, so that the third stays there.
    """
    github.relay.lead_to(stack)
    ours = stack.submit(f"echo begun; {WAIT}; echo ended")
    taken = github.door.start(f"echo begun; {WAIT}")
    for job_id in (ours, taken["jobs"][0]["job_id"]):
        stack.wait_job(job_id, "in_progress")
        stack.wait_output(job_id, "begun")
    late = github.door.start("echo better late than never")
    stack.wait_job(late["jobs"][0]["job_id"], "queued")
    return ours, taken, late


def read_records(state: Path) -> list[Record]:
    ledger = Ledger(state / "ledger")
    return [record for vm in ledger.vms() if (record := ledger.read(vm)) is not None]


def test_a_purge_cleans_the_host_and_the_next_start_goes_on(tmp_path: Path) -> None:
    require_guest()
    state = prepare_state(tmp_path / "state")
    with running_gate() as gate, running_github(tmp_path / "github.log") as github:
        with running_stack(state, **settings(github, gate)) as killed:
            ours, taken, late = begin_three(killed, github)
            with github.frozen():
                wait_until(lambda: len(list((state / "ledger").glob("*.json"))) == 3, "three VMs in the ledger")
                queued = killed.job(late["jobs"][0]["job_id"])
                killed.kill_all()
        count_boots("qemu", 2)  # the third may not have come so far
        wait_until(lambda: not working_on(state), "the embedded servers have ended")
        living = [leak for leak in leftovers(Territory(state, RUNTIME_DIR)) if "qemu-system" in leak.name]
        purged = killed.run("vms", "purge", "--all", "--json")
        leaks = find_leaks(state)
        assert (queued["state"], len(living) >= 2) == ("queued", True)
        assert (purged.returncode, len(json.loads(purged.stdout)["reaped"])) == (0, 3)
        assert leaks == ()

        gate.open()
        with running_stack(state, **settings(github, gate)) as again:
            github.relay.lead_to(again)
            lost = again.wait_job(taken["jobs"][0]["job_id"], "lost")
            served = again.wait_job(ours, "completed")
            ended = github.door.wait_end(late)
            caught_up = again.wait_job(late["jobs"][0]["job_id"], "completed")
            wait_idle(again)
            again.count_guests()
            output = again.output(caught_up["job_id"])
            told = again.output(ours)
        assert again.popen.returncode == 0
    assert (served["conclusion"], served["machines"][0]["fence"]) == ("success", 2)
    assert told == "begun\nbegun\nopen\nended\n"
    assert (ended["conclusion"], caught_up["conclusion"]) == ("success", "success")
    assert caught_up["machines"][0]["fence"] == 2
    assert "better late than never" in output
    assert (lost["machines"][0]["state"], "was started anew" in lost["cause"]) == ("lost", True)
    assert find_leaks(state) == ()


def test_the_next_start_goes_on_with_the_vms_that_live(tmp_path: Path) -> None:
    require_guest()
    state = prepare_state(tmp_path / "state")
    with running_gate() as gate, running_github(tmp_path / "github.log") as github:
        with running_stack(state, **settings(github, gate)) as killed:
            github.relay.lead_to(killed)
            ours = killed.submit(f"echo begun; {WAIT}; exit 7")
            taken = github.door.start(f"echo begun; {WAIT}")
            for job_id in (ours, taken["jobs"][0]["job_id"]):
                killed.wait_job(job_id, "in_progress")
                killed.wait_output(job_id, "begun")
            killed.kill_all()
        wait_until(lambda: not working_on(state), "the embedded servers have ended")
        before = {record.vm: record.keeper for record in read_records(state)}
        with running_stack(state, **settings(github, gate)) as again:
            github.relay.lead_to(again)
            after = {record.vm: record.keeper for record in read_records(state)}
            gate.open()
            own = again.wait_job(ours, "completed")
            linked = again.wait_job(taken["jobs"][0]["job_id"], "completed")
            ended = github.door.wait_end(taken)
            wait_idle(again)
            again.count_guests()
        assert again.popen.returncode == 0
    assert (len(before), after) == (2, before)
    assert (own["conclusion"], own["machines"][0]["exit_code"], own["machines"][0]["fence"]) == ("failure", 7, 1)
    assert (ended["conclusion"], linked["conclusion"], linked["machines"][0]["fence"]) == ("success", "success", 1)
    assert find_leaks(state) == ()
