"""`nimbus doctor` on this host: it tries real things, and nothing of them stays, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nimbus.host import cgroup, link, netns, nft, probes
from nimbus.host.disk import remove_tree
from nimbus.host.inventory import Territory
from nimbus.host_agent.doctor.rounds import CHECKS
from nimbus.host_agent.ledger import Ledger
from nimbus.model.ids import new_vm_id, object_name, state_root_id
from nimbus.model.record import Record
from nimbus.model.vm import Claim
from tests.hosts import needs_root
from tests.oracle import open_territory, watch_leaks

pytestmark = [needs_root, pytest.mark.root]

LIMIT_S = 120.0
ARGV = (sys.executable, "-m", "nimbus", "doctor")


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as found, watch_leaks(found):
        yield found


def environment(territory: Territory) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIMBUS_")}
    return {**inherited, "NIMBUS_STATE_DIR": str(territory.state_root), "NIMBUS_VMM": "fake"}


def examine(territory: Territory, *before: str) -> dict[str, dict[str, str]]:
    """The worst finding of each name."""
    argv = [*before, *ARGV, "--json"]
    done = subprocess.run(
        argv, env=environment(territory), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    found = json.loads(done.stdout)
    assert all(set(finding) == {"name", "verdict", "detail", "remedy"} for finding in found), done.stderr
    assert all(finding["remedy"] for finding in found if finding["verdict"] != "ok")
    assert done.returncode == (1 if any(finding["verdict"] == "broken" for finding in found) else 0)
    order = ["ok", "degraded", "broken"]
    return {finding["name"]: finding for finding in sorted(found, key=lambda f: order.index(f["verdict"]))}


def find_probes(pid: int) -> list[str]:
    """What a doctor of this pid has on the host now."""
    name = probes.probe_name(pid)
    return [*netns.list_netns(name), *link.list_links(name), *cgroup.list_cgroups(name), *nft.list_tables(name)]


def test_this_host_runs_vms_and_every_check_says_something(territory: Territory) -> None:
    found = examine(territory)
    assert set(CHECKS) <= set(found)
    broken = {name: finding for name, finding in found.items() if finding["verdict"] == "broken"}
    assert broken == {}


def test_nothing_of_an_examination_stays(territory: Territory) -> None:
    before = {path: sorted(os.listdir(path)) for path in (territory.state_root, "/sys/fs/cgroup")}
    with subprocess.Popen(ARGV, env=environment(territory), stdout=subprocess.DEVNULL) as doctor:
        assert doctor.wait(LIMIT_S) == 0
    assert find_probes(doctor.pid) == []
    assert {path: sorted(os.listdir(path)) for path in before} == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", [1, 4, 9])
def test_a_signal_in_the_middle_leaves_nothing_either(territory: Territory, signum: int, line: int) -> None:
    env = {**environment(territory), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(ARGV, env=env, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as doctor:
        assert doctor.stdout is not None
        for _ in range(line):
            doctor.stdout.readline()
        doctor.send_signal(signum)
        doctor.communicate(timeout=LIMIT_S)
    assert find_probes(doctor.pid) == []


def test_probes_of_a_doctor_that_was_killed_are_removed_by_the_next_and_those_of_a_living_one_are_not(
    territory: Territory,
) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    dead = probes.probe_name(gone.pid)
    netns.ensure_netns(dead)
    (cgroup.cgroup_mount() / cgroup.PARENT / dead).mkdir(parents=True)
    with probes.open_network(), probes.open_cgroup():
        examine(territory)
        assert find_probes(gone.pid) == []
        assert len(find_probes(os.getpid())) == 3
    assert find_probes(os.getpid()) == []


def test_an_orphan_and_a_thing_without_a_record_are_found(territory: Territory) -> None:
    orphan, nameless = new_vm_id(), new_vm_id()
    record = Record(vm=orphan, created_at=0, boot_id="gone", backend="fake", plan={}, claims=(Claim.JAIL,))
    ledger = Ledger(territory.state_root / "ledger")
    with ledger.create(record):
        pass
    name = object_name(state_root_id(str(territory.state_root)), nameless)
    netns.ensure_netns(name)
    try:
        found = examine(territory)
    finally:
        netns.remove_netns(name)
        ledger.remove(orphan)
    assert str(orphan) in found["ledger"]["detail"]
    assert str(nameless) in found["leftovers"]["detail"]
    assert found["leftovers"]["remedy"] == "nimbus vms purge --all"


def test_without_rights_it_says_so_and_tries_nothing(territory: Territory) -> None:
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # a checkout may be its owner's alone
    found = examine(territory, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *may_read, "--")
    assert found["privileges"]["verdict"] == "broken"
    assert "takes root" in found["network"]["detail"]


def test_a_folder_that_is_not_there_yet_is_not_made(territory: Territory) -> None:
    absent = Territory(territory.state_root / "not" / "yet", territory.runtime_dir)
    examine(absent)
    assert not Path(absent.state_root).parent.exists()
    with suppress(FileNotFoundError):
        remove_tree(absent.state_root)
