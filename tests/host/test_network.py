"""A VM's network on a real kernel: what passes, what must not, and that nothing of it stays."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from pyroute2.conntrack import Conntrack
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from nimbus.host import link, netns, nft
from nimbus.host_agent.network import GATEWAY_MAC, acquire_network, release_network, render_host_rules
from nimbus.model.errors import HostFault, Refused
from nimbus.model.vm import HostPort, NetPlan
from tests.host.stand_in import ANSWER_LIMIT_S, Stack, World, open_guest, open_world, random_plan, render_udp, serving

pytestmark = pytest.mark.root

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what must stay out of reach is reachable unless the rules forbid it
LOOPBACK = IPv4Address("127.0.0.1")
DNS = IPv4Address("127.0.0.77")


@contextmanager
def acquired(plan: NetPlan) -> Iterator[NetPlan]:
    acquire_network(plan)
    try:
        yield plan
    finally:
        release_network(plan.name)


def remains(plan: NetPlan) -> list[str]:
    """Whatever on the host still bears the VM's name."""
    return [*netns.list_netns(plan.name), *link.list_links(plan.name), *nft.list_tables(plan.name)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


@pytest.fixture
def plan() -> Iterator[NetPlan]:
    with acquired(random_plan()) as plan:
        yield plan
    assert remains(plan) == []


@pytest.fixture
def guest(plan: NetPlan) -> Iterator[Stack]:
    with open_guest(plan) as stack:
        yield stack


def test_a_guest_reaches_the_world_and_the_world_sees_only_the_host(guest: Stack, world: World) -> None:
    with serving(world.stack.open_socket(), EVERYWHERE) as port:
        assert guest.fetch(world.stack.address, port) == str(world.host_address).encode()
    assert guest.ping(world.stack.address)


def test_a_guest_can_ping_its_gateway(guest: Stack, plan: NetPlan) -> None:
    assert guest.ping(plan.gateway.ip)


def test_a_declared_port_of_the_gateway_reaches_a_server_on_the_hosts_loopback() -> None:
    with serving(socket.socket(), "127.0.0.1") as target_port:
        declared = random_plan(host_ports=(HostPort(8000, LOOPBACK, target_port),))
        with acquired(declared), open_guest(declared) as guest:
            assert guest.fetch(declared.gateway.ip, 8000) == str(declared.uplink_peer.ip).encode()


def test_a_declared_port_may_lead_to_another_machine(world: World) -> None:
    with serving(world.stack.open_socket(), EVERYWHERE) as target_port:
        declared = random_plan(host_ports=(HostPort(8002, world.stack.address, target_port),))
        with acquired(declared), open_guest(declared) as guest:
            assert guest.fetch(declared.gateway.ip, 8002) == str(world.host_address).encode()


def test_no_address_of_the_host_answers_on_a_port_that_is_not_declared(world: World) -> None:
    with serving(socket.socket(), EVERYWHERE) as open_port, serving(socket.socket(), "127.0.0.1") as loopback_port:
        declared = random_plan(host_ports=(HostPort(8000, LOOPBACK, loopback_port),))
        with acquired(declared), open_guest(declared) as guest:
            assert guest.fetch(declared.gateway.ip, 8000) is not None
            for address in (declared.gateway.ip, declared.uplink_host.ip, world.host_address):
                assert guest.fetch(address, open_port) is None
            assert guest.fetch(declared.uplink_host.ip, loopback_port) is None
            assert guest.fetch(declared.uplink_host.ip, 8000) is None
            assert not guest.ping(declared.uplink_host.ip)
            assert not guest.ping(world.host_address)


def test_the_gateway_answers_dns_by_the_hosts_nameserver() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((str(DNS), 53))
        server.settimeout(ANSWER_LIMIT_S)
        asked = random_plan(nameserver=DNS)
        with acquired(asked), open_guest(asked) as guest, guest.open_socket(socket.SOCK_DGRAM) as client:
            client.connect((str(asked.gateway.ip), 53))
            client.send(b"question")
            question, sender = server.recvfrom(64)
            server.sendto(b"answer to " + question, sender)
            assert client.recv(64) == b"answer to question"


def test_a_packet_to_a_loopback_address_never_reaches_the_hosts_loopback() -> None:
    """route_localnet is on here, for the nameserver: the rules alone keep the guest from 127.0.0.0/8."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((str(DNS), 53))
        server.settimeout(ANSWER_LIMIT_S)
        asked = random_plan(nameserver=DNS)
        with acquired(asked), open_guest(asked) as guest, guest.open_socket(socket.SOCK_DGRAM) as client:
            assert guest.ping(asked.gateway.ip)
            guest.send_frame(GATEWAY_MAC, asked.mac, render_udp(guest.address, DNS, 53, b"forged"))
            client.sendto(b"honest", (str(asked.gateway.ip), 53))
            assert server.recv(64) == b"honest"


def test_guests_do_not_reach_each_other(guest: Stack, plan: NetPlan) -> None:
    with (
        acquired(random_plan()) as neighbour,
        open_guest(neighbour) as other,
        serving(other.open_socket(), EVERYWHERE) as port,
    ):
        for address in (neighbour.uplink_peer.ip, neighbour.uplink_host.ip):
            assert not guest.ping(address)
            assert guest.fetch(address, port) is None


def test_the_host_itself_cannot_open_a_connection_into_a_guest(guest: Stack, plan: NetPlan) -> None:
    with serving(guest.open_socket(), EVERYWHERE) as port, socket.socket() as client:
        client.settimeout(0.4)
        with pytest.raises(TimeoutError):
            client.connect((str(plan.uplink_peer.ip), port))


@pytest.mark.parametrize("forged", ["10.9.8.7", "172.16.0.1", "198.18.0.1"])
def test_a_packet_with_a_forged_source_never_leaves(guest: Stack, plan: NetPlan, world: World, forged: str) -> None:
    with link.open_netlink(guest.netns_fd) as route:
        index = link.link_index(route, "eth0")
        route.addr("add", index=index, address=forged, prefixlen=32)
    with world.stack.open_socket(socket.SOCK_DGRAM) as server:
        server.bind((EVERYWHERE, 9))
        server.settimeout(ANSWER_LIMIT_S)
        for source, word in ((forged, b"forged"), (str(guest.address), b"honest")):
            with guest.open_socket(socket.SOCK_DGRAM) as client:
                client.bind((source, 0))
                client.sendto(word, (str(world.stack.address), 9))
        assert server.recv(64) == b"honest"


def test_link_local_addresses_are_out_of_reach(guest: Stack, world: World) -> None:
    metadata = IPv4Interface("169.254.77.77/32")
    with link.open_netlink(world.stack.netns_fd) as there, link.open_netlink() as here:
        there.addr("add", index=link.link_index(there, "eth0"), address=str(metadata.ip), prefixlen=32)
        here.route("add", dst=str(metadata), oif=link.link_index(here, world.link))
        with serving(world.stack.open_socket(), str(metadata.ip)) as port:
            with socket.create_connection((str(metadata.ip), port), timeout=ANSWER_LIMIT_S) as control:
                assert control.recv(64) == str(world.host_address).encode()
            assert guest.fetch(metadata.ip, port) is None


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
def test_a_network_that_cannot_be_made_leaves_nothing(fault: str) -> None:
    plan = replace(random_plan(), **BROKEN[fault])
    with pytest.raises(HostFault):
        acquire_network(plan)
    assert remains(plan) == []


def test_a_host_whose_rules_are_rejected_gets_no_network() -> None:
    """Port 70000 never leaves the planner; here it stands for any rule that this kernel refuses."""
    plan = replace(random_plan(), host_ports=(HostPort(70000, LOOPBACK, 1),))
    with pytest.raises(HostFault, match="rejected"):
        acquire_network(plan)
    assert remains(plan) == []


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
