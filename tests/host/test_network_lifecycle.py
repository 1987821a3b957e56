"""Making and releasing a VM's network: whole or not at all, again and again, and nothing stays."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from pyroute2.conntrack import Conntrack
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from nimbus.host import link, netns, nft
from nimbus.host_agent.network import acquire_network, release_network, render_host_rules
from nimbus.model.errors import HostFault, Refused
from nimbus.model.vm import HostPort, NetPlan
from tests.host.stand_in import Stack, World, acquired, open_guest, random_plan, remains

pytestmark = pytest.mark.root

LOOPBACK = IPv4Address("127.0.0.1")


def test_the_links_have_no_ipv6_address(guest: Stack, plan: NetPlan) -> None:
    with link.open_netlink() as route:
        index = link.link_index(route, plan.name)
        assert list(route.get_addr(family=socket.AF_INET6, index=index)) == []
    with netns.open_netns(plan.name) as fd, link.open_netlink(fd) as route:
        assert list(route.get_addr(family=socket.AF_INET6)) == []


def test_the_tap_belongs_to_the_vms_uid_and_gid(plan: NetPlan) -> None:
    with netns.open_netns(plan.name) as fd, link.open_netlink(fd) as route:
        tap = next(iter(route.get_links(ifname=plan.tap)))
        data = tap.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        assert data.get_attr("IFLA_TUN_OWNER") == plan.tap_uid
        assert data.get_attr("IFLA_TUN_GROUP") == plan.tap_gid
        assert data.get_attr("IFLA_TUN_VNET_HDR") == 1


def test_forwarding_is_turned_on_for_the_hosts_uplink_only(plan: NetPlan) -> None:
    with link.open_netlink() as route:
        uplinks = link.uplinks(route)
    for name in uplinks:
        assert Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").read_text() == "1\n"


def test_release_twice_and_release_of_nothing_are_success() -> None:
    plan = random_plan()
    release_network(plan.name)
    acquire_network(plan)
    release_network(plan.name)
    release_network(plan.name)
    assert remains(plan) == []


def test_a_name_that_is_not_ours_is_never_released() -> None:
    with pytest.raises(Refused, match="no object name"):
        release_network("eth0")


BROKEN: dict[str, dict[str, Any]] = {
    "rejected netns rules": {"tap": 'a"b'},
    "impossible veth": {"peer": "longer-than-ifnamsiz"},
    "impossible tap": {"tap": "tap%d"},
    "no way to the gateway": {"uplink_host": IPv4Interface("198.19.0.1/30")},  # the last step but one
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_network_that_cannot_be_made_leaves_nothing(fault: str, request: pytest.FixtureRequest) -> None:
    plan = replace(random_plan(), **BROKEN[fault])
    request.addfinalizer(partial(release_network, plan.name))  # whatever this test finds, the host stays clean
    with pytest.raises(HostFault):
        acquire_network(plan)
    assert remains(plan) == []


def test_a_host_whose_rules_are_rejected_gets_no_network(request: pytest.FixtureRequest) -> None:
    """Port 70000 never leaves the planner; here it stands for any rule that this kernel refuses."""
    plan = replace(random_plan(), host_ports=(HostPort(70000, LOOPBACK, 1),))
    request.addfinalizer(partial(release_network, plan.name))
    with pytest.raises(HostFault, match="rejected"):
        acquire_network(plan)
    assert remains(plan) == []


def test_addresses_that_still_lead_to_another_vms_veth_are_refused_and_that_vm_is_untouched(
    request: pytest.FixtureRequest,
) -> None:
    with acquired(random_plan()) as older:
        newer = replace(random_plan(), uplink_host=older.uplink_host, uplink_peer=older.uplink_peer)
        request.addfinalizer(partial(release_network, newer.name))
        with pytest.raises(HostFault, match=f"{older.uplink_peer.ip} leads to {older.name}"):
            acquire_network(newer)
        assert remains(newer) == []
        assert link.find_address(older.name) == older.uplink_host


def test_acquire_over_leftovers_of_each_kind_starts_afresh(world: World) -> None:
    plan = random_plan()
    netns.ensure_netns(plan.name)
    nft.apply_ruleset(render_host_rules(plan))
    with link.open_netlink() as route:
        route.link("add", ifname=plan.name, kind="veth", peer={"ifname": f"x{plan.name[1:]}"})
    with acquired(plan), open_guest(plan) as guest:
        assert guest.ping(world.stack.address)
        acquire_network(plan)
    with acquired(plan), open_guest(plan) as guest:
        assert guest.ping(world.stack.address)
    assert remains(plan) == []


@pytest.mark.parametrize("kind", ["netns", "link", "table"])
def test_release_of_a_network_that_was_half_made_takes_what_is_there(kind: str) -> None:
    plan = random_plan()
    if kind == "netns":
        netns.ensure_netns(plan.name)
    elif kind == "link":
        with link.open_netlink() as route:
            route.link("add", ifname=plan.name, kind="veth", peer={"ifname": f"x{plan.name[1:]}"})
    else:
        nft.apply_ruleset(render_host_rules(plan))
    assert remains(plan) == [plan.name]
    release_network(plan.name)
    assert remains(plan) == []


def test_the_next_tenant_of_a_slot_meets_no_connection_of_the_last(world: World) -> None:
    plan = random_plan()
    with acquired(plan), open_guest(plan) as guest:
        assert guest.ping(world.stack.address)
        assert _connections(plan.uplink_peer.ip) > 0
    assert _connections(plan.uplink_peer.ip) == 0


def test_connections_of_a_vm_whose_veth_was_lost_are_forgotten_with_its_slot(world: World) -> None:
    plan = random_plan()
    with acquired(plan):
        with open_guest(plan) as guest:
            assert guest.ping(world.stack.address)
        with link.open_netlink() as route:
            link.remove_link(route, plan.name)  # by whomever: its address is not there to be asked for
        assert _connections(plan.uplink_peer.ip) > 0
        release_network(plan.name, plan.uplink_peer.ip)
        assert _connections(plan.uplink_peer.ip) == 0


def test_eight_networks_made_at_once_all_work_and_disturb_nobody(guest: Stack, world: World) -> None:
    plans = [random_plan(index=index) for index in range(9000, 9008)]
    with ThreadPoolExecutor(8) as threads, ExitStack() as open_guests:
        made = [threads.submit(acquire_network, plan) for plan in plans]
        try:
            while not all(future.done() for future in made):
                assert guest.ping(world.stack.address)
            for future in made:
                future.result()
            stacks = [open_guests.enter_context(open_guest(plan)) for plan in plans]
            assert [stack.ping(world.stack.address) for stack in stacks] == [True] * 8
        finally:
            open_guests.close()
            list(threads.map(release_network, [plan.name for plan in plans]))
    assert [remains(plan) for plan in plans] == [[]] * 8
    assert guest.ping(world.stack.address)


def test_no_descriptor_stays_open_after_a_network_came_and_went() -> None:
    with acquired(random_plan()):
        pass
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with acquired(random_plan()):
            pass
    assert set(os.listdir("/proc/self/fd")) == before


def _connections(source: IPv4Address) -> int:
    with Conntrack() as table:
        return len(list(table.dump_entries(tuple_orig=NFCTAttrTuple(saddr=str(source)))))
