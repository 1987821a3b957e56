"""A template that does not fit, or is damaged, costs its job a cold boot and nothing else, and is not tried again."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.cli.run import open_local_lease
from nimbus.host import cgroup
from nimbus.host.inventory import Territory
from nimbus.host_agent.lifecycle import run_machine
from nimbus.host_agent.metrics import RESTORES
from nimbus.model.vm import Ending, Shape
from nimbus.storage.templates import TemplateFiles
from tests.hosts import Collected
from tests.oracle import leak_oracle
from tests.vm.snapshots import LIMIT_S, CloneHost, open_clone_host, was_restored

pytestmark = [pytest.mark.vm, pytest.mark.root]
__all__ = ["leak_oracle"]


@pytest.fixture
async def clones(leak_oracle: Territory) -> AsyncIterator[CloneHost]:
    async with open_clone_host(leak_oracle) as host:
        yield host


def count(outcome: str) -> float:
    return float(RESTORES.labels(outcome)._value.get())


def spoil(path: Path, offset: int, data: bytes) -> None:
    os.chmod(path, 0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("name", ["memory", "state", "overlay"])
async def test_a_flipped_byte_is_found_before_use_and_the_boot_is_cold(clones: CloneHost, name: str) -> None:
    path: Path = getattr(clones.template, name)
    spoil(path, 4096, b"\xff\x00\xff")
    before = count("quarantined")
    outcome, _ = await clones.run("true")
    again, _ = await clones.run("true")
    assert (outcome.ending, again.ending) == (Ending.DONE, Ending.DONE)
    assert not was_restored(outcome)
    assert not was_restored(again)
    assert count("quarantined") == before + 1
    assert [one.digest for one in clones.templates.store.quarantined()] == [clones.template.digest]


async def test_a_truncated_memory_is_never_mapped(clones: CloneHost) -> None:
    os.chmod(clones.template.memory, 0o600)
    os.truncate(clones.template.memory, 64 << 20)
    outcome, _ = await clones.run("true")
    assert (outcome.ending, was_restored(outcome)) == (Ending.DONE, False)


async def test_a_state_that_the_vmm_refuses_ends_in_a_cold_boot_with_an_empty_disk(clones: CloneHost) -> None:
    await _check_useless(clones, b"no device state of any QEMU" * 1000)


async def test_a_clone_that_loads_and_does_not_run_ends_in_a_cold_boot(clones: CloneHost) -> None:
    await _check_useless(clones, clones.template.state.read_bytes())  # its devices are right, its memory is nothing


async def _check_useless(clones: CloneHost, state: bytes) -> None:
    """A template that is whole, of what no VMM can load or run: one boot is lost by it, and no second."""
    store, digest = clones.templates.store, clones.template.digest
    folder = clones.test.territory.state_root
    files = TemplateFiles(folder / "memory", folder / "state", folder / "overlay")
    files.state.write_bytes(state)
    for path, mib in ((files.memory, Shape().mem_mib), (files.overlay, Shape().disk_mib)):
        path.touch()
        os.truncate(path, mib << 20)
    key = await clones.templates.key(clones.image, Shape())
    store.remove(digest)
    assert store.publish(key, files).digest == digest
    outcome, out = await clones.run("ls /lost-and-never-found 2>/dev/null; echo fine")
    assert (outcome.ending, outcome.boots, out.stdout) == (Ending.DONE, 2, "fine\n"), outcome.cause
    assert outcome.clean
    assert [one.digest for one in store.quarantined()] == [digest]


async def test_a_host_with_another_kernel_finds_no_template(clones: CloneHost) -> None:
    store, template = clones.templates.store, clones.template
    other = replace(template.key, host_kernel="6.1.0-of-yesterday")
    kept = TemplateFiles(template.memory, template.state, template.overlay)
    store.publish(other, kept)
    store.remove(template.digest)
    before = count("none")
    outcome, _ = await clones.run("true")
    assert (outcome.ending, was_restored(outcome)) == (Ending.DONE, False)
    assert count("none") == before + 1
    assert store.find(other.digest()) is not None  # it fits another host, and is no wreck


async def test_another_shape_boots_cold(clones: CloneHost) -> None:
    outcome, _ = await clones.run("true", Shape(mem_mib=320))
    assert (outcome.ending, was_restored(outcome)) == (Ending.DONE, False)


async def test_a_vmm_killed_while_it_loads_leaves_nothing_and_its_job_runs_cold(clones: CloneHost) -> None:
    out, territory = Collected(), clones.test.territory
    killed = trio.Event()

    async def kill_first() -> None:
        while not killed.is_set():
            for name in cgroup.list_cgroups(territory.prefix):
                if (cgroup.cgroup_dir(name) / "vmm" / "cgroup.procs").read_text().strip():
                    cgroup.kill_cgroup(name, "vmm")
                    killed.set()
            await trio.sleep(0.001)

    with trio.fail_after(LIMIT_S), open_local_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_first)
            outcome = await run_machine(clones.test.host, clones.test.order("echo", "ran", sink=out), lease)
    # Where the kill came before anything was loaded, no template is to blame, and the machine is a host fault.
    assert outcome.clean
    assert (outcome.ending, out.stdout) in [(Ending.DONE, "ran\n"), (Ending.HOST_FAULT, "")]
