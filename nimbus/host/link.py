"""Links, addresses and routes over netlink (pyroute2), on the host and inside a namespace.

Opens one socket per call of `open_netlink`, used and closed in the same thread (pyroute2 keeps an event
loop per thread). Never enters a namespace: a socket made inside one by the C library is enough.
Called by host_agent/network.py and by host/inventory.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any, TypeAlias

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_SETLINK

from nimbus.host import native
from nimbus.model.errors import HostFault

Netlink: TypeAlias = Any  # pyroute2.IPRoute, which carries no types

# Per-link settings of include/uapi/linux/ip.h (IPV4_DEVCONF_*), set over netlink: /proc/sys shows only
# the namespace of the thread that reads it, and no thread of ours enters another.
FORWARDING = 1
ACCEPT_REDIRECTS = 4
SEND_REDIRECTS = 6
RP_FILTER = 8
ARP_IGNORE = 19
ROUTE_LOCALNET = 26
_ADDR_GEN_MODE_NONE = 1  # no link-local address, hence no IPv6 on the link
_VETH_TRIES = 2
_VETH_LIMIT_S = 0.5
_LOOK_AGAIN_S = 0.01
_SIOCGIFNAME = 0x8910  # these are the fields of struct ifreq: a name of 16 bytes, then what is asked of it
_SIOCGIFINDEX = 0x8933
_SIOCGIFADDR = 0x8915  # include/uapi/linux/sockios.h
_SIOCGIFNETMASK = 0x891B
_ABSENT = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})


class _LinkSettings(nlmsg):  # type: ignore[misc]  # pyroute2 carries no types
    """RTM_SETLINK with IFLA_AF_SPEC as the kernel reads it; pyroute2's own class encodes only what is dumped."""

    prefix = "IFLA_"
    fields = (("family", "B"), ("__align", "x"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
    nla_map = ((1, "IFLA_ADDRESS", "l2addr"), (26, "IFLA_AF_SPEC", "families"))

    class families(nla):  # type: ignore[misc]  # noqa: N801 (pyroute2 finds the class by this name)
        nla_map = ((socket.AF_INET, "AF_INET", "inet"), (socket.AF_INET6, "AF_INET6", "inet6"))

        class inet(nla):  # type: ignore[misc]  # noqa: N801 (as above)
            nla_map = ((1, "IFLA_INET_CONF", "conf"),)

            class conf(nla):  # type: ignore[misc]  # noqa: N801 (as above)
                nla_map = tuple((number, str(number), "uint32") for number in range(1, 34))

        class inet6(nla):  # type: ignore[misc]  # noqa: N801 (as above)
            nla_map = ((8, "IFLA_INET6_ADDR_GEN_MODE", "uint8"),)


@contextmanager
def open_netlink(netns_fd: int | None = None) -> Iterator[Netlink]:
    """A route socket of the namespace behind `netns_fd`, or of the host."""
    try:
        if netns_fd is None:
            route = IPRoute()
        else:
            route = IPRoute(fileno=native.netns_socket(netns_fd, socket.AF_NETLINK, socket.SOCK_DGRAM, 0))
    except OSError as error:
        raise HostFault(f"no route socket could be opened ({error.strerror})") from error
    try:
        yield route
    finally:
        route.close()


def ensure_veth(route: Netlink, host: str, inside: Netlink, peer: str, netns_fd: int) -> tuple[int, int]:
    """A veth pair with one end here and the other inside the namespace; both down. Returns both indexes, ours first.

    A leftover of the same name is deleted first, with its addresses and routes. A pair that does not appear, or goes
    with an earlier owner's namespace whose end comes late, is made once more.
    """
    for _ in range(_VETH_TRIES):
        with _told(f"veth {host} could not be made"):
            _add_veth(route, host, peer, netns_fd)
        there = wait_link(inside, peer, _VETH_LIMIT_S)
        here = wait_link(route, host, _VETH_LIMIT_S)
        if there is not None and here is not None:
            return here, there
    raise HostFault(f"veth {host} was made {_VETH_TRIES} times and was not there {_VETH_LIMIT_S:g} s later")


def remove_links(route: Netlink, names: Collection[str]) -> None:
    """Delete several at once. Absent is success. The kernel waits once for all links that are of one group.

    The group's number is drawn for this one act: nothing else on the host is in it.
    """
    if len(names) == 1:
        remove_link(route, *names)
        return
    group = secrets.randbelow(1 << 30) + (1 << 30)
    for name in names:
        with _told(f"link {name} could not be deleted", absent_ok=True):
            route.link("set", ifname=name, group=group)
    with _told(f"{len(names)} links could not be deleted", absent_ok=True):
        route.link("del", group=group)


def wait_link(route: Netlink, name: str, limit_s: float) -> int | None:
    """The kernel's number of a link, once it is there; None where it did not appear in time."""
    deadline = time.monotonic() + limit_s
    while True:
        found = _find_link(route, name)
        if found is not None or time.monotonic() >= deadline:
            return found
        time.sleep(_LOOK_AGAIN_S)


def remove_link(route: Netlink, name: str) -> None:
    """Delete a link, and with a veth its other end. Absent is success. Takes some 15 ms: the kernel waits for RCU."""
    with _told(f"link {name} could not be deleted", absent_ok=True):
        route.link("del", ifname=name)


def ensure_tap(netns_fd: int, name: str, *, uid: int, gid: int) -> None:
    """A persistent tap with virtio-net headers inside the namespace, which only `uid` and `gid` may open."""
    try:
        os.close(native.open_tap(netns_fd, name, uid, gid, persist=True))
    except OSError as error:
        raise HostFault(
            f"tap {name} could not be made ({error.strerror}): Nimbus needs /dev/net/tun and CAP_NET_ADMIN"
        ) from error


def link_index(route: Netlink, name: str) -> int:
    """The kernel's number of a link."""
    found = _find_link(route, name)
    if found is None:
        raise HostFault(f"link {name} was not found")
    return found


def configure_link(
    route: Netlink,
    index: int,
    *,
    address: IPv4Interface | None = None,
    mac: str | None = None,
    settings: Mapping[int, int] | None = None,
) -> None:
    """Address, MAC and per-link settings of a link that is still down; IPv6 is off on it from here."""
    with _told(f"link {index} could not be configured"):
        _set_families(route, index, settings or {}, mac)
        if address is not None:
            route.addr("replace", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)


def raise_link(route: Netlink, index: int) -> None:
    """Bring a link up."""
    with _told(f"link {index} could not be brought up"):
        route.link("set", index=index, state="up")


def lower_link(route: Netlink, name: str) -> None:
    """Take a link down: from here nothing passes. Absent is success."""
    with _told(f"link {name} could not be taken down", absent_ok=True):
        route.link("set", ifname=name, state="down")


def find_address(name: str) -> IPv4Interface | None:
    """The first IPv4 address of a link of the host; None where there is no address or no link.

    Asked by ioctl: over netlink the kernel tells the addresses of all links, and fifty VMs that end at the same moment
    would have each of their fifty threads read them all.
    """
    request = struct.pack("16s24x", name.encode())  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            told = [fcntl.ioctl(sock, asked, request)[20:24] for asked in (_SIOCGIFADDR, _SIOCGIFNETMASK)]
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise HostFault(f"the address of {name} could not be read ({error.strerror})") from error
    address, mask = (IPv4Address(part) for part in told)
    return IPv4Interface((address, str(mask)))


def ensure_default_route(route: Netlink, gateway: IPv4Address, index: int) -> None:
    """The default route through `gateway` on that link."""
    with _told(f"the default route by {gateway} could not be set"):
        route.route("replace", dst="default", gateway=str(gateway), oif=index)


def uplinks(route: Netlink, targets: tuple[IPv4Address, ...] = ()) -> tuple[str, ...]:
    """Names of the links by which this host reaches the world and each of `targets`, as far as it does now.

    Loopback is left out. A host without a network runs VMs all the same: they reach what it reaches.
    """
    indexes: set[int] = set()
    with _told("the host's routes could not be read"):
        for message in route.get_routes(family=socket.AF_INET, table=254):
            if message["dst_len"] == 0:
                indexes |= set(_outputs(message))
        found = {_link_name(route, index) for index in indexes}
    found |= {name for target in targets if (name := find_output(route, target)) is not None}
    return tuple(sorted(found - {"lo"}))


def find_output(route: Netlink, address: IPv4Address) -> str | None:
    """The link by which this host reaches an address now; None where it knows no way."""
    try:
        indexes = set(_outputs(route.route("get", dst=str(address))[0]))
        return _link_name(route, indexes.pop()) if indexes else None
    except (NetlinkError, OSError) as error:
        number, cause = error.args[:2]
        if number in _ABSENT | {errno.ENETUNREACH, errno.EHOSTUNREACH}:
            return None
        raise HostFault(f"the way to {address} could not be looked for ({cause})") from error


def ensure_forwarding(names: tuple[str, ...]) -> None:
    """Let packets that arrive on these links be forwarded. Never taken back: others may rely on it by then."""
    for name in names:
        knob = Path("/proc/sys/net/ipv4/conf") / name / "forwarding"
        try:
            if knob.read_text().strip() != "1":
                knob.write_text("1\n")
        except OSError as error:
            raise HostFault(
                f"forwarding could not be turned on for {name} ({error.strerror}): set net.ipv4.ip_forward=1"
            ) from error


def list_links(prefix: str) -> tuple[str, ...]:
    """Names of the host's links that begin with `prefix`."""
    with open_netlink() as route, _told("the links could not be listed"):
        names = (message.get_attr("IFLA_IFNAME") for message in route.get_links())
        return tuple(sorted(name for name in names if name.startswith(prefix)))


def _add_veth(route: Netlink, host: str, peer: str, netns_fd: int) -> None:
    """Asked for at once, and what is in the way removed only then: there seldom is anything."""
    pair = {"ifname": host, "kind": "veth", "peer": {"ifname": peer, "net_ns_fd": netns_fd}}
    try:
        route.link("add", **pair)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        remove_link(route, host)
        route.link("add", **pair)


def _find_link(route: Netlink, name: str) -> int | None:
    """Asked by ioctl, as a link's name is: over netlink all that there is to say of it would be read for one number."""
    try:
        told = fcntl.ioctl(route.fileno(), _SIOCGIFINDEX, struct.pack("16s24x", name.encode()))
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise HostFault(f"link {name} could not be looked for ({error.strerror})") from error
    return int(struct.unpack_from("i", told, 16)[0])


def _link_name(route: Netlink, index: int) -> str:
    told = fcntl.ioctl(route.fileno(), _SIOCGIFNAME, struct.pack("16xi20x", index))
    return told[:16].split(b"\0", 1)[0].decode()


def _outputs(message: Any) -> Iterator[int]:
    index = message.get_attr("RTA_OIF")
    if index is not None:
        yield int(index)
    for hop in message.get_attr("RTA_MULTIPATH") or ():
        yield int(hop["oif"])


def _set_families(route: Netlink, index: int, settings: Mapping[int, int], mac: str | None) -> None:
    """In one message: the kernel takes all of it or nothing."""
    conf = {"attrs": [(str(number), value) for number, value in settings.items()]}
    ipv4 = ("AF_INET", {"attrs": [("IFLA_INET_CONF", conf)]})
    no_ipv6 = ("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})
    try:
        _send_families(route, index, [ipv4, no_ipv6], mac)
    except NetlinkError as error:
        if error.code != errno.EAFNOSUPPORT:
            raise
        _send_families(route, index, [ipv4], mac)  # a kernel without IPv6 has nothing to turn off


def _send_families(route: Netlink, index: int, families: list[tuple[str, Any]], mac: str | None) -> None:
    message = _LinkSettings()
    message["index"] = index
    message["attrs"] = [("IFLA_AF_SPEC", {"attrs": families})]
    if mac is not None:
        message["attrs"].append(("IFLA_ADDRESS", mac))
    message["header"]["type"] = RTM_SETLINK
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    route.nlm_request_batch([message])


@contextmanager
def _told(what: str, *, absent_ok: bool = False) -> Iterator[None]:
    """Foreign errors become a HostFault that says what could not be done."""
    try:
        yield
    except NetlinkError as error:
        if absent_ok and error.code in _ABSENT:
            return
        raise HostFault(f"{what} ({os.strerror(error.code)})") from error
    except OSError as error:
        raise HostFault(f"{what} ({error.strerror})") from error
