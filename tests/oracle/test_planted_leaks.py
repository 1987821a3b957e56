"""One leak of each kind is planted: the oracle names it, and is silent again when it is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from nimbus.host import cgroup, cpus, link, netns, nft, slots
from nimbus.host.inventory import Leak, Territory, diff, leftovers, read_inventory
from nimbus.model.placement import Placement
from tests.oracle import find_leaks, open_territory

pytestmark = pytest.mark.root

VM = "0a1b2c3d"
Plant = Callable[[Territory], AbstractContextManager[Leak]]


@pytest.fixture
def territory() -> Iterator[Territory]:
    with open_territory() as mine:
        yield mine


@contextmanager
def plant_child_process(territory: Territory) -> Iterator[Leak]:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            yield Leak("processes", f"pid {child.pid} sleep 600")
        finally:
            child.kill()


@contextmanager
def plant_zombie(territory: Territory) -> Iterator[Leak]:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        yield Leak("processes", f"pid {child.pid} (no command line)")
    finally:
        child.wait()


@contextmanager
def plant_orphan_in_our_cgroup(territory: Territory) -> Iterator[Leak]:
    """What a killed agent leaves: a process that hangs below init by now."""
    name = territory.prefix + VM
    cgroup.ensure_leaf(name, cgroup.Limits(cpus=1, mem_mib=64, pids=8))
    told = subprocess.run(
        ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True
    )
    pid = int(told.stdout)
    (cgroup.cgroup_dir(name) / "vmm" / "cgroup.procs").write_text(str(pid))
    try:
        yield Leak("processes", f"pid {pid} {_command_line(pid)}")
    finally:
        cgroup.remove_cgroup(name, 5.0)


@contextmanager
def plant_chroot(territory: Territory) -> Iterator[Leak]:
    left = territory.jails / "firecracker" / (territory.prefix + VM)
    left.mkdir(parents=True)
    try:
        yield Leak("files", str(left))
    finally:
        shutil.rmtree(territory.jails)


@contextmanager
def plant_fd(territory: Territory) -> Iterator[Leak]:
    path = territory.state_root / "open"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield Leak("fds", f"fd {fd} -> {path}")
    finally:
        os.close(fd)


@contextmanager
def plant_thread(territory: Territory) -> Iterator[Leak]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="forgotten")
    thread.start()
    try:
        yield Leak("threads", f"thread {thread.native_id} forgotten")
    finally:
        done.set()
        thread.join()


@contextmanager
def plant_netns(territory: Territory) -> Iterator[Leak]:
    name = territory.prefix + VM
    netns.ensure_netns(name)
    try:
        yield Leak("netns", name)
    finally:
        netns.remove_netns(name)


@contextmanager
def plant_mount_of_a_netns(territory: Territory) -> Iterator[Leak]:
    name = territory.prefix + VM
    path = netns.ensure_netns(name)
    try:
        yield Leak("mounts", str(path))
    finally:
        netns.remove_netns(name)


@contextmanager
def plant_link(territory: Territory) -> Iterator[Leak]:
    name = territory.prefix + VM
    with link.open_netlink() as route:
        route.link("add", ifname=name, kind="veth", peer={"ifname": territory.prefix + "peer"})
    try:
        yield Leak("links", name)
    finally:
        with link.open_netlink() as route:
            link.remove_link(route, name)


@contextmanager
def plant_address(territory: Territory) -> Iterator[Leak]:
    with plant_link(territory) as planted, link.open_netlink() as route:
        index = link.link_index(route, planted.name)
        route.addr("add", index=index, address="172.29.255.1", prefixlen=30)
        yield Leak("addresses", f"172.29.255.1/30 on {planted.name}")


@contextmanager
def plant_route(territory: Territory) -> Iterator[Leak]:
    with plant_link(territory) as planted, link.open_netlink() as route:
        index = link.link_index(route, planted.name)
        route.link("set", index=index, state="up")
        route.route("add", dst="172.29.254.0/30", oif=index)
        yield Leak("routes", f"172.29.254.0/30 by {planted.name} in table 254")


@contextmanager
def plant_nft_table(territory: Territory) -> Iterator[Leak]:
    name = territory.prefix + VM
    nft.apply_ruleset(f"add table inet {name}\n")
    try:
        yield Leak("nft_tables", name)
    finally:
        nft.remove_table(name)


@contextmanager
def plant_cgroup(territory: Territory) -> Iterator[Leak]:
    name = territory.prefix + VM
    cgroup.ensure_leaf(name, cgroup.Limits(cpus=1, mem_mib=64, pids=8))
    try:
        yield Leak("cgroups", name)
    finally:
        cgroup.remove_cgroup(name, 5.0)


@contextmanager
def plant_mount(territory: Territory) -> Iterator[Leak]:
    point = territory.state_root / "vms" / "a jail"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    try:
        yield Leak("mounts", str(point))
    finally:
        subprocess.run(["umount", str(point)], check=True)
        point.rmdir()


@contextmanager
def plant_loop_device(territory: Territory) -> Iterator[Leak]:
    backing = territory.state_root / "disk.img"
    backing.write_bytes(b"\0" * 65536)
    if shutil.which("losetup") is None:
        pytest.skip("no losetup on PATH: no loop device can be made")
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this host gives no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Leak("loop_devices", f"{device} on {backing}")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        backing.unlink()


@contextmanager
def plant_socket(territory: Territory) -> Iterator[Leak]:
    folder = territory.state_root / "vms" / VM
    folder.mkdir()
    path = folder / "link.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        yield Leak("sockets", str(path))
    path.unlink()
    folder.rmdir()


@contextmanager
def plant_file(territory: Territory) -> Iterator[Leak]:
    path = territory.state_root / "vms" / "overlay.img"
    path.write_bytes(b"left")
    try:
        yield Leak("files", str(path))
    finally:
        path.unlink()


@contextmanager
def plant_ledger_record(territory: Territory) -> Iterator[Leak]:
    path = territory.state_root / "ledger" / f"{VM}.json"
    path.write_text("{}")
    try:
        yield Leak("ledger", str(path))
    finally:
        path.unlink()


@contextmanager
def plant_slot(territory: Territory) -> Iterator[Leak]:
    owner = territory.prefix + VM
    slot = slots.claim_slot(territory.runtime_dir, owner, 4096)
    try:
        yield Leak("slots", f"{slot.index} held by {owner}")
    finally:
        slots.release_slot(territory.runtime_dir, slot.index, owner)


@contextmanager
def plant_cpus(territory: Territory) -> Iterator[Leak]:
    owner = territory.prefix + VM
    cpus.take_cpus(territory.runtime_dir, owner, lambda _: Placement((8190,), (8190, 8191), ()))  # no host's
    try:
        yield Leak("cpus", f"8190-8191 held by {owner}")
    finally:
        cpus.release_cpus(territory.runtime_dir, owner)


PLANTS: list[Plant] = [
    plant_child_process,
    plant_zombie,
    plant_orphan_in_our_cgroup,
    plant_fd,
    plant_chroot,
    plant_thread,
    plant_netns,
    plant_mount_of_a_netns,
    plant_link,
    plant_address,
    plant_route,
    plant_nft_table,
    plant_cgroup,
    plant_mount,
    plant_loop_device,
    plant_socket,
    plant_file,
    plant_ledger_record,
    plant_slot,
    plant_cpus,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_leak_is_named_and_gone_when_it_is_cleaned(plant: Plant, territory: Territory) -> None:
    before = read_inventory(territory)
    with plant(territory) as planted:
        found = find_leaks(before, territory, grace_s=0)
        assert planted in found
    assert find_leaks(before, territory) == ()


def test_a_process_under_a_uid_of_our_slots_is_named_wherever_it_hangs(territory: Territory) -> None:
    owner = territory.prefix + VM
    slot = slots.claim_slot(territory.runtime_dir, owner, 4096)
    script = f"setsid setpriv --reuid={slot.uid} --regid={slot.gid} --clear-groups sleep 600 >/dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout)
    try:
        _wait_for_uid(pid, slot.uid)
        assert Leak("processes", f"pid {pid} sleep 600") in leftovers(territory)
    finally:
        os.kill(pid, signal.SIGKILL)
        slots.release_slot(territory.runtime_dir, slot.index, owner)


def test_what_a_neighbour_makes_meanwhile_is_not_reported(territory: Territory) -> None:
    before = read_inventory(territory)
    plants = (plant_netns, plant_nft_table, plant_cgroup, plant_slot, plant_file, plant_ledger_record, plant_link)
    with open_territory() as neighbour, ExitStack() as planted:
        for plant in plants:
            planted.enter_context(plant(neighbour))
        assert diff(before, read_inventory(territory)) == ()


def test_a_territory_without_vms_has_no_leftovers(territory: Territory) -> None:
    assert leftovers(territory) == ()


def _command_line(pid: int) -> str:
    return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def _wait_for_uid(pid: int, uid: int) -> None:
    while b"sleep" not in Path(f"/proc/{pid}/cmdline").read_bytes()[:5] or os.stat(f"/proc/{pid}").st_uid != uid:
        os.sched_yield()
