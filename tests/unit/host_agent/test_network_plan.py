"""Addresses, names and rules of a VM's network, before anything is made."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus.host_agent.network import GATEWAY, plan_network, render_host_rules, render_netns_rules
from nimbus.model.errors import Refused
from nimbus.model.vm import HostPort, NetPlan, Slot

SUBNET = IPv4Network("172.30.0.0/16")
LOOPBACK = IPv4Address("127.0.0.1")


def plan_slot(
    index: int,
    *,
    name: str = "nb0a1-0123abcd",
    subnet: IPv4Network = SUBNET,
    tap_prefix: str = "nimbus",
    host_ports: tuple[HostPort, ...] = (),
    nameserver: IPv4Address | None = None,
) -> NetPlan:
    slot = Slot(index, 200_000 + index, 200_000 + index, 3 + index)
    return plan_network(name, slot, subnet=subnet, tap_prefix=tap_prefix, host_ports=host_ports, nameserver=nameserver)


def test_the_first_slot_gets_the_first_four_addresses() -> None:
    plan = plan_slot(0)
    assert (str(plan.uplink_host), str(plan.uplink_peer)) == ("172.30.0.1/30", "172.30.0.2/30")
    assert (str(plan.gateway), str(plan.guest)) == ("172.16.0.1/30", "172.16.0.2/30")
    assert (plan.tap, plan.mac, plan.tap_uid) == ("nimbus0", "02:4e:42:00:00:01", 200_000)


@given(st.integers(0, 16383), st.integers(0, 16383))
def test_two_slots_share_no_address_and_no_mac(one: int, other: int) -> None:
    first, second = plan_slot(one), plan_slot(other)
    assert first.uplink_host.network.subnet_of(SUBNET)
    assert (first.uplink_host.network.overlaps(second.uplink_host.network)) == (one == other)
    assert first.mac == second.mac  # a restored guest keeps the card of its template


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"index": 16384}, "slot 16384"),
        ({"index": 1, "subnet": IPv4Network("10.0.0.0/30")}, "slot 1"),
        ({"index": 0, "subnet": IPv4Network("10.0.0.0/31")}, "larger subnet"),
        ({"index": 0, "subnet": IPv4Network("172.16.0.0/12")}, "overlaps"),
        ({"index": 0, "name": "eth0"}, "no object name"),
        ({"index": 0, "tap_prefix": "fifteen-bytes-x"}, "interface name"),
        ({"index": 0, "tap_prefix": 'a"; drop'}, "interface name"),
        ({"index": 0, "tap_prefix": 'a"b'}, "tap name"),
        ({"index": 0, "host_ports": (HostPort(0, LOOPBACK, 80),)}, "host ports"),
        ({"index": 0, "host_ports": (HostPort(80, LOOPBACK, 65536),)}, "host ports"),
        ({"index": 0, "host_ports": (HostPort(80, LOOPBACK, 1), HostPort(80, LOOPBACK, 2))}, "host ports"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_anything_is_made(change: dict[str, object], word: str) -> None:
    with pytest.raises(Refused, match=word):
        plan_slot(**change)  # type: ignore[arg-type]  # one argument of several types


def test_a_declared_port_is_aimed_at_its_target_and_let_in_there_alone() -> None:
    plan = plan_slot(1, host_ports=(HostPort(8000, LOOPBACK, 18000),))
    host, inside = render_host_rules(plan), render_netns_rules(plan)
    assert "ip daddr 172.30.0.5 tcp dport 8000 dnat ip to 127.0.0.1:18000" in host
    assert "ct status dnat ip daddr 127.0.0.1 tcp dport 18000 accept" in host
    assert f"ip daddr {GATEWAY.ip} tcp dport 8000 dnat ip to 172.30.0.5" in inside


def test_a_nameserver_is_reached_at_the_gateway_by_udp_and_tcp() -> None:
    rules = render_host_rules(plan_slot(0, nameserver=IPv4Address("9.9.9.9")))
    for protocol in ("udp", "tcp"):
        assert f"{protocol} dport 53 dnat ip to 9.9.9.9:53" in rules


def test_without_declared_ports_nothing_is_let_into_the_host() -> None:
    rules = render_host_rules(plan_slot(0))
    assert "dnat ip to" not in rules
    enter = re.search(r"chain enter \{(.*?)\n  \}", rules, re.DOTALL)
    assert enter is not None
    assert enter[1].split("\n")[2:] == [
        '    iifname != "nb0a1-0123abcd" accept',
        "    ct state established,related accept",
        "    drop",
    ]


def test_a_batch_makes_one_table_and_touches_no_other_and_on_the_host_replaces_that_of_its_name() -> None:
    for text, table, begin in (
        (render_host_rules(plan_slot(0)), "nb0a1-0123abcd", "add table inet {0}\ndelete table inet {0}\n"),
        (render_netns_rules(plan_slot(0)), "nimbus", ""),
    ):
        assert text.startswith(f"{begin.format(table)}table inet {table} {{\n")
        assert set(re.findall(r"table inet (\S+)", text)) == {table}
        assert "flush" not in text
