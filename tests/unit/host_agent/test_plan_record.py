"""A plan is the same again after its record went through the ledger's JSON, whatever release wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nimbus.host_agent.plan import HostLayout, plan_vm, render_plan, replan, with_placement
from nimbus.model.ids import VmId
from nimbus.model.placement import Placement
from nimbus.model.vm import Shape, Slot

LAYOUT = HostLayout(state=Path("/state"), runtime=Path("/run/state"))
VM = VmId("1f2e3d4c")
SLOT = Slot(0, 200_000, 200_000, 3)


@pytest.mark.parametrize("placement", [None, Placement(vcpus=(2, 6), cpus=(2, 6), mems=(0,))])
def test_a_plan_is_the_same_again_from_its_record(placement: Placement | None) -> None:
    plan = plan_vm(
        LAYOUT, VM, shape=Shape(cpus=2), image="base", backend="qemu", accel="tcg", slot=SLOT, placement=placement
    )
    stored = json.loads(json.dumps(with_placement(render_plan(plan.shape, plan.image, plan.accel), placement)))
    assert replan(LAYOUT, VM, backend="qemu", stored=stored, slot=SLOT) == plan


def test_the_plan_of_a_release_that_placed_no_vms_has_no_placement() -> None:
    stored = {"shape": {"cpus": 1, "mem_mib": 256, "disk_mib": 2048}, "image": "base", "accel": "tcg"}
    assert replan(LAYOUT, VM, backend="qemu", stored=stored, slot=SLOT).placement is None
