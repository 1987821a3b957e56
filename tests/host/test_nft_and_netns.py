"""Rule batches, namespaces and links: idempotent pairs that leave no process and no file behind."""

from __future__ import annotations

import array
import fcntl
import os
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nimbus.host import link, native, netns, nft
from nimbus.host_agent.network import acquire_network, release_network
from nimbus.model.errors import HostFault
from nimbus.model.ids import new_vm_id
from tests.host.stand_in import random_plan, remains

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> Iterator[str]:
    name = f"nbfff-{new_vm_id()}"
    yield name
    nft.remove_table(name)
    netns.remove_netns(name)
    assert nft.list_tables(name) == ()
    assert netns.list_netns(name) == ()


def test_a_batch_with_one_bad_line_changes_nothing_and_says_which(name: str) -> None:
    with pytest.raises(HostFault, match=r"rejected an nftables batch: Error: .* at 'no_such_chain'$"):
        nft.apply_ruleset(f"add table inet {name}\nadd rule inet {name} no_such_chain drop\n")
    assert nft.list_tables(name) == ()


def test_a_batch_that_is_no_nftables_is_told_and_the_next_one_is_taken(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HostFault, match="rejected an nftables batch: Error: syntax error"):
        nft.apply_ruleset(f"add table inet {name}\nnonsense\n")
    nft.apply_ruleset(f"add table inet {name}\n")
    assert nft.list_tables(name) == (name,)
    assert capfd.readouterr() == ("", "")


def test_batches_of_many_threads_are_all_taken_and_each_lists_what_it_made(name: str) -> None:
    def act(number: int) -> tuple[str, ...]:
        table = f"{name}-{number}"
        nft.apply_ruleset(f"add table inet {table}\n")
        try:
            return nft.list_tables(table)
        finally:
            nft.remove_table(table)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(act, range(10, 50))) == [(f"{name}-{number}",) for number in range(10, 50)]


def test_one_that_hangs_holds_up_no_other(name: str, tmp_path: Path) -> None:
    """A batch that reads from a pipe without an end stands for one that the kernel does not answer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as threads:
        both_ends = os.open(pipe, os.O_RDWR)
        try:
            hanging = threads.submit(nft.apply_ruleset, f'include "{pipe}"\n')
            os.write(both_ends, b"\n")
            wait_read(both_ends)
            nft.apply_ruleset(f"add table inet {name}\n")
            assert nft.list_tables(name) == (name,)
            assert not hanging.done()
        finally:
            os.close(both_ends)
        hanging.result()


def wait_read(pipe: int) -> None:
    """Until somebody has read all that was written."""
    left = array.array("i", [1])
    deadline = time.monotonic() + 30
    while left[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        fcntl.ioctl(pipe, termios.FIONREAD, left)


def test_what_is_no_namespace_is_told_and_nothing_is_changed_elsewhere(name: str) -> None:
    with pytest.raises(HostFault, match=r"nftables could not be reached \(Invalid argument\)"):
        nft.apply_ruleset(f"add table inet {name}\n", netns=Path("/dev/null"))
    with pytest.raises(HostFault, match=r"nftables could not be reached \(No such file"):
        nft.apply_ruleset(f"add table inet {name}\n", netns=netns.netns_path(name))
    assert nft.list_tables(name) == ()


# libnftables calls exit(3) where it gets no socket. Of two descriptors one is the namespace's, the other the socket's.
NO_DESCRIPTORS = """
import os, resource, sys
from nimbus.host import nft
from nimbus.model.errors import HostFault
nft.is_installed()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
for spare in range(3):
    try:
        nft.apply_ruleset("")
        print(spare, "taken")
    except HostFault as fault:
        print(spare, fault)
    os.close(held.pop())
"""


def test_a_process_without_a_descriptor_left_is_told_so_and_lives_on() -> None:
    done = subprocess.run([sys.executable, "-c", NO_DESCRIPTORS], capture_output=True, text=True, check=False)
    fault = "nftables could not be reached (Too many open files)"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"0 {fault}", f"1 {fault}", "2 taken"]


FORKING = """
import os, sys
from nimbus.host import nft
nft.apply_ruleset(f"add table inet {sys.argv[1]}\\n")
child = os.fork()
for _ in range(50):
    nft.apply_ruleset(f"add table inet {sys.argv[1]}\\n")
if child == 0:
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(status)
"""


def test_a_forked_child_and_its_parent_do_not_take_each_others_answers(name: str) -> None:
    subprocess.run([sys.executable, "-c", FORKING, name], check=True)


def test_removing_a_table_that_is_absent_is_success(name: str) -> None:
    nft.remove_table(name)
    nft.apply_ruleset(f"add table inet {name}\n")
    nft.remove_table(name)
    nft.remove_table(name)
    assert nft.list_tables(name) == ()


def test_a_table_inside_a_namespace_is_not_one_of_the_host(name: str) -> None:
    path = netns.ensure_netns(name)
    nft.apply_ruleset(f"add table inet {name}\n", netns=path)
    assert nft.list_tables(name, netns=path) == (name,)
    assert nft.list_tables(name) == ()


def test_a_namespace_that_is_made_again_is_empty(name: str) -> None:
    path = netns.ensure_netns(name)
    nft.apply_ruleset(f"add table inet {name}\n", netns=path)
    netns.ensure_netns(name)
    assert nft.list_tables(name, netns=path) == ()


def test_the_file_of_a_namespace_that_was_never_bound_is_replaced_and_removed(name: str) -> None:
    netns.NETNS_DIR.mkdir(exist_ok=True)
    netns.netns_path(name).touch()
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd:
        assert os.fstat(fd).st_ino != os.stat("/proc/self/ns/net").st_ino
    netns.remove_netns(name)
    netns.netns_path(name).touch()
    netns.remove_netns(name)
    netns.remove_netns(name)


@pytest.mark.parametrize("bad", ["", "..", "a/b", "../etc/passwd"])
def test_a_name_that_leaves_the_folder_of_namespaces_is_refused(bad: str) -> None:
    with pytest.raises(HostFault, match="cannot name"):
        netns.remove_netns(bad)


def test_the_calling_thread_stays_in_its_own_namespace(name: str) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd, link.open_netlink(fd) as route:
        assert [m.get_attr("IFLA_IFNAME") for m in route.get_links()] == ["lo"]
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_a_link_that_is_absent_is_lowered_and_removed_with_success() -> None:
    with link.open_netlink() as route:
        link.lower_link(route, "nbfff-absent")
        link.remove_link(route, "nbfff-absent")
        assert link.find_address("nbfff-absent") is None
        with pytest.raises(HostFault, match="not found"):
            link.link_index(route, "nbfff-absent")


def test_a_host_that_has_no_way_to_its_nameserver_has_no_uplink_by_it(name: str) -> None:
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd, link.open_netlink(fd) as route:
        assert link.uplinks(route, (IPv4Address("192.0.2.1"),)) == ()


def test_a_leftover_tap_goes_to_the_new_owner(name: str) -> None:
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd:
        link.ensure_tap(fd, "tap0", uid=290_000, gid=290_000)
        link.ensure_tap(fd, "tap0", uid=290_001, gid=290_001)
        with link.open_netlink(fd) as route:
            data = next(iter(route.get_links(ifname="tap0"))).get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
            assert data.get_attr("IFLA_TUN_OWNER") == 290_001


class Losing:
    """A route socket whose first veth is gone again as soon as it was made, as the end of a namespace takes it."""

    def __init__(self, route: link.Netlink) -> None:
        self.made = 0
        self._route = route

    def link(self, verb: str, **words: object) -> object:
        told = self._route.link(verb, **words)
        if verb == "add":
            self.made += 1
            if self.made == 1:
                self._route.link("del", ifname=words["ifname"])
        return told

    def fileno(self) -> int:
        return int(self._route.fileno())


def test_a_veth_that_is_lost_while_it_is_made_is_made_once_more(name: str) -> None:
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd, link.open_netlink() as route, link.open_netlink(fd) as inside:
        losing = Losing(route)
        indexes = link.ensure_veth(losing, name, inside, "uplink", fd)
        assert indexes == (link.link_index(route, name), link.link_index(inside, "uplink"))
        link.remove_link(route, name)
    assert losing.made == 2


def test_a_link_that_comes_late_is_waited_for_and_one_that_never_comes_is_not_for_long(name: str) -> None:
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd, link.open_netlink(fd) as route, ThreadPoolExecutor(1) as threads:
        assert link.wait_link(route, "uplink", 0.05) is None
        found = threads.submit(link.ensure_tap, fd, "uplink", uid=0, gid=0)
        assert link.wait_link(route, "uplink", 30.0) == link.link_index(route, "uplink")
        found.result()


def test_a_tap_that_another_holds_open_is_refused_at_once_with_its_cause(name: str) -> None:
    netns.ensure_netns(name)
    with netns.open_netns(name) as fd:
        holder = native.open_tap(fd, "tap0", 0, 0, persist=True)
        try:
            with pytest.raises(HostFault, match=r"tap tap0 could not be made \(Device or resource busy\)"):
                link.ensure_tap(fd, "tap0", uid=0, gid=0)
        finally:
            os.close(holder)


def test_links_that_are_deleted_together_are_all_gone_and_no_other_is() -> None:
    prefix = f"nbfff-{str(new_vm_id())[:4]}"
    names = [f"{prefix}{number}" for number in range(4)]
    with link.open_netlink() as route:
        for name in names:
            route.link("add", ifname=name, kind="veth", peer={"ifname": f"x{name}"})
        link.remove_links(route, [*names[:3], f"{prefix}absent"[:15]])
        assert link.list_links(prefix) == (names[3],)
        link.remove_links(route, [names[3]])
        link.remove_links(route, names)
    assert link.list_links(prefix) == link.list_links(f"x{prefix}") == ()


def test_networks_that_end_at_the_same_moment_all_end() -> None:
    plans = [random_plan(index=9100 + number) for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(acquire_network, plans))
        list(threads.map(release_network, [plan.name for plan in plans]))
    assert [remains(plan) for plan in plans] == [[]] * 12
