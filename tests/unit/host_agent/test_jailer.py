"""What the jailer is asked, as data, and what is believed of the process that it left (nothing)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nimbus.host_agent.jailer import (
    SecurityAlarm,
    check_jail,
    plan_jailer,
    plan_pid_file,
    plan_root,
    plan_shared,
)
from nimbus.host_agent.plan import HostLayout, VmPlan, plan_vm
from nimbus.host_agent.vmm.machine import Boot, Memory
from nimbus.model.errors import HostFault
from nimbus.model.ids import VmId
from nimbus.model.vm import Shape, Slot
from nimbus.storage.images import Image

IMAGE = Image(
    name="base",
    kernel=Path("/images/vmlinuz"),
    vmlinux=Path("/images/vmlinux"),
    initramfs=Path("/images/initramfs"),
    rootfs=Path("/images/rootfs"),
    kernel_release="6.1",
    digests={},
    manifest_sha256="0" * 64,
)
BOOT = Boot(IMAGE, Path("/opt/fc/firecracker-v1.16.1"), 0, Path("/opt/fc/jailer"))


@pytest.fixture
def plan() -> VmPlan:
    layout = HostLayout(Path("/var/lib/nimbus"), Path("/run/nimbus"), jailer_base=Path("/srv/jailer"))
    return plan_vm(
        layout,
        VmId("0a1b2c3d"),
        shape=Shape(2, 512, 1024),
        image="base",
        backend="firecracker",
        accel="kvm",
        slot=Slot(3, 200_003, 300_003, 6),
    )


def test_the_jailer_is_asked_for_a_uid_a_netns_a_cgroup_and_a_pid_namespace(plan: VmPlan) -> None:
    assert " ".join(plan_jailer(plan, BOOT)) == (
        f"/opt/fc/jailer --id {plan.object} --exec-file /opt/fc/firecracker-v1.16.1 --uid 200003 --gid 300003 "
        f"--chroot-base-dir /srv/jailer --netns /run/netns/{plan.object} "
        f"--cgroup-version 2 --parent-cgroup nimbus/{plan.object}/vmm --new-pid-ns "
        f"--resource-limit fsize={1024 << 20} --resource-limit no-file=1024 "
        "-- --api-sock /run/api.sock --level Error"
    )


def test_a_filter_is_named_only_where_an_operator_wants_one(plan: VmPlan) -> None:
    boot = replace(BOOT, seccomp_filter=Path("/etc/nimbus/filter"))
    assert plan_jailer(plan, boot)[-2:] == ("--seccomp-filter", "/seccomp.bpf")
    assert plan_shared(boot)["seccomp.bpf"] == Path("/etc/nimbus/filter")
    assert "seccomp.bpf" not in plan_shared(BOOT)


def test_a_machine_that_saves_its_memory_may_write_a_file_as_large(plan: VmPlan) -> None:
    large = replace(plan, shape=Shape(1, 4096, 64))
    assert f"fsize={64 << 20}" in plan_jailer(large, BOOT)
    assert f"fsize={(4096 + 64) << 20}" in plan_jailer(large, replace(BOOT, memory=Memory.KEPT))


def test_firecracker_without_its_jailer_is_refused(plan: VmPlan) -> None:
    with pytest.raises(HostFault, match="jailer alone"):
        plan_jailer(plan, replace(BOOT, jailer=None))


def test_a_chroot_is_named_by_the_binary_and_the_vm(plan: VmPlan) -> None:
    root = plan_root(plan, BOOT)
    assert root == Path(f"/srv/jailer/firecracker-v1.16.1/{plan.object}/root")
    assert plan_pid_file(plan, BOOT) == root / "firecracker-v1.16.1.pid"


def test_a_cold_machine_is_given_what_it_boots_of(plan: VmPlan) -> None:
    assert plan_shared(BOOT) == {
        "kernel": IMAGE.vmlinux,
        "initramfs": IMAGE.initramfs,
        "rootfs": IMAGE.rootfs,
    }


def test_the_chroots_lie_beside_the_images_unless_an_operator_names_a_place() -> None:
    assert HostLayout(Path("/var/lib/nimbus"), Path("/run")).jails == Path("/var/lib/nimbus/jailer")
    assert HostLayout(Path("/var/lib/nimbus"), Path("/run"), jailer_base=Path("/srv/x")).jails == Path("/srv/x")


@pytest.mark.root
def test_a_process_without_any_jail_is_an_alarm_that_names_each_thing(plan: VmPlan, tmp_path: Path) -> None:
    netns = Path("/run/netns") / plan.object
    netns.parent.mkdir(exist_ok=True)
    netns.touch()
    try:
        with pytest.raises(SecurityAlarm) as caught:
            check_jail(os.getpid(), plan, tmp_path, filtered=True)
    finally:
        netns.unlink()
    said = str(caught.value)
    for part in ("network namespace", "root is not", "cgroup is", "Uid of thread", "Gid of", "NoNewPrivs", "Seccomp"):
        assert part in said
    assert "no API thread" in said


def test_a_process_that_has_ended_is_no_alarm(plan: VmPlan, tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        check_jail(2**22 + 1, plan, tmp_path, filtered=True)
