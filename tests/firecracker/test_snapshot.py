"""Templates by Firecracker: saved from one guest, loaded by many, and refused where they are damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nimbus.host_agent import jailer
from nimbus.host_agent.vmm.launch import RestoreFailed, bring_up
from nimbus.host_agent.vmm.machine import Memory, Stage
from tests.firecracker.bench import SHAPE, Bench, holding_tap, open_plan, open_run, open_template, run_until_it_fails

pytestmark = pytest.mark.root


def is_same(one: Path, other: Path) -> bool:
    return one.samefile(other)


async def test_a_clone_goes_on_where_its_template_was(bench: Bench) -> None:
    async with open_template(bench) as (templated, tick), open_plan(templated) as (plan, boot):
        assert boot.memory is Memory.TEMPLATE
        async with open_run(plan, boot, templated) as run:
            console = await run.wait_printed(f"nimbus-probe: tick {tick + 1}")
            assert "nimbus-probe: up" not in console
            assert len(await templated.vmm.vcpu_threads(run.machine)) == SHAPE.cpus


async def test_clones_share_the_templates_files_and_change_none_of_them(bench: Bench) -> None:
    async with open_template(bench) as (templated, tick), trio.open_nursery() as nursery:

        async def run_clone() -> None:
            async with open_plan(templated) as (plan, boot):
                assert boot.template is not None
                root = jailer.plan_root(plan, boot)
                assert is_same(root / jailer.MEMORY, boot.template.memory)
                async with open_run(plan, boot, templated) as run:
                    await run.wait_printed(f"nimbus-probe: tick {tick + 2}")
                    assert boot.template.memory.stat().st_uid == 0
            assert templated.host.templates is not None
            templated.host.templates.store.verify(boot.template)

        for _ in range(3):
            nursery.start_soon(run_clone)


async def test_a_machine_waits_spawned_and_paused_and_runs_when_it_is_told(bench: Bench) -> None:
    async with (
        open_template(bench) as (templated, tick),
        open_plan(templated) as (plan, boot),
        open_run(plan, boot, templated, Stage.SPAWNED) as run,
    ):
        assert await templated.vmm.vcpu_threads(run.machine) == ()
        await bring_up(run.machine, boot, since=Stage.SPAWNED, until=Stage.PAUSED)
        assert len(await templated.vmm.vcpu_threads(run.machine)) == SHAPE.cpus
        assert "tick" not in (await run.machine.console_tail(4096)).decode()
        await bring_up(run.machine, boot, since=Stage.PAUSED)
        await run.wait_printed(f"nimbus-probe: tick {tick + 1}")


def damage(path: Path, change: Callable[[bytearray], object]) -> None:
    """Another file in its place: the template's own is shared and stays as it is."""
    content = bytearray(path.read_bytes())
    change(content)
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 0xFF


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


@pytest.mark.parametrize(("name", "change"), [(jailer.STATE, flip), (jailer.STATE, cut), (jailer.MEMORY, cut)])
async def test_a_damaged_template_does_not_load_and_its_process_is_dead(
    bench: Bench, name: str, change: Callable[[bytearray], object]
) -> None:
    async with open_template(bench) as (templated, _), open_plan(templated) as (plan, boot):
        damage(jailer.plan_root(plan, boot) / name, change)
        with pytest.raises(RestoreFailed, match="Load snapshot error"):
            await run_until_it_fails(plan, boot, templated)


async def test_a_tap_that_is_held_by_another_or_absent_stops_the_load(bench: Bench) -> None:
    async with open_template(bench) as (templated, _):
        async with open_plan(templated) as (plan, boot):
            with holding_tap(plan), pytest.raises(RestoreFailed, match="Resource busy"):
                await run_until_it_fails(plan, boot, templated)
        async with open_plan(templated) as (plan, boot):
            elsewhere = replace(plan, net=replace(plan.net, tap="absent0"))
            with pytest.raises(RestoreFailed, match="Load snapshot error"):
                await run_until_it_fails(elsewhere, boot, templated)
