"""A real network stack in the place of a guest, and a world beyond the host: no VMM needed.

The guest is a namespace whose eth0 is a tap; a thread carries frames between it and the VM's tap as a
VMM would, virtio-net header included. All sockets are made inside a namespace by the C library, so the
test talks from there without leaving its own process.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from nimbus.host import link, native, netns, nft
from nimbus.host_agent.network import acquire_network, plan_network, release_network
from nimbus.model.ids import new_vm_id
from nimbus.model.vm import HostPort, NetPlan, Slot

SUBNET = IPv4Network("172.29.0.0/16")  # not the product's default: real VMs may run beside these tests
ANSWER_LIMIT_S = 5.0
# Long enough for an answer on one host, short enough to wait for many that must not come. `make test-controllers` runs
# these tests on an emulated host, which answers late when eight networks are being made.
SILENCE_S = 3.0 if os.environ.get("NIMBUS_TEST_CONTROLLERS") else 0.4


@dataclass(frozen=True)
class Stack:
    """One namespace's network stack."""

    netns_fd: int
    address: IPv4Address

    def open_socket(
        self, kind: int = socket.SOCK_STREAM, protocol: int = 0, *, within_s: float = SILENCE_S
    ) -> socket.socket:
        sock = socket.socket(fileno=native.netns_socket(self.netns_fd, socket.AF_INET, kind, protocol))
        sock.settimeout(within_s)
        return sock

    def ping(self, target: IPv4Address, *, within_s: float = ANSWER_LIMIT_S) -> bool:
        """Whether one echo request is answered; SILENCE_S is enough where it must not be."""
        ident = os.urandom(2)
        with self.open_socket(socket.SOCK_RAW, socket.IPPROTO_ICMP, within_s=within_s) as sock:
            body = b"\x08\x00\x00\x00" + ident + b"\x00\x01nimbus"
            sock.sendto(body[:2] + _checksum(body) + body[4:], (str(target), 0))
            with suppress(TimeoutError):
                while True:
                    packet, sender = sock.recvfrom(2048)
                    if packet[20] == 0 and packet[24:26] == ident and sender[0] == str(target):
                        return True
        return False

    def fetch(self, target: IPv4Address, port: int, *, within_s: float = ANSWER_LIMIT_S) -> bytes | None:
        """What a server says on connect; None where it cannot be reached: SILENCE_S is enough where it must not be."""
        with self.open_socket(within_s=within_s) as sock:
            try:
                sock.connect((str(target), port))
                return sock.recv(64)
            except (TimeoutError, OSError):
                return None

    def send_frame(self, to_mac: str, from_mac: str, packet: bytes) -> None:
        """Put an IPv4 packet on the wire as it is, past all that this stack would say against it."""
        ethernet = bytes.fromhex(to_mac.replace(":", "") + from_mac.replace(":", "") + "0800")
        fd = native.netns_socket(self.netns_fd, socket.AF_PACKET, socket.SOCK_RAW, 0)
        with socket.socket(fileno=fd) as sock:
            sock.sendto(ethernet + packet, ("eth0", 0x0800))


def random_plan(
    *, host_ports: tuple[HostPort, ...] = (), nameserver: IPv4Address | None = None, index: int | None = None
) -> NetPlan:
    index = secrets.randbelow(16384) if index is None else index
    slot = Slot(index, 290_000 + index, 290_000 + index, 3 + index)
    name = f"nb{secrets.token_hex(2)[:3]}-{new_vm_id()}"
    return plan_network(name, slot, subnet=SUBNET, tap_prefix="nimbus", host_ports=host_ports, nameserver=nameserver)


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


@contextmanager
def open_guest(plan: NetPlan) -> Iterator[Stack]:
    """A stack with the guest's address behind the tap of an acquired network."""
    name = f"guest-{plan.name}"
    netns.ensure_netns(name)
    try:
        with netns.open_netns(name) as guest_fd, netns.open_netns(plan.name) as vm_fd:
            eth0 = native.open_tap(guest_fd, "eth0", 0, 0, persist=False)
            tap = native.open_tap(vm_fd, plan.tap, plan.tap_uid, plan.tap_gid, persist=True)
            with _carrying_frames(eth0, tap), link.open_netlink(guest_fd) as route:
                index = link.link_index(route, "eth0")
                link.configure_link(route, index, address=plan.guest, mac=plan.mac)
                link.raise_link(route, index)
                link.ensure_default_route(route, plan.gateway.ip, index)
                yield Stack(guest_fd, plan.guest.ip)
    finally:
        netns.remove_netns(name)


@dataclass(frozen=True)
class World:
    """A machine beyond the host that knows no way back but to the host itself."""

    stack: Stack
    host_address: IPv4Address  # the host as the world sees it
    link: str


@contextmanager
def open_world() -> Iterator[World]:
    name = f"world-{secrets.token_hex(3)}"
    first = IPv4Address("198.18.0.0") + 4 * secrets.randbelow(16384)
    inside = IPv4Interface((first + 2, 30))
    netns.ensure_netns(name)
    try:
        with netns.open_netns(name) as fd, link.open_netlink() as route, link.open_netlink(fd) as there:
            index, eth0 = link.ensure_veth(route, name, there, "eth0", fd)
            link.configure_link(route, index, address=IPv4Interface((first + 1, 30)))
            link.raise_link(route, index)
            link.ensure_forwarding((name,))
            link.configure_link(there, eth0, address=inside)
            link.raise_link(there, eth0)
            yield World(Stack(fd, inside.ip), first + 1, name)
            link.remove_link(route, name)
    finally:
        netns.remove_netns(name)


@contextmanager
def serving(sock: socket.socket, address: str, *, port: int = 0) -> Iterator[int]:
    """A TCP server that tells each client the address it came from; yields the port."""
    with sock:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen()
        thread = threading.Thread(target=_serve, args=(sock,), name=f"server on {address}")
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(sock: socket.socket) -> None:
    with suppress(OSError):  # shut down by the test's end
        while True:
            client, sender = sock.accept()
            with client:
                client.sendall(sender[0].encode())


@contextmanager
def _carrying_frames(one: int, other: int) -> Iterator[None]:
    stop, stopped = os.pipe()
    thread = threading.Thread(target=_carry, args=(one, other, stop), name="frames")
    thread.start()
    try:
        yield
    finally:
        os.close(stopped)
        thread.join()
        for fd in (stop, one, other):
            os.close(fd)


def _carry(one: int, other: int, stop: int) -> None:
    towards = {one: other, other: one}
    poll = select.poll()
    for fd in (one, other, stop):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == stop:
                return
            with suppress(BlockingIOError, OSError):  # a link that is still down refuses frames
                os.write(towards[fd], os.read(fd, 65536))


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def render_udp(source: IPv4Address, target: IPv4Address, port: int, data: bytes) -> bytes:
    """A UDP packet without a checksum of its own, as UDP over IPv4 allows."""
    udp = struct.pack("!HHHH", 40000, port, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source.packed, target.packed)
    return head[:10] + _checksum(head) + head[12:] + udp
