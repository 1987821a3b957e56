"""A VM's network: netns, veth to the host, tap for the guest, and the rules between them.

guest 172.16.0.2 -> tap -> (netns: masquerade) -> veth -> (host: masquerade) -> the world. The guest may
send from its own address only, reaches no neighbour, no link-local address and nothing of the host but the
declared ports of its gateway. Rules are loaded before the link comes up: a rejected batch leaves no network.

`acquire_network` turns forwarding on for the links that carry the host's default routes (not globally) and
never turns it off again, since others may rely on it. Software that drops forwarded packets in a chain of
its own (a firewall's FORWARD policy) still has the last word. Called by claims.py, in a
thread; planning and rendering are pure.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from nimbus.host import conntrack, link, netns, nft
from nimbus.host.together import Together
from nimbus.model.errors import HostFault, NimbusError, Refused
from nimbus.model.ids import check_ifname, parse_object_name
from nimbus.model.vm import HostPort, NetPlan, Slot

GATEWAY = IPv4Interface("172.16.0.1/30")
GUEST = IPv4Interface("172.16.0.2/30")
# One MAC for every gateway, so that a guest restored on another tap finds the neighbour it knew.
GATEWAY_MAC = "02:4e:42:ff:ff:ff"
GUEST_MAC = "02:4e:42:00:00:01"  # likewise: a template's network card is every clone's
PEER = "uplink"
NETNS_TABLE = "nimbus"
DNS_PORT = 53
# One guest may fill neither its namespace's table of connections nor the host's (262144 by default).
MAX_CONNECTIONS = 8192
_TURNS = threading.BoundedSemaphore(8)  # of 32 at once each took twice as long, with 2 cores
_TURN_LIMIT_S = 3.0  # a third of what a release may take in all
# This host, loopback, link-local (cloud metadata), multicast, reserved and broadcast.
_NEVER = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3"


def plan_network(
    object_name: str,
    slot: Slot,
    *,
    subnet: IPv4Network,
    tap_prefix: str,
    host_ports: tuple[HostPort, ...],
    nameserver: IPv4Address | None,
) -> NetPlan:
    """Names and addresses of the VM in `slot`: the slot's own /30 out of `subnet`."""
    if parse_object_name(object_name) is None:
        raise Refused(f"{object_name!r} is no object name of Nimbus: nb<3 hex>-<8 hex>")
    if subnet.prefixlen > 30 or (slot.index + 1) * 4 > subnet.num_addresses:
        raise Refused(f"{subnet} has no /30 left for slot {slot.index}: give the host a larger subnet")
    if subnet.overlaps(GATEWAY.network):
        raise Refused(f"{subnet} overlaps {GATEWAY.network}, which every guest uses inside its namespace")
    ports = [port.port for port in host_ports]
    if len(set(ports)) != len(ports) or not all(_is_port(p.port) and _is_port(p.target_port) for p in host_ports):
        raise Refused(f"host ports {ports} must be different and between 1 and 65535")
    tap = check_ifname(f"{tap_prefix}0")
    if not tap.replace("-", "").replace("_", "").isalnum() or not tap.isascii():
        raise Refused(f"{tap!r} is no tap name: letters, digits, '-' and '_' only")
    uplink_host, uplink_peer = plan_uplink(subnet, slot.index)
    return NetPlan(
        name=object_name,
        tap=tap,
        peer=PEER,
        uplink_host=uplink_host,
        uplink_peer=uplink_peer,
        gateway=GATEWAY,
        guest=GUEST,
        mac=GUEST_MAC,
        tap_uid=slot.uid,
        tap_gid=slot.gid,
        host_ports=host_ports,
        nameserver=nameserver,
        subnet=subnet,
    )


def plan_uplink(subnet: IPv4Network, index: int) -> tuple[IPv4Interface, IPv4Interface]:
    """The two addresses of a slot's /30: of the host, and of the netns behind its veth."""
    first = subnet.network_address + index * 4
    return IPv4Interface((first + 1, 30)), IPv4Interface((first + 2, 30))


def render_host_rules(plan: NetPlan) -> str:
    """The VM's table on the host, replacing one of that name: default drop for whatever comes by its veth."""
    veth, peer = f'"{plan.name}"', plan.uplink_peer.ip
    mine = f"iifname {veth} ip daddr {plan.uplink_host.ip}"
    aims = [f"{mine} {proto} dport {port} dnat ip to {to}:{at}" for proto, port, to, at in _services(plan)]
    doors = [f"ct status dnat ip daddr {to} {proto} dport {at} accept" for proto, _, to, at in _services(plan)]
    chains = {
        "arrive": [
            "type filter hook prerouting priority raw; policy accept;",
            f"iifname != {veth} accept",
            "meta nfproto != ipv4 drop",
            f"ip saddr != {peer} drop",
            "ip daddr 127.0.0.0/8 drop",  # before dnat: route_localnet opens loopback to dnat alone
        ],
        "aim": ["type nat hook prerouting priority dstnat; policy accept;", *aims],
        "enter": [
            "type filter hook input priority filter; policy accept;",
            f"iifname != {veth} accept",
            "ct state established,related accept",
            *doors,
            "drop",
        ],
        "leave": [
            'oifname "nb*" drop',
            "tcp flags syn tcp option maxseg size set rt mtu",  # the host's uplink may be narrower than 1500
            "ct state established,related accept",
            "ct status dnat accept",  # a declared port whose target is another host
            f"ip daddr {{ {_NEVER}, {plan.subnet} }} drop",
            "accept",
        ],
        "pass": [
            "type filter hook forward priority filter; policy accept;",
            f"iifname {veth} goto leave",
            f"oifname {veth} ct state established,related accept",
            f"oifname {veth} drop",
        ],
        "mask": [
            "type nat hook postrouting priority srcnat; policy accept;",
            f"ip saddr {peer} oifname != {veth} masquerade",
        ],
    }
    return nft.render_removal(plan.name) + _render_table(plan.name, chains)


def render_netns_rules(plan: NetPlan) -> str:
    """The one table inside the new netns: what the guest may send, and under whose address it leaves."""
    tap, peer = f'"{plan.tap}"', f'"{plan.peer}"'
    host = plan.uplink_host.ip
    aims = [
        f"iifname {tap} ip daddr {plan.gateway.ip} {proto} dport {port} dnat ip to {host}"
        for proto, port, _, _ in _services(plan)
    ]
    chains = {
        "arrive": [
            "type filter hook prerouting priority raw; policy accept;",
            f"iifname != {tap} accept",
            "meta nfproto != ipv4 drop",
            f"ip saddr != {plan.guest.ip} drop",
            "ip protocol != { icmp, tcp, udp } drop",
            f"ip daddr {{ {_NEVER}, {plan.subnet} }} drop",
        ],
        "aim": ["type nat hook prerouting priority dstnat; policy accept;", *aims],
        "enter": [
            "type filter hook input priority filter; policy drop;",
            f"iifname {tap} icmp type echo-request accept",
            "ct state established,related accept",
        ],
        "pass": [
            "type filter hook forward priority filter; policy drop;",
            f"iifname {tap} ct state new ct count over {MAX_CONNECTIONS} drop",
            f"iifname {tap} oifname {peer} accept",
            f"iifname {peer} oifname {tap} ct state established,related accept",
        ],
        "mask": [
            "type nat hook postrouting priority srcnat; policy accept;",
            f"oifname {peer} masquerade",
        ],
    }
    return _render_table(NETNS_TABLE, chains)


def acquire_network(plan: NetPlan) -> None:
    """Everything or nothing. What an earlier owner of the name left behind goes first."""
    if netns.netns_path(plan.name).exists() or Path("/sys/class/net", plan.name).exists():
        release_network(plan.name)
    complete = False
    try:
        with _in_turn():
            _acquire(plan)
        complete = True
    finally:
        if not complete:
            release_network(plan.name)


def release_network(name: str, address: IPv4Address | None = None) -> None:
    """Give all of it back; what is absent is success, and a failed step does not stop the next.

    The veth is silenced first. Connections of `address`, the netns's own, are forgotten; without it (nobody recorded
    the slot) the veth's address tells it, so it is deleted after that: a release killed half-way can start over. The
    netns goes last: its name is what a reaper looks for.
    """
    if parse_object_name(name) is None:
        raise Refused(f"{name!r} is no object name of Nimbus: nothing of it is removed")
    faults: list[str] = []
    with _in_turn():
        with _noting(faults), link.open_netlink() as route:
            link.lower_link(route, name)
        with _noting(faults):
            _forget_connections(name, address)
    with _noting(faults):
        _ENDS.do(name)
    with _noting(faults):
        netns.remove_netns(name)
    if faults:
        raise HostFault(f"network of {name} was not released completely: {'; '.join(faults)}")


def _end_links_and_tables(names: list[str]) -> None:
    """The veths and the host's tables of VMs that end at the same moment."""
    faults: list[str] = []
    tables = "".join(nft.render_removal(name) for name in names)
    with _noting(faults), link.open_netlink() as route:
        link.remove_links(route, names)
    with _noting(faults):
        nft.apply_ruleset(tables)
    if faults:
        raise HostFault("; ".join(faults))


_ENDS = Together(_end_links_and_tables, patience_s=3.0)  # a third of what a release may take in all


@contextmanager
def _in_turn() -> Iterator[None]:
    """A few at a time: the kernel does them one after the other, and a crowd that fights for its locks takes twice as
    long. Whoever waited in vain goes ahead all the same: one that hangs must not hold up every other VM's network."""
    entered = _TURNS.acquire(timeout=_TURN_LIMIT_S)
    try:
        yield
    finally:
        if entered:
            _TURNS.release()


@contextmanager
def _noting(faults: list[str]) -> Iterator[None]:
    """A fault is written down, and what comes after still runs."""
    try:
        yield
    except NimbusError as fault:
        faults.append(str(fault))


def _forget_connections(name: str, known: IPv4Address | None) -> None:
    """Whoever gets the slot next must not meet connections of this VM in the host's table, though its veth be gone."""
    told = {known} if known is not None else set()
    here = link.find_address(name)
    if here is not None:
        told |= {neighbour for neighbour in here.network.hosts() if neighbour != here.ip}
    for address in told:
        conntrack.flush_connections(address)


def _acquire(plan: NetPlan) -> None:
    with link.open_netlink() as route:
        _refuse_used_addresses(route, plan)
        nft.apply_ruleset(render_host_rules(plan))
        nft.apply_ruleset(render_netns_rules(plan), netns=netns.ensure_netns(plan.name))
        with netns.open_netns(plan.name) as netns_fd, link.open_netlink(netns_fd) as inside:
            index, peer = link.ensure_veth(route, plan.name, inside, plan.peer, netns_fd)
            _configure_host_side(route, index, plan)
            link.ensure_tap(netns_fd, plan.tap, uid=plan.tap_uid, gid=plan.tap_gid)
            _configure_inside(inside, peer, plan)
        link.raise_link(route, index)  # only now: both sides are complete


def _refuse_used_addresses(route: link.Netlink, plan: NetPlan) -> None:
    """A slot that is free by its file alone (that folder was emptied under living VMs, say): two veths of one network,
    and the kernel would give one VM the other's replies. Refused again and again, the slot goes to quarantine."""
    found = link.find_output(route, plan.uplink_peer.ip)
    if found is not None and found != plan.name and parse_object_name(found) is not None:
        raise HostFault(f"{plan.uplink_peer.ip} leads to {found}, a VM without a slot: purge the state folder it is of")


def _configure_host_side(route: link.Netlink, index: int, plan: NetPlan) -> None:
    targets = tuple(target for _, _, target, _ in _services(plan))
    settings = {link.FORWARDING: 1, link.RP_FILTER: 1, link.ACCEPT_REDIRECTS: 0, link.SEND_REDIRECTS: 0}
    if any(target.is_loopback for target in targets):
        settings[link.ROUTE_LOCALNET] = 1
    link.configure_link(route, index, address=plan.uplink_host, settings=settings)
    remote = tuple(target for target in targets if not target.is_loopback)
    link.ensure_forwarding(link.uplinks(route, remote))


def _configure_inside(route: link.Netlink, peer: int, plan: NetPlan) -> None:
    tap = link.link_index(route, plan.tap)
    settings = {link.FORWARDING: 1, link.ACCEPT_REDIRECTS: 0, link.SEND_REDIRECTS: 0}
    link.configure_link(route, peer, address=plan.uplink_peer, settings=settings)
    # arp_ignore 1: the guest learns nothing of the uplink's address by asking for it
    link.configure_link(route, tap, address=plan.gateway, mac=GATEWAY_MAC, settings={**settings, link.ARP_IGNORE: 1})
    link.raise_link(route, tap)
    link.raise_link(route, peer)
    link.ensure_default_route(route, plan.uplink_host.ip, peer)


def _services(plan: NetPlan) -> list[tuple[str, int, IPv4Address, int]]:
    """(protocol, port at the gateway, target, port there) of all that a guest may reach of this host."""
    services = [("tcp", port.port, port.target, port.target_port) for port in plan.host_ports]
    if plan.nameserver is not None:
        services += [(proto, DNS_PORT, plan.nameserver, DNS_PORT) for proto in ("udp", "tcp")]
    return services


def _render_table(name: str, chains: dict[str, list[str]]) -> str:
    lines = [f"table inet {name} {{"]
    for chain, rules in chains.items():
        lines += [f"  chain {chain} {{", *(f"    {rule}" for rule in rules), "  }"]
    return "\n".join([*lines, "}", ""])


def _is_port(number: int) -> bool:
    return 1 <= number <= 65535
