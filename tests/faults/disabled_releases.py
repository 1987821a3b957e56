"""Disables each release in turn, in a copy of the tree, and runs the test that must fail then. Part of `make faults`.

    python -m tests.faults.disabled_releases [--only WORD] [--at-once 2]

A release whose absence no test notices is printed as `survived`, and the exit status is 1. So it is where a change does
not fit the source any more: whoever rewrites a release says here how it is disabled.
Never touches the tree itself: each worker has a copy of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import trio

from nimbus.host.disk import remove_tree
from nimbus.host_agent.plan import HostLayout
from nimbus.host_agent.reaper import reap
from tests.oracle import ROOTS_TOLD, RUNTIME_DIR

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
LEAVES_NOTHING = "tests/faults/test_releases.py::test_a_machine_that_ended_leaves_nothing"
CANCELLED = "tests/faults/test_releases.py::test_a_machine_that_is_cancelled_in_its_job_has_no_vmm_when_its_output_ends"

CLONE = "tests/faults/test_releases.py::test_a_clone_that_ended_leaves_nothing"
POOL = "tests/faults/test_releases.py::test_a_machine_of_the_pool_leaves_nothing_claimed_or_not[prespawned]"


@dataclass(frozen=True)
class Release:
    """One thing that is given back: where, which lines do it, what they become, and the test that must miss it."""

    name: str
    file: str
    old: str
    new: str
    test: str = LEAVES_NOTHING


CLAIMS = "nimbus/host_agent/claims.py"
LEDGER = "nimbus/host_agent/ledger.py"
NETWORK = "nimbus/host_agent/network.py"
KEEPER = "nimbus/host_agent/keeper.py"
SLOTS = "nimbus/host/slots.py"
OF_CLAIMS = "tests/unit/host_agent/test_claims.py"

RELEASES = (
    Release(
        "claim SLOT",
        CLAIMS,
        "        slots.release_slot(target.layout.runtime, target.record.slot.index, target.object)\n",
        "        pass\n",
    ),
    Release("claim NETWORK", CLAIMS, "    release_network(target.object, address)\n", "    pass\n"),
    Release(
        "claim DISK",
        CLAIMS,
        "    release_disk(target.paths.disk)\n",
        "    pass\n",
        f"{OF_CLAIMS}::test_an_overlay_that_came_after_its_vms_folder_was_removed_goes_with_its_folder",
    ),
    Release("claim JAIL", CLAIMS, "    release_jail(target.paths)\n", "    pass\n"),
    Release(
        "claim CGROUP", CLAIMS, "    cgroup.remove_cgroup(target.object, target.layout.limits.empty_s)\n", "    pass\n"
    ),
    Release(
        "claim VMM",
        CLAIMS,
        "        cgroup.kill_cgroup(target.object)\n",
        "        return\n",
        f"{OF_CLAIMS}::test_the_barrier_waits_for_a_keeper_that_lives_outside_its_cgroup",
    ),
    Release(
        "the wait for the VMM's end",
        CLAIMS,
        "        if not cgroup.wait_empty(target.object, limit_s):\n",
        "        if False:\n",
        f"{OF_CLAIMS}::test_the_barrier_waits_for_a_vmm_whose_memory_the_kernel_takes_its_time_to_free",
    ),
    Release(
        "the keeper's own kill",
        CLAIMS,
        "        native.pidfd_send_signal(pidfd, signal.SIGKILL)\n",
        "        pass\n",
        f"{OF_CLAIMS}::test_the_barrier_waits_for_a_keeper_that_lives_outside_its_cgroup",
    ),
    Release("the keeper's pidfd in the barrier", CLAIMS, "        os.close(pidfd)\n", "        pass\n", CANCELLED),
    Release(
        "the slot's barrier",
        CLAIMS,
        "    held = {Claim.VMM, Claim.CGROUP, Claim.NETWORK} & set(target.record.claims)\n",
        "    held: set[Claim] = set()\n",
        f"{OF_CLAIMS}::test_a_slot_is_never_given_back_before_the_vmm_the_cgroup_and_the_network",
    ),
    Release(
        "the record",
        LEDGER,
        "        self._path(vm).unlink(missing_ok=True)\n        self._remove_torn_writes(vm)\n",
        "        self._remove_torn_writes(vm)\n",
    ),
    Release(
        "the record's lock file",
        LEDGER,
        "        self._remove_torn_writes(vm)\n        self._lock_path(vm).unlink(missing_ok=True)\n\n",
        "        self._remove_torn_writes(vm)\n\n",
    ),
    Release(
        "the record's lock",
        LEDGER,
        "            yield held\n        finally:\n            os.close(fd)\n",
        "            yield held\n        finally:\n            pass\n",
    ),
    Release(
        "a torn write of a record",
        LEDGER,
        "            stray.unlink(missing_ok=True)\n",
        "            pass\n",
        "tests/unit/host_agent/test_ledger.py::test_a_write_that_a_kill_cut_short_goes_with_its_vm",
    ),
    Release(
        "the lock of a record that could not be written",
        LEDGER,
        "            except HostFault:\n                self._lock_path(value.vm).unlink(missing_ok=True)\n",
        "            except HostFault:\n",
        "tests/unit/host_agent/test_ledger.py::test_a_ledger_that_cannot_be_written_is_a_host_fault_and_leaves_no_lock",
    ),
    Release(
        "the network of an acquisition that failed",
        NETWORK,
        "        if not complete:\n            release_network(plan.name)\n",
        "        pass\n",
        "tests/host/test_network_lifecycle.py::test_a_network_that_cannot_be_made_leaves_nothing",
    ),
    Release("the namespace", NETWORK, "        netns.remove_netns(name)\n", "        pass\n"),
    Release(
        "the VM's table of rules",
        NETWORK,
        "nft.apply_ruleset(tables)",
        'nft.apply_ruleset("")',
    ),
    Release(
        "its tracked connections",
        NETWORK,
        "        conntrack.flush_connections(address)\n",
        "        pass\n",
        "tests/host/test_network_lifecycle.py::test_the_next_tenant_of_a_slot_meets_no_connection_of_the_last",
    ),
    Release(
        "the veth",
        NETWORK,
        "        link.remove_links(route, names)\n",
        "        pass\n",
        # of a whole network the end of its namespace takes the veth too, only later
        "tests/host/test_network_lifecycle.py::test_release_of_a_network_that_was_half_made_takes_what_is_there",
    ),
    Release(
        "a namespace's context of libnftables",
        "nimbus/host/nft.py",
        "        self._library.nft_ctx_free(self._address)\n",
        "        pass\n",
        "tests/host/test_network_lifecycle.py::test_no_descriptor_stays_open_after_a_network_came_and_went",
    ),
    Release("a route socket", "nimbus/host/link.py", "        route.close()\n", "        pass\n"),
    Release(
        "a namespace's descriptor",
        "nimbus/host/netns.py",
        "        yield fd\n    finally:\n        os.close(fd)\n",
        "        yield fd\n    finally:\n        pass\n",
    ),
    Release("a slot's ticket", SLOTS, "            os.close(ticket)\n", "            pass\n"),
    Release("the slots' folder", SLOTS, "        os.close(at)\n", "        pass\n"),
    Release("the keeper's descriptors", KEEPER, "                os.close(fd)\n", "                pass\n"),
    Release(
        "a keeper whose start was cancelled",
        KEEPER,
        "            outer.kill()  # before",
        "            pass  # before",
        "tests/native/test_keeper_start.py::test_a_start_that_is_cancelled_leaves_nothing_running",
    ),
    Release(
        "a clone that filled the disk",
        "nimbus/host/disk.py",
        "            target.unlink(missing_ok=True)\n",
        "            pass\n",
        "tests/host/test_disk_root.py::test_a_clone_that_fills_the_disk_leaves_no_part_of_itself",
    ),
    Release(
        "the room of a machine that ended",
        "nimbus/host_agent/poller.py",
        "        room.give_back(shape)\n",
        "        pass\n",
        "tests/unit/host_agent/test_poller.py::test_a_machine_that_ends_makes_room_for_the_next_at_once",
    ),
    Release(
        "what has no record",
        "nimbus/host_agent/reaper.py",
        "    return _parse_names(layout, names)\n",
        "    return set()\n",
        "tests/faults/test_leftovers.py::test_a_folder_without_a_record_is_swept_by_its_name",
    ),
    Release(
        "a clone's chroot",
        "nimbus/host_agent/jail.py",
        "    remove_chroots(jails, name)\n    remove_tree",
        "    remove_tree",
        CLONE,
    ),
    Release(
        "a clone's chroot that is being filled",
        "nimbus/host/chroots.py",
        "        yield folder\n    finally:\n        os.close(folder)\n",
        "        yield folder\n    finally:\n        pass\n",
        CLONE,
    ),
    Release(
        "a clone's files while they are linked",
        "nimbus/host/hardlink.py",
        "        yield fd\n    finally:\n        os.close(fd)\n",
        "        yield fd\n    finally:\n        pass\n",
        CLONE,
    ),
    Release(
        "a VM's own CPUs",
        CLAIMS,
        "    cpus.release_cpus(target.layout.runtime, target.object)\n",
        "",
        f"{OF_CLAIMS}::test_a_vms_cpus_are_given_back_with_its_slot_and_not_before_its_vmm_is_gone",
    ),
    Release(
        "a template's sealed memory",
        "nimbus/host/sealed.py",
        "        weakref.finalize(self, os.close, self.fd)\n",
        "        pass\n",
        "tests/unit/host/test_sealed.py::test_a_copy_is_open_for_as_long_as_anybody_holds_it_and_no_longer",
    ),
    Release(
        "a template that was not finished",
        "nimbus/storage/templates.py",
        "            remove_tree(path)\n            os.close(fd)\n",
        "            os.close(fd)\n",
        "tests/unit/storage/test_templates.py::test_a_disk_that_takes_no_more_leaves_no_half_of_a_template",
    ),
    Release(
        "the page of a pool's machine that a job claimed",
        "nimbus/host_agent/lifecycle.py",
        "        await member.page.close()",
        "        pass",
        POOL,
    ),
    Release(
        "a pool's machine that nobody claimed",
        "nimbus/host_agent/pool/member.py",
        "                await teardown(host.layout, record)",
        "                pass",
        POOL,
    ),
    Release(
        "its page",
        "nimbus/host_agent/pool/member.py",
        "                await page.close()",
        "                pass",
        POOL,
    ),
    Release("the pool's leash", "nimbus/host_agent/leash.py", "        os.close(write_fd)\n", "        pass\n", POOL),
)


def copy_tree(target: Path) -> None:
    """What a test needs, without what builds and runs leave."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "web", "bench", "*.egg-info", "build")
    shutil.copytree(ROOT, target, ignore=unwanted, symlinks=True)


def run_test(tree: Path, test: str) -> subprocess.CompletedProcess[str]:
    """One test against the copy, with the interpreter of this process."""
    roots = tree / "roots"
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", ROOTS_TOLD: str(roots)}
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    if "test_vmm.py" in test:
        argv += ["-k", "fake"]
    try:
        return subprocess.run(argv, cwd=tree, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    finally:
        clear(roots)


def clear(roots: Path) -> None:
    """What a disabled release left, by the code as it is: addresses that lead to a dead VM keep their slot from all."""
    for line in roots.read_text().splitlines() if roots.exists() else ():
        trio.run(partial(reap, HostLayout(state=Path(line), runtime=RUNTIME_DIR), living=True))
        remove_tree(Path(line))
    roots.unlink(missing_ok=True)


def try_release(tree: Path, release: Release) -> str:
    """`caught`, or what is wrong."""
    source = tree / release.file
    text = source.read_text() if source.exists() else ""
    if text.count(release.old) != 1:
        return f"its lines stand {text.count(release.old)} times in {release.file}"
    source.write_text(text.replace(release.old, release.new))
    try:
        done = run_test(tree, release.test)
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        source.write_text(text)
    if done.returncode == 1:
        return "caught"
    return "survived" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-500:]}"


def check_test(free: SimpleQueue[Path], test: str) -> bool:
    """True where it holds as long as nothing is disabled."""
    with borrowing(free) as tree:
        done = run_test(tree, test)
    if done.returncode != 0:
        say(f"FAILS ANYWAY  {test}\n{done.stdout[-1500:]}")
    return done.returncode == 0


def check_release(free: SimpleQueue[Path], release: Release) -> bool:
    """True where its absence is noticed."""
    with borrowing(free) as tree:
        told = try_release(tree, release)
    say(f"{'ok   ' if told == 'caught' else 'WRONG'} {release.name:<50} {told:<10} {release.test}")
    return told == "caught"


@contextmanager
def borrowing(free: SimpleQueue[Path]) -> Iterator[Path]:
    """A copy of the tree that nobody else uses meanwhile."""
    tree = free.get()
    try:
        yield tree
    finally:
        free.put(tree)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.faults.disabled_releases")
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--at-once", type=int, default=2)
    asked = parser.parse_args()
    releases = [release for release in RELEASES if asked.only in release.name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nimbus-releases-") as folder, ThreadPoolExecutor(asked.at_once) as workers:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(asked.at_once):
            tree = Path(folder) / f"tree{number}"
            copy_tree(tree)
            free.put(tree)
        sound = list(workers.map(partial(check_test, free), sorted({release.test for release in releases})))
        caught = list(workers.map(partial(check_release, free), releases))
    bad = sound.count(False) + caught.count(False)
    say(f"releases: {len(releases)} disabled in turn, {bad} not caught, {time.monotonic() - began:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
