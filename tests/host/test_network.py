"""A VM's network on a real kernel: what passes, what must not, and that nothing of it stays."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface

import pytest

from nimbus.host import link, netns, nft
from nimbus.host_agent.network import GATEWAY_MAC, NETNS_TABLE
from nimbus.model.vm import HostPort, NetPlan
from tests.host.stand_in import (
    ANSWER_LIMIT_S,
    SILENCE_S,
    Stack,
    World,
    acquired,
    open_guest,
    random_plan,
    render_udp,
    serving,
)

pytestmark = pytest.mark.root

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what must stay out of reach is reachable unless the rules forbid it
LOOPBACK = IPv4Address("127.0.0.1")
DNS = IPv4Address("127.0.0.77")


@contextmanager
def bare_netns(plan: NetPlan) -> Iterator[Stack]:
    """The VM's netns as if a guest had got the better of the rules inside it."""
    nft.remove_table(NETNS_TABLE, netns=netns.netns_path(plan.name))
    with netns.open_netns(plan.name) as fd:
        yield Stack(fd, plan.uplink_peer.ip)


@contextmanager
def link_local_behind(world: World) -> Iterator[tuple[IPv4Address, int]]:
    """A server on a link-local address that the host itself can reach, as a cloud's metadata service is."""
    metadata = IPv4Interface("169.254.77.77/32")
    with link.open_netlink(world.stack.netns_fd) as there, link.open_netlink() as here:
        eth0, via = link.link_index(there, "eth0"), link.link_index(here, world.link)
        there.addr("add", index=eth0, address=str(metadata.ip), prefixlen=32)
        here.route("add", dst=str(metadata), oif=via)
        try:
            with serving(world.stack.open_socket(), str(metadata.ip)) as port:
                yield metadata.ip, port
        finally:
            here.route("del", dst=str(metadata), oif=via)
            there.addr("del", index=eth0, address=str(metadata.ip), prefixlen=32)


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
                assert guest.fetch(address, open_port, within_s=SILENCE_S) is None
            assert guest.fetch(declared.uplink_host.ip, loopback_port, within_s=SILENCE_S) is None
            assert guest.fetch(declared.uplink_host.ip, 8000, within_s=SILENCE_S) is None
            assert not guest.ping(declared.uplink_host.ip, within_s=SILENCE_S)
            assert not guest.ping(world.host_address, within_s=SILENCE_S)


def test_the_gateway_answers_dns_by_the_hosts_nameserver() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((str(DNS), 53))
        server.settimeout(ANSWER_LIMIT_S)
        asked = random_plan(nameserver=DNS)
        with acquired(asked), open_guest(asked) as guest, guest.open_socket(socket.SOCK_DGRAM) as client:
            client.settimeout(ANSWER_LIMIT_S)
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
            assert not guest.ping(address, within_s=SILENCE_S)
            assert guest.fetch(address, port, within_s=SILENCE_S) is None


def test_the_host_itself_cannot_open_a_connection_into_a_guest(guest: Stack, plan: NetPlan) -> None:
    with serving(guest.open_socket(), EVERYWHERE) as port, socket.socket() as client:
        client.settimeout(0.4)
        with pytest.raises(TimeoutError):
            client.connect((str(plan.uplink_peer.ip), port))


def test_not_even_a_single_packet_of_the_host_gets_past_the_uplink_to_a_guest(guest: Stack, plan: NetPlan) -> None:
    with (
        guest.open_socket(socket.SOCK_DGRAM) as server,
        link.open_netlink() as route,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        index = link.link_index(route, plan.name)
        route.route("add", dst=f"{guest.address}/32", gateway=str(plan.uplink_peer.ip), oif=index)
        server.bind((str(guest.address), 9))
        client.sendto(b"uninvited", (str(guest.address), 9))
        with pytest.raises(TimeoutError):
            server.recv(64)


def test_without_the_rules_inside_the_host_still_keeps_a_netns_from_its_neighbours(plan: NetPlan) -> None:
    with (
        acquired(random_plan()) as neighbour,
        bare_netns(plan) as stack,
        bare_netns(neighbour) as other,
        open("/proc/self/ns/net") as own,
    ):
        host = Stack(own.fileno(), plan.uplink_host.ip)
        assert host.ping(other.address)
        assert not stack.ping(other.address, within_s=SILENCE_S)


def test_without_the_rules_inside_the_host_still_drops_forged_sources_and_link_local(
    plan: NetPlan, world: World
) -> None:
    with bare_netns(plan) as stack, link_local_behind(world) as (metadata, port):
        with link.open_netlink(stack.netns_fd) as route:
            index = link.link_index(route, plan.peer)
            route.addr("add", index=index, address="10.9.8.7", prefixlen=32)
        assert stack.ping(world.stack.address)
        assert stack.fetch(metadata, port, within_s=SILENCE_S) is None
        with world.stack.open_socket(socket.SOCK_DGRAM) as server:
            server.bind((EVERYWHERE, 9))
            server.settimeout(ANSWER_LIMIT_S)
            for source, word in (("10.9.8.7", b"forged"), (str(stack.address), b"honest")):
                with stack.open_socket(socket.SOCK_DGRAM) as client:
                    client.bind((source, 0))
                    client.sendto(word, (str(world.stack.address), 9))
            assert server.recv(64) == b"honest"


def test_a_machine_that_routes_by_this_host_still_opens_nothing_in_a_netns(plan: NetPlan, world: World) -> None:
    with bare_netns(plan) as stack, link.open_netlink(world.stack.netns_fd) as there:
        route = {"dst": str(plan.uplink_peer.network), "gateway": str(world.host_address)}
        there.route("add", **route)
        assert stack.ping(world.stack.address)
        assert not world.stack.ping(plan.uplink_peer.ip, within_s=SILENCE_S)
        there.route("del", **route)


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
    with link_local_behind(world) as (metadata, port):
        with socket.create_connection((str(metadata), port), timeout=ANSWER_LIMIT_S) as control:
            assert control.recv(64) == str(world.host_address).encode()
        assert guest.fetch(metadata, port, within_s=SILENCE_S) is None
