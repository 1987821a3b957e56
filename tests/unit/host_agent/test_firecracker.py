"""The Firecracker backend's decisions: what is called in what order, which releases, what came up, how it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.host_agent.plan import HostLayout, VmPlan, plan_vm
from nimbus.host_agent.vmm.fcexits import BAD_SYSCALL, NAME, explain_exit
from nimbus.host_agent.vmm.firecracker import (
    KERNEL_LINE,
    Firecracker,
    check_config,
    check_version,
    plan_boot,
    plan_metadata,
)
from nimbus.host_agent.vmm.machine import Boot
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.model.vm import Shape, Slot
from nimbus.storage.images import Image
from nimbus.wire.firecracker import Version
from nimbus.wire.keeper import VANISHED, VmmExit

PLAN = plan_vm(
    HostLayout(Path("/var/lib/nimbus"), Path("/run/nimbus")),
    VmId("0a1b2c3d"),
    shape=Shape(2, 512, 1024),
    image="base",
    backend=NAME,
    accel="kvm",
    slot=Slot(3, 200_003, 200_003, 6),
)
FILE = Path("/images/file")
BOOT = Boot(
    Image("base", FILE, FILE, FILE, FILE, "6.1", {}, "0" * 64), Path("/opt/firecracker"), 0, Path("/opt/jailer")
)


def test_a_cold_start_is_configured_in_this_order_and_started_last() -> None:
    assert [str(call) for call in plan_boot(PLAN)] == [
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /drives/root",
        "PUT /drives/overlay",
        "PUT /network-interfaces/net",
        "PUT /mmds/config",
        "PUT /mmds",
        "PUT /vsock",
        "PUT /entropy",
        "PUT /actions",
    ]


def test_nothing_of_one_vm_but_its_metadata_and_its_tap_is_in_the_calls() -> None:
    other = replace(PLAN, vm=VmId("ffffffff"), object="nb000-ffffffff", slot=Slot(9, 200_009, 200_009, 12))
    mine, its = ({str(call): call.body for call in plan_boot(plan)} for plan in (PLAN, other))
    assert {name for name in mine if mine[name] != its[name]} == {"PUT /mmds"}


def test_a_guest_is_told_who_it_is_and_nothing_more() -> None:
    assert plan_metadata(PLAN) == {"nimbus": {"vm": "0a1b2c3d", "image": "base"}}


def test_the_recipe_of_a_template_holds_every_call() -> None:
    calls = Firecracker().describe(PLAN, BOOT).calls
    assert len(calls) == len(plan_boot(PLAN))
    assert any(KERNEL_LINE in call for call in calls)
    assert Firecracker(kernel_line="quiet").describe(PLAN, BOOT).calls != calls


def test_the_console_is_the_vmms_own_output_and_modules_can_be_loaded() -> None:
    words = KERNEL_LINE.split()
    assert "console=ttyS0" in words
    assert "nomodule" not in words
    assert "8250.nr_uarts=0" not in words


@pytest.mark.parametrize("version", [Version(1, 13), Version(1, 16, 1), Version(1, 17), Version(1, 99, 9)])
def test_releases_since_snapshots_are_no_preview_are_driven(version: Version) -> None:
    check_version(version)


@pytest.mark.parametrize("version", [Version(0, 25), Version(1, 12, 9), Version(2, 0), Version(3, 1)])
def test_a_release_that_nobody_tried_is_refused_with_what_mends_it(version: Version) -> None:
    with pytest.raises(HostFault, match=rf"Firecracker {version}.*NIMBUS_FC_BIN"):
        check_version(version)


def config_of(plan: VmPlan) -> dict[str, object]:
    return {
        "machine-config": {"vcpu_count": plan.shape.cpus, "mem_size_mib": plan.shape.mem_mib, "smt": False},
        "drives": [
            {"drive_id": "root", "path_on_host": "/rootfs"},
            {"drive_id": "overlay", "path_on_host": "/overlay.img"},
        ],
    }


def test_what_a_template_brought_up_is_taken_where_it_is_what_was_planned() -> None:
    check_config(PLAN, config_of(PLAN))


@pytest.mark.parametrize(
    "change",
    [
        {"machine-config": {"vcpu_count": 1, "mem_size_mib": 512}},
        {"machine-config": {"vcpu_count": 2, "mem_size_mib": 1024}},
        {"machine-config": None},
        {"drives": []},
        {"drives": [{"drive_id": "root", "path_on_host": "/rootfs"}, {"drive_id": "overlay", "path_on_host": "/etc"}]},
        {"drives": [1, None, {}]},
    ],
)
def test_another_machine_than_the_planned_one_never_runs(change: dict[str, object]) -> None:
    with pytest.raises(HostFault, match="not the one that was planned"):
        check_config(PLAN, config_of(PLAN) | change)


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.lists(st.integers()), st.text())))
def test_no_answer_for_a_config_does_more_harm_than_a_named_error(config: dict[str, object]) -> None:
    with pytest.raises(HostFault):
        check_config(PLAN, config)


def test_an_exit_is_explained_where_it_is_firecrackers_own() -> None:
    assert "filter forbids" in explain_exit(NAME, VmmExit("exited", BAD_SYSCALL, "exit"))
    assert "abort" in explain_exit(NAME, VmmExit("signaled", 6, "exit"))
    assert explain_exit("qemu", VmmExit("exited", BAD_SYSCALL, "exit")) == ""
    assert explain_exit(NAME, VmmExit("signaled", 9, "kill")) == ""
    assert explain_exit(NAME, VmmExit("exited", 77, "exit")) == ""
    assert explain_exit(NAME, VANISHED) == ""
